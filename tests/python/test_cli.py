"""mm-run with a fake engine: parsing, exit codes, what goes to which stream, JSON shapes."""

import io
import json
import sys

import pytest

from fake_engine import FakeEngine
from mmengine import cli, errors
from mmengine.settings import SETTINGS


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in SETTINGS:
        monkeypatch.delenv("MMENGINE_" + name.upper(), raising=False)
    FakeEngine.opened = []
    FakeEngine.closed = 0


@pytest.fixture
def run(capsys):
    """Runs mm-run; gives (exit code, stdout, stderr)."""

    def call(*argv):
        code = cli.main(list(argv), engine_factory=FakeEngine)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def one_sentence(err):
    assert err.startswith("mm-run: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_without_a_verb_prints_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    for verb in ("generate", "chat", "convert", "fetch", "inspect", "perplexity", "bench"):
        assert f"    {verb} " in out.replace("\n", " ")
    assert "serve" not in out


def test_help_and_version(run):
    code, out, _ = run("-h")
    assert code == 0
    codes = [int(word) for word in out.partition("Exit codes:")[2].split() if word.isdecimal()]
    assert codes == [0, 64, 65, 66, 69, 70, 71, 74, 75, 130, 141, 143]
    code, out, _ = run("generate", "--help")
    assert code == 0
    assert "--max-tokens" in out
    assert "--weight-dtype" in out
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("mm-run ")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["generate", "-p", "x", "--frobnicate"], "--frobnicate"),
        (["dance"], "dance"),
        (["generate", "-p", "x", "--threads", "0"], "--threads"),
        (["generate", "-p", "x", "--threads", "many"], "--threads"),
        (["generate", "-p", "x", "--weight-dtype", "fp9"], "--weight-dtype"),
        (["generate", "-p", "x", "--temp", "warm"], "--temp"),
        (["generate", "-p", "x", "--temp", "nan"], "temperature"),
        (["generate", "-p", "x", "--top-p", "0"], "top_p"),
        (["generate", "-p", "x", "-n", "0"], "max_tokens"),
        (["generate", "-p", "x", "-n", "1e3"], "-n"),
        (["generate", "-p", "x", "--seed", str(2**64)], "seed"),
        (["generate", "-p", "x", "--stop", ""], "stop"),
        (["generate", "-p", ""], "empty"),
        (["generate"], "no prompt"),
        (["generate", "hello"], "hello"),
        (["generate", "-p", "x", "-f", "y"], "not allowed"),
        (["generate", "-p", "x", "-"], "-: not allowed with -p"),
        (["generate", "-p", "x", "--frobnicate", "y"], 'unknown option "--frobnicate"'),
        (["generate", "--frobnicate=y", "-p", "x"], 'unknown option "--frobnicate"; see mm-run g'),
        (["chat", "-x"], 'unknown option "-x"; see mm-run chat -h'),
        (["bench", "more"], 'unexpected argument "more"; see mm-run bench -h'),
        (["--temp", "1", "generate"], 'unknown option "--temp" before the verb; see mm-run -h'),
        (["generate", "-p", "x", "--raw", "--system", "s"], "--system"),
        (["generate", "-p", "x", "--logprobs", "2"], "--logprobs"),
        (["generate", "-p", "bad \udcff byte"], "UTF-8"),
        (["generate", "-m", "ids-only", "-p", "x"], "tokenizer"),
        (["generate", "-m", "base", "-p", "x", "--system", "s"], "--system"),
        (["chat", "-m", "base"], "chat format"),
        (["bench", "--batch", "1,x"], "--batch"),
        (["bench", "--gen-tokens", "0"], "--gen-tokens"),
        (["perplexity"], "--text"),
        (["convert"], "source"),
    ],
)
def test_bad_usage_is_one_sentence_and_64(run, argv, word):
    code, out, err = run(*argv)
    assert (code, out) == (64, "")
    assert word in one_sentence(err)


@pytest.mark.parametrize("verb", ["generate", "chat", "bench"])
@pytest.mark.parametrize("option", ["--image", "--draft"])
def test_options_of_later_versions_are_named(run, verb, option):
    for argv in ([verb, "-p", "x", option, "y"], [verb, f"{option}=y"], [option, "y", verb]):
        code, out, err = run(*argv)
        assert (code, out, err) == (64, "", f"mm-run: {option}: not supported by this version\n")


def test_a_prompt_may_be_the_name_of_an_option_of_later_versions(run):
    assert run("generate", "-p=--image")[:2] == (0, "echo: --IMAGE\n")


def test_options_are_checked_before_the_model_opens(run):
    assert run("generate", "-p", "x", "--top-p", "7")[0] == 64
    assert FakeEngine.opened == []


