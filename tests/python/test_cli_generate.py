"""mm-run generate on models that think and call tools: a fake engine, then scripted tokens."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from fake_engine import FakeEngine
from mmengine import cli
from mmengine.cli_answer import Answer
from mmengine.outputs import Delta, Usage
from mmengine.sampling import SamplingParams
from mmengine.settings import SETTINGS
from support.scripted import make_mistral, scripted_engine
from test_mistral_tokenizer import small


@pytest.fixture(autouse=True)
def _clean_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in SETTINGS:
        monkeypatch.delenv("MMENGINE_" + name.upper(), raising=False)


@pytest.fixture
def run(capsys):
    """Runs mm-run; gives (exit code, stdout, stderr)."""

    def call(*argv, factory=FakeEngine):
        code = cli.main(list(argv), engine_factory=factory)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def one_sentence(err):
    assert err.startswith("mm-run: ")
    assert err.count("\n") == 1
    return err


def test_thoughts_and_calls_of_generate(run, tmp_path):
    thinker = ["generate", "-m", "thinker", "--reasoning-effort", "high"]
    code, out, err = run(*thinker, "-p", "one")
    assert (code, out, err) == (0, "echo: ONE\n", "")
    result = json.loads(run(*thinker, "-p", "one", "--json")[1])
    assert (result["text"], result["reasoning"]) == ("echo: ONE", "hm <b>\x1b[1mm\n")
    assert result["tool_calls"] == []
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": 1}'},
    }
    (tmp_path / "p.txt").write_text("calls\n")
    for argv in (["-p", "calls"], ["--prompts", str(tmp_path / "p.txt")]):
        result = json.loads(run(*thinker, *argv, "--json")[1])
        assert result["tool_calls"] == [call]
        assert result["finish_reason"] == "tool_calls"
        assert result["reasoning"]
    code, out, err = run(*thinker, "-p", "calls")
    assert (code, out) == (0, "\n")
    assert err == 'the model calls "f" with "{\\"a\\": 1}"\n'
    code, out, err = run(*thinker, "-p", "ponders", "--stats")
    assert (code, out) == (0, "\n")
    assert "the thought used all tokens" in err
    assert "(3 of thought)" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "thinker", "--reasoning-effort", "low"], 'expected none or high, got "low"'),
        (["--reasoning-effort", "high"], "smollm2 has no reasoning effort"),
        (["-m", "base", "--reasoning-effort", "high"], "base has no reasoning effort"),
        (["-m", "thinker", "--raw", "--reasoning-effort", "high"], "--raw switches off"),
    ],
)
def test_efforts_that_are_refused(run, argv, message):
    code, out, err = run("generate", "-p", "x", *argv)
    assert (code, out) == (64, "")
    assert one_sentence(err).startswith("mm-run: --reasoning-effort: ")
    assert message in err


def test_tokens_of_a_real_engine(run, tmp_path):
    folder = make_mistral(tmp_path / "model")
    answer = "[THINK]two\n[/THINK]Four [INST]is it.[TOOL_CALLS]f[ARGS]{}</s>"
    sizes = itertools.cycle([1, 4, 2])
    prompts = []

    def script(ids):
        prompts.append(small().decode(ids, skip_special=False))
        return small().encode(answer, allow_special=True)

    def factory(model, **options):
        return scripted_engine(model, script, lambda: next(sizes), **options)[0]

    argv = ["generate", "-m", str(folder), "-p", "2+2? [INST]", "--reasoning-effort", "high"]
    code, out, err = run(*argv, "--stop", "never", factory=factory)
    assert (code, out, err) == (0, "Four is it.\n", 'the model calls "f" with "{}"\n')
    assert '{"reasoning_effort": "high"}' in prompts[0]
    assert prompts[0].endswith("[INST]2+2? [INST][/INST]")
    result = json.loads(run(*argv, "--json", factory=factory)[1])
    assert (result["text"], result["reasoning"]) == ("Four is it.", "two")
    assert result["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert result["finish_reason"] == "tool_calls"
    assert result["usage"]["reasoning_tokens"] == len(small().encode("two\n")) + 2
    assert result["token_ids"] == small().encode(answer, allow_special=True)
    assert run(*argv, "--stop", "r i", factory=factory)[1] == "Fou\n"


def test_an_error_in_a_batch_names_the_line(run, tmp_path):
    folder = make_mistral(tmp_path / "model")
    path = tmp_path / "p.jsonl"

    def engine(model, **options):
        return scripted_engine(folder, lambda _: [], **options)[0]

    for bad, what in (
        ("[1, 99999]", "token 1 is 99999"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', 'messages[0]: role is "bot"'),
    ):
        path.write_text(f"[1, 2]\n\n{bad}\n")
        code, out, err = run("generate", "-m", "x", "--prompts", str(path), factory=engine)
        assert (code, out) == (64, "")
        assert f'p.jsonl" line 3: {what}' in one_sentence(err)
        assert "prompts[" not in err


class ReadLate:
    """A stream whose deltas were made 0.25 s apart, and are read at once."""

    def stream(self, prompt, params):
        now = time.monotonic()
        for k in range(5):
            last = {"finish_reason": "stop", "usage": Usage(3, 5)} if k == 4 else {}
            yield Delta("x", [k], made_at=now + 0.25 * (k + 1), **last)


def test_times_are_those_of_the_steps():
    answer = Answer()
    answer.run(ReadLate(), "p", SamplingParams(), None)
    assert answer.decode_tokens_per_s() == pytest.approx(4)
    assert answer.timings()["total_s"] == pytest.approx(1.25, abs=0.1)


def test_an_engine_says_when_its_steps_ended(tmp_path):
    folder = make_mistral(tmp_path / "model")
    with scripted_engine(folder, lambda _: [50, 51, 52, 2])[0] as engine:
        stream = engine.stream([1, 5])
        deltas = [next(stream)]
        time.sleep(0.3)
        read_at = time.monotonic()
        deltas += stream
        times = [delta.made_at for delta in deltas]
        assert len(times) > 3
        assert times == sorted(times)
        assert times[-1] < read_at


def test_forms_of_answers(run, tmp_path):
    schema, lark = tmp_path / "s.json", tmp_path / "g.lark"
    schema.write_text('{"type": "integer"}')
    lark.write_text('start: "a"')
    engines = []

    def factory(*args, **options):
        engines.append(FakeEngine(*args, **options))
        return engines[-1]

    for argv, field, value in (
        (["--json-schema", str(schema)], "json_schema", '{"type":"integer"}'),
        (["--regex", "a+"], "regex", "a+"),
        (["--grammar", str(lark)], "grammar", 'start: "a"'),
    ):
        assert run("generate", "-p", "one", *argv, factory=factory)[0] == 0
        assert getattr(engines[-1].params[0], field) == value
    made = len(engines)
    code, _, err = run("generate", "-p", "x", "--json-schema", str(lark), factory=factory)
    assert (code, "json_schema: $: no JSON object" in one_sentence(err)) == (64, True)
    code, _, err = run("generate", "-p", "x", "--grammar", str(tmp_path / "no"), factory=factory)
    assert (code, "--grammar" in one_sentence(err)) == (66, True)
    code, _, err = run("generate", "-p", "x", "--regex", "a", "--grammar", str(lark))
    assert (code, "not allowed with" in one_sentence(err)) == (64, True)
    assert len(engines) == made
