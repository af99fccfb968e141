"""The arithmetic and the shape of bench, with an engine whose clock is its own."""

import itertools
import json
import os
from types import SimpleNamespace

import pytest

from fake_engine import FakeEngine
from mmengine import bench, cli
from mmengine.errors import EngineDeadError, UsageError
from mmengine.processor_time import ProcessorTime, read_processor_time
from mmengine.roofline import Machine

PREFILL_S, STEP_S = 0.5, 0.25


class Timed(FakeEngine):
    """Prefill takes PREFILL_S, every further token of a sequence STEP_S."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.now = 0.0
        self.seen = []

    def stream(self, prompt, params):
        for index, delta in enumerate(super().stream(prompt, params)):
            self.now += STEP_S if index else PREFILL_S
            yield delta

    def generate(self, prompts, params):
        assert params.ignore_eos
        assert params.temperature == 0.0
        self.seen += [tuple(prompt) for prompt in prompts]
        started_at = self.now
        completions = super().generate(prompts, params)
        self.now = started_at + PREFILL_S + STEP_S * (params.max_tokens - 1)
        return completions


@pytest.fixture
def engine(monkeypatch):
    made = Timed("timed", threads=3)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: made.now)
    return made


def test_rows(engine):
    result = bench.run_bench(engine, prompt_tokens=[20, 40], gen_tokens=8, batches=[1, 4], repeat=3)
    shapes = [(row.phase, row.prompt_tokens, row.gen_tokens, row.batch) for row in result.rows]
    assert shapes == [
        (phase, length, 8, batch)
        for length in (20, 40)
        for batch in (1, 4)
        for phase in ("prefill", "decode")
    ]
    prefill, decode = result.rows[2], result.rows[3]  # 20 tokens, batch 4
    assert prefill.tokens_per_s == pytest.approx(4 * 20 / PREFILL_S)
    assert prefill.ms_per_token == pytest.approx(1e3 * PREFILL_S / 80)
    assert prefill.gbytes_per_s is None
    # Each of 4 x 20 tokens multiplies, and reads the KV of the tokens up to itself.
    flops = 80 * 300_000 + 4 * 100_000 + 4 * 210 * 400
    assert prefill.percent_of_limit == pytest.approx(100 * flops / 2e9 / PREFILL_S)
    assert result.bounds[2:4] == ["multiply", "memory"]
    assert decode.tokens_per_s == pytest.approx(4 / STEP_S)
    assert decode.ms_per_token == pytest.approx(1e3 * STEP_S)
    # Steps see 21 to 28 tokens: 24.5 in the mean, of 100 bytes, beside a million of weights.
    read = (1_000_000 + 4 * 24.5 * 100) / STEP_S
    assert decode.gbytes_per_s == pytest.approx(read / 1e9)
    assert decode.percent_of_limit == pytest.approx(100 * read / 1e9)
    assert result.spreads == pytest.approx([0] * 8)
    assert result.machine == Machine(1e9, 2e9, 8e9)
    assert result.rows[1].tokens_per_s == pytest.approx(1 / STEP_S)


def test_the_bound_changes_with_the_batch(engine):
    """A step of 1 takes 1 ms of reading, 0.2 of multiplying; of 16 it is 1.04 and 3.3."""
    result = bench.run_bench(engine, prompt_tokens=[20], gen_tokens=8, batches=[1, 16], repeat=1)
    assert result.bounds == ["multiply", "memory", "multiply", "multiply"]
    decode = result.rows[3]
    flops = 16 * (400_000 + 24.5 * 400)
    assert decode.percent_of_limit == pytest.approx(100 * flops / 2e9 / STEP_S)
    assert decode.gbytes_per_s == pytest.approx((1_000_000 + 16 * 24.5 * 100) / STEP_S / 1e9)
    assert result.spreads == [None] * 4


def test_whole_runs_and_scheduling(engine):
    result = bench.run_bench(engine, prompt_tokens=[20, 40], gen_tokens=8, batches=[1, 4], repeat=3)
    (run,) = result.whole_runs  # one request is no batch
    assert (run.requests, run.prompt_tokens, run.gen_tokens) == (4, 128, 128)
    assert run.tokens_per_s == pytest.approx(4 * 128 / (PREFILL_S + 127 * STEP_S))
    assert [part.batch for part in result.scheduling] == [1, 4]
    for part in result.scheduling:
        assert part.share == pytest.approx(0.2)
        assert part.seconds_per_step == pytest.approx(0.002)


def test_a_whole_run_fits_the_context(monkeypatch):
    engine = Timed("timed", max_context=100)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: engine.now)
    result = bench.run_bench(engine, prompt_tokens=[20], gen_tokens=8, batches=[2], repeat=1)
    assert [(run.prompt_tokens, run.gen_tokens) for run in result.whole_runs] == [(50, 50)]


def test_no_prompt_is_used_twice(engine):
    bench.run_bench(engine, prompt_tokens=[16], gen_tokens=2, batches=[3], repeat=4)
    whole = 3  # takes more than 30 s: it is not repeated
    assert len(engine.seen) == len(set(engine.seen)) == 2 * 3 * 4 + whole


def test_an_answer_of_another_length_is_an_error(engine, monkeypatch):
    monkeypatch.setattr(bench, "_params", lambda n: bench.SamplingParams(max_tokens=2))
    with pytest.raises(EngineDeadError, match="expected 5 generated tokens, got 2"):
        bench.run_bench(engine, prompt_tokens=[16], gen_tokens=8, batches=[1], repeat=1)


@pytest.mark.parametrize("percent", [99.0, 140.0])
def test_more_than_the_memory_allows_is_explained(percent, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    clock = itertools.count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(Machine, "seconds", lambda machine, work: percent / 100)
    monkeypatch.setattr(Machine, "bound", lambda machine, work: "memory")
    argv = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--repeat", "1", "--batch", "1"]
    assert cli.main(argv, engine_factory=FakeEngine) == 0
    told = "Over 100% of memory: the model stays in caches" in capsys.readouterr().out
    assert told == (percent > 100)


def jittery(engine, monkeypatch, negative):
    """Batches, which are timed as differences, of which so many of ten are negative."""
    calls = itertools.count()
    generate = Timed.generate

    def generated(self, prompts, params):
        started_at = self.now
        completions = generate(self, prompts, params)
        if params.max_tokens > 1 and next(calls) % 10 < negative:
            self.now = started_at + PREFILL_S / 2
        return completions

    monkeypatch.setattr(Timed, "generate", generated)
    return bench.run_bench(engine, prompt_tokens=[8], gen_tokens=1, batches=[2], repeat=5)


def test_steps_too_short_to_be_timed(engine, monkeypatch):
    with pytest.raises(UsageError, match=r"--gen-tokens: 1 decode steps of 8 tokens, batch 2"):
        jittery(engine, monkeypatch, 4)


def test_one_run_that_was_disturbed(engine, monkeypatch):
    decode = jittery(engine, monkeypatch, 1).rows[1]
    assert decode.ms_per_token == pytest.approx(1e3 * STEP_S)


def test_more_than_the_context_is_an_error(engine):
    with pytest.raises(UsageError, match="2049 tokens, expected at most the context of 2048"):
        bench.run_bench(engine, prompt_tokens=[2000], gen_tokens=48, batches=[1], repeat=1)


def test_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    FakeEngine.opened = []
    argv = ["bench", "--prompt-tokens", "8,16", "--gen-tokens", "4", "--repeat", "1"]
    argv += ["--batch", "1,2", "--threads", "3"]

    clock = itertools.count()  # a look at it takes a second

    class Slow(FakeEngine):
        """As long as its answers are: batches are timed as differences."""

        def generate(self, prompts, params):
            for _ in range(params.max_tokens):
                next(clock)
            return super().generate(prompts, params)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    times = itertools.count(7, 5)  # 5 s were stolen of 400
    monkeypatch.setattr(
        bench, "read_processor_time", lambda: ProcessorTime(80.0 * (s := next(times)), 0.0, s)
    )

    assert cli.main([*argv, "--json"], engine_factory=Slow) == 0
    result = json.loads(capsys.readouterr().out)
    assert FakeEngine.opened == [("smollm2", {"max_batch": 2, "threads": 3})]
    keys = {"device", "model", "weight_dtype", "threads", "results", "whole_runs"}
    assert set(result) == keys | {"scheduling", "second_turn", "machine", "stolen_percent"}
    assert result["stolen_percent"] == 1.25
    assert result["machine"] == {
        "read_bytes_per_s": 1e9,
        "flops_per_s": 2e9,
        "int8_ops_per_s": 8e9,
    }
    assert [list(part) for part in result["scheduling"]] == [
        ["batch", "share", "seconds_per_step"]
    ] * 2
    turn = result["second_turn"]
    assert (turn["history_tokens"], turn["turn_tokens"]) == (2000, 32)
    assert turn["first_seconds"] == turn["second_seconds"] == 1.0
    assert turn["percent"] == 100.0
    (run,) = result["whole_runs"]
    assert list(run) == ["requests", "prompt_tokens", "gen_tokens", "tokens_per_s"]
    assert (run["requests"], run["prompt_tokens"], run["gen_tokens"]) == (2, 128, 128)
    assert result["device"] == "cpu, fake, 3 threads"
    assert (result["model"], result["weight_dtype"], result["threads"]) == ("smollm2", "bf16", 3)
    assert len(result["results"]) == 8
    for row in result["results"]:
        assert list(row) == [
            "phase",
            "prompt_tokens",
            "gen_tokens",
            "batch",
            "tokens_per_s",
            "ms_per_token",
            "gbytes_per_s",
            "percent_of_limit",
        ]
        assert row["tokens_per_s"] > 0
        assert (row["gbytes_per_s"] is None) == (row["phase"] == "prefill")
        assert row["percent_of_limit"] > 0
    assert cli.main(argv, engine_factory=Slow) == 0
    table = capsys.readouterr().out
    assert table.count("prefill") == table.count("decode") == 4
    assert "spread" in table
    text = " ".join(table.split())
    assert (
        "by memory, 1.0 GB/s, or multiply, 2 GFLOPS of floats and 8 GOPS of int8, whichever is less"
        in text
    )
    assert "whole run: 2 requests of 128 in / 128 out: " in text
    assert "scheduling: 20.00% (2000 us a step) at batch 1, 20.00% (2000 us a step) at" in text
    turn = "first token after 1.000 s, 100.0% of the first turn's 1.000 s with 2000 tokens"
    assert f"second turn: {turn}" in text
    assert text.endswith("stolen: the host took 1.2% of the time of all processors away")


def test_nothing_is_told_of_a_host_that_is_not_known(engine, monkeypatch, capsys):
    """No such file, or no time that was counted."""
    argv = ["bench", "--prompt-tokens", "8", "--gen-tokens", "4", "--batch", "1", "--repeat", "1"]
    for time in (None, ProcessorTime(80.0, 0.0, 5.0)):
        monkeypatch.setattr(bench, "read_processor_time", lambda time=time: time)
        assert cli.main(argv, engine_factory=lambda *_, **__: engine) == 0
        assert "stolen" not in capsys.readouterr().out
        assert cli.main([*argv, "--json"], engine_factory=lambda *_, **__: engine) == 0
        assert json.loads(capsys.readouterr().out)["stolen_percent"] is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "cpu  1 2 3 4 5 6 7\n",
        "cpu0 1 2 3 4 5 6 7 8 9 10\n",
        "cpu  1 2 3 4 5 6 7 x 9 10\n",
        "cpu  1 2 3 4 5 6 7 \u0668\n",
    ],
)
def test_a_machine_that_does_not_count_stolen_time(tmp_path, text):
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text, "utf-8")
    assert read_processor_time(stat) is None


def test_processor_time_is_of_all_processors_guests_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 200 300 4000 500 60 70 770 90 80\ncpu0 1 2\n")
    before = read_processor_time(stat)
    assert before == ProcessorTime(60.0, 45.0, 7.7)
    assert before.busy_s == 15.0
    assert ProcessorTime(80.0, 50.0, 8.7).stolen_percent_since(before) == pytest.approx(5.0)
    assert ProcessorTime(80.0, 50.0, 7.6).stolen_percent_since(before) == 0.0
    assert before.stolen_percent_since(before) is None


def test_second_turn(engine, monkeypatch):
    """Of a prompt, only what the cache does not have takes time: a millisecond a token."""
    known = []

    def stream(prompt, params):
        shared = max((_common(prompt, old) for old in known), default=0)
        engine.now += 1e-3 * (len(prompt) - shared)
        answer = list(range(params.max_tokens))
        known.append([*prompt, *answer])
        for token in answer:
            yield SimpleNamespace(token_ids=[token])
            engine.now += STEP_S

    monkeypatch.setattr(engine, "stream", stream)
    result = bench._second_turn(engine, bench._Prompts(256), 3, lambda what: None)
    assert (result.history_tokens, result.turn_tokens) == (2000, 32)
    assert result.first_seconds == pytest.approx(2.0, rel=0.01)
    assert result.second_seconds == pytest.approx(0.032)
    assert result.percent == pytest.approx(1.6, rel=0.01)
    assert [len(tokens) for tokens in known] == [2008, 2041] * 3


def _common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))


@pytest.mark.parametrize(("context", "history"), [(200, 159), (82, 41), (81, None)])
def test_a_second_turn_fits_the_context(monkeypatch, context, history):
    engine = Timed("timed", max_context=context)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: engine.now)
    result = bench.run_bench(engine, prompt_tokens=[20], gen_tokens=8, batches=[1], repeat=1)
    assert (None if history is None else result.second_turn.history_tokens) == history
    assert (result.second_turn is None) == (history is None)
    assert (result.as_json(engine)["second_turn"] is None) == (history is None)


def test_integer_weights_have_their_own_limit(engine):
    engine.weight_dtype = "int8"
    result = bench.run_bench(engine, prompt_tokens=[20], gen_tokens=8, batches=[4], repeat=1)
    seconds = (80 * 300_000 + 4 * 100_000) / 8e9 + 4 * 210 * 400 / 2e9
    assert result.rows[0].percent_of_limit == pytest.approx(100 * seconds / PREFILL_S)
    assert result.bounds == ["multiply", "memory"]