def test_errors_have_their_exit_codes(run, tmp_path):
    code, _, err = run("generate", "-m", "missing", "-p", "x")
    assert code == 66
    assert "missing" in one_sentence(err)
    code, _, err = run("generate", "-m", "huge", "-p", "x")
    assert code == 71
    one_sentence(err)
    code, _, err = run("generate", "-f", str(tmp_path / "no.txt"))
    assert code == 66
    assert "no.txt" in one_sentence(err)
    code, _, err = run("generate", "-f", str(tmp_path))
    assert code == 66
    one_sentence(err)


def test_a_bug_is_one_sentence_without_addresses(run):
    code, _, err = run("generate", "-m", "broken", "-p", "x")
    assert code == 70
    assert "0x7fea" not in one_sentence(err)
    assert "--debug" in err


@pytest.mark.parametrize("argv", [["--debug", "generate"], ["generate", "--debug"]])
def test_debug_adds_the_traceback(run, argv):
    code, _, err = run(*argv, "-m", "missing", "-p", "x")
    assert code == 66
    assert "Traceback" in err
    assert "mm-run: model:" in err


def test_a_failure_in_the_middle_keeps_the_text_and_closes_the_engine(run):
    code, out, err = run("generate", "-p", "dies")
    assert (code, out) == (70, "ech\n")
    assert "step 3" in one_sentence(err)
    assert FakeEngine.closed == 1


def test_generate_streams_each_piece_as_it_arrives(monkeypatch):
    class Recorder(io.StringIO):
        pieces = []

        def write(self, text):
            self.pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Recorder())
    assert cli.main(["generate", "-p", "hi"], engine_factory=FakeEngine) == 0
    assert Recorder.pieces == [*"echo: HI", "\n"]


