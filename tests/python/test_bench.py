"""The arithmetic and the shape of bench, with an engine whose clock is its own."""

import itertools
import json

import pytest

from fake_engine import FakeEngine
from mmengine import bench, cli
from mmengine.errors import EngineDeadError, UsageError

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
    assert prefill.percent_of_limit is None
    assert decode.tokens_per_s == pytest.approx(4 / STEP_S)
    assert decode.ms_per_token == pytest.approx(1e3 * STEP_S)
    # Steps see 21 to 28 tokens: 24.5 in the mean, of 100 bytes, beside a million of weights.
    read = (1_000_000 + 4 * 24.5 * 100) / STEP_S
    assert decode.gbytes_per_s == pytest.approx(read / 1e9)
    assert decode.percent_of_limit == pytest.approx(100 * read / 1e9)
    assert result.spreads == pytest.approx([0] * 8)
    assert result.rows[1].tokens_per_s == pytest.approx(1 / STEP_S)


def test_no_prompt_is_used_twice(engine):
    bench.run_bench(engine, prompt_tokens=[16], gen_tokens=2, batches=[3], repeat=4)
    assert len(engine.seen) == len(set(engine.seen)) == 2 * 3 * 4


def test_an_answer_of_another_length_is_an_error(engine, monkeypatch):
    monkeypatch.setattr(bench, "_params", lambda n: bench.SamplingParams(max_tokens=2))
    with pytest.raises(EngineDeadError, match="expected 5 generated tokens, got 2"):
        bench.run_bench(engine, prompt_tokens=[16], gen_tokens=8, batches=[1], repeat=1)


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

    assert cli.main([*argv, "--json"], engine_factory=Slow) == 0
    result = json.loads(capsys.readouterr().out)
    assert FakeEngine.opened == [("smollm2", {"max_batch": 2, "threads": 3})]
    assert set(result) == {"device", "model", "weight_dtype", "threads", "results"}
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
        assert (row["percent_of_limit"] is None) == (row["phase"] == "prefill")
    assert cli.main(argv, engine_factory=Slow) == 0
    table = capsys.readouterr().out
    assert table.count("prefill") == table.count("decode") == 4
    assert "spread" in table
    assert "limit is the measured read bandwidth, 1.0 GB/s" in " ".join(table.split())