def test_generate_passes_options_on(run):
    made = []

    class Keeping(FakeEngine):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    argv = "generate -p hi --system be -n 4 --temp 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --seed 5"
    argv += " --stop a --stop b --threads 3 --kv-dtype f32 --max-context 99"
    argv += " --allow-nonfinite -m somewhere"
    argv += " --presence-penalty -1.5 --frequency-penalty 0.5 --repetition-penalty 1.2"
    assert cli.main(argv.split(), engine_factory=Keeping) == 0
    assert FakeEngine.opened == [
        (
            "somewhere",
            {
                "kv_dtype": "f32",
                "max_context": 99,
                "threads": 3,
                "seed": 5,
                "allow_nonfinite": True,
            },
        )
    ]
    params = made[0].params[0]
    assert (params.max_tokens, params.temperature, params.top_p) == (4, 0.5, 0.9)
    assert (params.presence_penalty, params.frequency_penalty) == (-1.5, 0.5)
    assert params.repetition_penalty == 1.2
    assert (params.top_k, params.min_p, params.seed, params.stop) == (7, 0.1, 5, ("a", "b"))
    assert made[0].prompts == [
        [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    ]


def test_raw_and_base_models_get_the_text_itself(run):
    assert run("generate", "--raw", "-p", "hi")[1] == "echo: HI\n"
    assert run("generate", "-m", "base", "-p", "hi")[1] == "echo: HI\n"


def test_prompt_from_file_and_stdin(run, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_bytes(b"one\ntwo\n")
    assert run("generate", "-f", str(tmp_path / "p.txt"))[1] == "echo: ONE\nTWO\n"
    for argv in (["-f", "-"], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped\n")))
        assert run("generate", *argv)[1] == "echo: PIPED\n"
    (tmp_path / "bad.txt").write_bytes(b"ab\xffcd")
    code, _, err = run("generate", "-f", str(tmp_path / "bad.txt"))
    assert code == 64
    assert "offset 2" in one_sentence(err)


def test_generate_json(run):
    code, out, err = run("generate", "-p", "hi", "-n", "6", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert out.count("\n") == 1
    assert result["text"] == "echo: "
    assert result["token_ids"] == list(b"echo: ")
    assert result["finish_reason"] == "length"
    assert result["usage"]["prompt_tokens"] == 2
    assert result["usage"]["completion_tokens"] == 6
    assert result["logprobs"] is None
    assert set(result["timings"]) == {
        "time_to_first_token_s",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "total_s",
    }


def test_stats_go_to_stderr(run):
    code, out, err = run("generate", "-p", "hi", "--stats")
    assert (code, out) == (0, "echo: HI\n")
    assert err.startswith("prompt 2 tokens, ")
    assert "generated 8 tokens, " in err
    assert "GB/s" in err
    assert "bf16 weights | cpu, fake, 2 threads" in err


def test_warnings_go_to_stderr(run):
    code, out, err = run("generate", "-m", "warns", "-p", "hi")
    assert (code, out, err) == (0, "echo: HI\n", "mm-run: warning: a warning\n")


def test_batch_of_lines(run, tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert run("generate", "--prompts", str(tmp_path / "p.txt"))[:2] == (
        0,
        "echo: ONE\n\necho: TWO\n",
    )
    code, out, err = run("generate", "--prompts", str(tmp_path / "p.txt"), "--json", "--stats")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["echo: ONE", "echo: TWO"]
    assert err.startswith("2 prompts, 6 tokens | generated 18 tokens in ")


def test_batch_of_json_lines(run, tmp_path):
    lines = ['"a"', '{"prompt": "b"}', '{"messages": [{"role": "user", "content": "c"}]}', "[1, 2]"]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    code, out, _ = run("generate", "--prompts", str(path), "--json", "-n", "8")
    assert code == 0
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert texts == ["echo: A", "echo: B", "echo: C", "ABCDEFGH"]
    path.write_text("[1, 2]")
    code, out, _ = run("generate", "-m", "ids-only", "--prompts", str(path), "-n", "3")
    assert (code, out) == (0, "65 66 67\n")


@pytest.mark.parametrize(
    "line", ["{", "[1.5]", "[true]", "[]", '""', "{}", '{"messages": []}', "7"]
)
def test_bad_json_lines_name_file_and_line(run, tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text(f'"good"\n{line}\n')
    code, out, err = run("generate", "--prompts", str(path))
    assert (code, out) == (64, "")
    assert 'p.jsonl" line 2' in one_sentence(err)


def test_empty_batch_is_an_error(run, tmp_path):
    (tmp_path / "p.txt").write_text("\n \n")
    code, _, err = run("generate", "--prompts", str(tmp_path / "p.txt"))
    assert code == 64
    assert "is empty" in one_sentence(err)


def test_command_line_beats_environment_beats_file(run, tmp_path, monkeypatch):
    config = tmp_path / "config" / "mmengine" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('model = "filed"\nthreads = 5\nmax_context = 64\ntop_k = 3\n')
    monkeypatch.setenv("MMENGINE_THREADS", "6")
    monkeypatch.setenv("MMENGINE_MAX_CONTEXT", "65")
    assert run("generate", "-p", "hi", "--max-context", "66")[0] == 0
    assert FakeEngine.opened == [("filed", {"threads": 6, "max_context": 66})]


def sampled(*argv):
    """(max_tokens, temperature) of the request that generate makes."""
    made = []

    class Keeping(FakeEngine):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    assert cli.main(["generate", "-p", "hi", *argv], engine_factory=Keeping) == 0
    return made[0].params[0].max_tokens, made[0].params[0].temperature


def test_both_names_of_an_option_are_taken(run, tmp_path, monkeypatch):
    config = tmp_path / "config" / "mmengine" / "config.toml"
    config.parent.mkdir(parents=True)
    for text in ("temp = 0.5\nn = 4", "temperature = 0.5\nmax_tokens = 4"):
        config.write_text(text)
        assert sampled() == (4, 0.5)
        assert sampled("--temperature", "0.25", "--max-tokens", "3") == (3, 0.25)
        for temp, most in (("TEMP", "N"), ("TEMPERATURE", "MAX_TOKENS")):
            with monkeypatch.context() as patch:
                patch.setenv("MMENGINE_" + temp, "0.75")
                patch.setenv("MMENGINE_" + most, "2")
                assert sampled() == (2, 0.75)
                assert sampled("--temp", "0", "-n", "1") == (1, 0)
    monkeypatch.setenv("MMENGINE_TEMP", "1")
    monkeypatch.setenv("MMENGINE_TEMPERATURE", "1")
    code, _, err = run("generate", "-p", "hi")
    assert code == 64
    assert "MMENGINE_TEMPERATURE: sets the same option as MMENGINE_TEMP" in one_sentence(err)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("temp = 1\ntemperature = 1", "temperature: sets the same option as temp"),
        ('max_tokens = "all"', "max_tokens: expected an integer"),
        ("colour = 3", "colour"),
        ('threads = "many"', "threads"),
        ("threads = true", "threads"),
        ("threads = 0", "threads"),
        ('weight_dtype = "fp9"', "weight_dtype"),
        ("[engine]\nthreads = 2", "engine"),
        ("threads =", "TOML"),
        ("# \udcff", "TOML"),
    ],
)
def test_bad_config_names_file_and_key(run, tmp_path, text, word):
    config = tmp_path / "config" / "mmengine" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = run("generate", "-p", "hi")
    assert (code, out) == (64, "")
    assert str(config) in one_sentence(err)
    assert word in err


def test_bad_environment_names_the_variable(run, monkeypatch):
    monkeypatch.setenv("MMENGINE_WEIGHT_DTYPE", "fp9")
    code, _, err = run("generate", "-p", "hi")
    assert code == 64
    assert "MMENGINE_WEIGHT_DTYPE: expected one of" in one_sentence(err)


def test_control_characters_are_harmless_on_a_terminal_only(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    text = "a\x1b[2Jb\x9bc\td\n"
    for stream, expected in (
        (Screen(), "a\ufffd[2Jb\ufffdc\td\n"),
        (io.StringIO(), text),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        from mmengine.cli_output import Output

        Output().write_text(text)
        assert stream.getvalue() == expected


def test_convert_and_fetch_hand_over_and_print_the_place(run, monkeypatch, tmp_path):
    from mmengine import cache, convert

    calls = []

    def fake_convert(source, destination, weight_dtype, progress, force):
        calls.append((source, destination, weight_dtype, force))
        return destination

    monkeypatch.setattr(convert, "convert", fake_convert)
    gguf = tmp_path / "m.gguf"
    out = run("convert", str(gguf), "--weight-dtype", "fp8", "--force")[1]
    assert out == f"{tmp_path / 'm-fp8'}\n"
    assert run("convert", str(gguf), str(tmp_path / "d"))[1] == f"{tmp_path / 'd'}\n"
    assert calls == [
        (gguf, tmp_path / "m-fp8", "fp8", True),
        (gguf, tmp_path / "d", "bf16", False),
    ]
    monkeypatch.setattr(cache, "fetch", lambda model, progress: tmp_path / model)
    assert run("fetch", "some-model")[1] == f"{tmp_path / 'some-model'}\n"


def test_inspect(run, monkeypatch, tmp_path):
    import mmengine
    from mmengine import cache

    report = {
        "kind": "model",
        "layout": "hf",
        "quantization": "fp8, static activations",
        "vision": {"hidden_size": 1664, "parameters": 2678221568},
        "config": {"num_layers": 2, "rope_theta": 1e5},
        "tensors": [
            {"name": "a[red]", "dtype": "bf16", "shape": [3, 4]},
            {"name": "b", "dtype": "f32", "shape": [5]},
        ],
        "bytes": 44,
        "warnings": ["odd"],
    }
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(cache, "resolve_model", lambda name, progress: tmp_path)
    monkeypatch.setattr(mmengine, "inspect", lambda path: dict(report), raising=False)
    code, out, err = run("inspect", "-m", "x", "--json")
    assert (code, err) == (0, "mm-run: warning: odd\n")
    result = json.loads(out)
    assert result["parameters"] == 17
    assert result["dtypes"] == {"bf16": 12, "f32": 5}
    assert result["tokenizer"] == "tokenizer.json"
    assert {name: result[name] for name in report} == report
    code, out, _ = run("inspect", "-m", "x")
    assert code == 0
    assert "a[red]" in out
    assert "3 x 4" in out
    for shown in ("num_layers", "fp8, static activations", "does not compute", "2,678,221,568"):
        assert shown in out


def test_inspect_tells_the_scaling_of_positions_where_there_is_one(run, monkeypatch, tmp_path):
    import mmengine
    from mmengine import cache

    report = {"kind": "model", "layout": "hf", "tensors": [], "bytes": 0, "warnings": []}
    report |= {"quantization": "none", "vision": None}
    monkeypatch.setattr(cache, "resolve_model", lambda name, progress: tmp_path)
    monkeypatch.setattr(mmengine, "inspect", lambda path: dict(report), raising=False)
    stretched = {"rope_factor", "rope_original_context"}
    borders = {"rope_low_freq_factor", "rope_high_freq_factor"}
    for kind, factor, attention, shown in (
        ("default", 1.0, 1.0, set()),
        ("yarn", 64.0, 1.0, {*stretched, "rope_attention_factor"}),
        ("yarn", 64.0, 1.4, {*stretched, "rope_attention_factor"}),
        ("llama3", 8.0, 1.0, {*stretched, *borders}),
    ):
        config = {
            "rope_type": kind,
            "rope_theta": 1e6,
            "rope_factor": factor,
            "rope_original_context": 0.0 if factor == 1 else 4096.0,
            "rope_attention_factor": attention,
            "rope_low_freq_factor": 1.0,
            "rope_high_freq_factor": 4.0,
        }
        report["config"] = config
        out = run("inspect", "-m", "x")[1]
        assert {name for name in config if name in out} == {"rope_type", "rope_theta", *shown}
        assert json.loads(run("inspect", "-m", "x", "--json")[1])["config"] == config


def test_every_error_class_has_an_exit_code():
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    codes = {c.__name__: c.exit_code for c in classes if c is not errors.Error}
    assert all(64 <= code <= 75 or code == 130 for code in codes.values()), codes
