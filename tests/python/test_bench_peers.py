"""The comparison with other engines: its arithmetic, and the processes that it asks."""

import argparse
import subprocess
import sys
from pathlib import Path

import bench_peers
import numpy as np
import pytest
from make_tiny_model import make_tiny_model
from peers import process as processes
from peers import table
from peers.formats import NAMES
from peers.hugging_face import write_checkpoint
from peers.process import Clocks, Process, Run
from peers.worker import mean_nll

from mmengine.convert import convert
from mmengine.perplexity import negative_log_likelihood
from mmengine.processor_time import ProcessorTime

WORKER = """
import sys, threading, time
sys.path.insert(0, {tools!r})
from peers.worker import serve

def spin():
    while True:
        pass

class Fake:
    about = "fake 1"
    def run(self, prompt, gen):
        print("noise of a library")
        time.sleep(0.5)
        return 0.25, 0.25
    def nll(self, ids):
        if ids == [6]:
            raise ValueError("six is not allowed")
        return float(sum(ids))

if sys.argv[1] == "spins":
    threading.Thread(target=spin, daemon=True).start()
serve(Fake)
"""


@pytest.fixture
def start(tmp_path):
    """start(what): the process of a fake engine that "sleeps" or "spins" between questions."""
    script = tmp_path / "worker.py"
    tools = Path(bench_peers.__file__).parent
    script.write_text(WORKER.format(tools=str(tools)), "utf-8")
    started = []

    def one(what="sleeps"):
        command = [sys.executable, str(script), what]
        started.append(Process(f"{what}-{len(started)}", command, tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield one
    for each in started:
        each.close()


def test_a_process_answers_until_it_is_closed(start):
    fake = start()
    assert fake.about == "fake 1"
    assert fake.ask(text=[1, 2, 4]) == {"nll": 7.0}
    assert fake.ask(prompt=[1], gen=3) == {"prefill_s": 0.25, "decode_s": 0.25}
    fake.close()
    with pytest.raises((SystemExit, ValueError)):
        fake.ask(text=[1])


def test_a_process_that_dies_says_why(start):
    fake = start()
    with pytest.raises(SystemExit, match=r"sleeps-0: ended with 1; .*(\n.*)*six is not allowed"):
        fake.ask(text=[6])


def test_runs_while_all_others_sleep(start, monkeypatch):
    monkeypatch.setattr(processes, "QUIET", 1.0)  # whatever else this machine does
    everyone = [start(), start()]
    run = processes.measure(everyone[0], everyone, [1] * 50, 8)
    assert (run.prefill, run.decode) == (200.0, 32.0)
    assert 0 <= run.stolen <= run.others + 0.01 <= 1.01


def test_an_engine_that_spins_unasked_is_an_error(start, monkeypatch):
    monkeypatch.setattr(processes, "QUIET", 1.0)
    monkeypatch.setattr(processes, "MAX_WAIT_S", 0.0)
    everyone = [start(), start("spins")]
    with pytest.raises(SystemExit, match=r"spins-1: used [0-9]+ % of a processor unasked"):
        processes.measure(everyone[0], everyone, [1] * 50, 8)


def test_a_disturbed_run_is_made_again(start, monkeypatch):
    """Up to MAX_TRIES times; the least disturbed one counts."""
    fake = start()
    shares = iter([0.5, 0.2, 0.3, 0.0])
    monkeypatch.setattr(processes, "MAX_WAIT_S", 0.0)
    monkeypatch.setattr(processes, "share_of_others", lambda before, after: next(shares))
    assert processes.measure(fake, [fake], [1], 1).others == 0.2
    assert processes.measure(fake, [fake], [1], 1).others == 0.0
    shares = iter([0.5, 0.2])
    monkeypatch.setattr(processes, "MAX_TRIES_S", 0.4)  # one run takes 0.5 s
    assert processes.measure(fake, [fake], [1], 1).others == 0.5


def test_programs_of_others_are_seen(start):
    fake = start()
    before = processes.clocks([fake])
    subprocess.run([sys.executable, "-c", "for _ in range(10**7): pass"], check=True)
    after = processes.clocks([fake])
    total_s = after.machine.total_s - before.machine.total_s
    assert 0.05 < processes.share_of_others(before, after) * total_s <= total_s + 0.1


def test_what_the_host_stole_counts_as_others():
    """Of 10 s of two processors: 6 of our own, 3 stolen, 1 of another program, 10 idle."""
    before = Clocks(ProcessorTime(100, 50, 7), 30)
    after = Clocks(ProcessorTime(120, 60, 10), 36)
    assert processes.share_of_others(before, after) == pytest.approx(0.2)
    assert processes.share_of_host(before, after) == pytest.approx(0.15)
    assert processes.share_of_others(before, before) == processes.share_of_host(before, before) == 0


def test_a_machine_that_does_not_tell_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "read_processor_time", lambda: None)
    with pytest.raises(SystemExit, match="/proc/stat: expected a first line with steal"):
        processes.clocks([])


def test_quality_is_that_of_perplexity():
    random = np.random.default_rng(1)
    logits = random.normal(size=(150, 40)).astype(np.float32) * 5
    ids = [int(token) for token in random.integers(0, 40, 150)]
    expected = negative_log_likelihood(logits[:-1], np.asarray(ids[1:])).mean()
    assert mean_nll(logits, ids) == pytest.approx(expected, rel=1e-12)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def test_the_peers_checkpoint_is_the_same_model(tmp_path):
    make_tiny_model(tmp_path / "in", tied=True)
    ours = convert(tmp_path / "in", tmp_path / "ours", "f32")
    for name in TOKENIZER:
        (ours / name).write_text(name)
    write_checkpoint(ours, tmp_path / "theirs")
    for name in TOKENIZER:
        assert (tmp_path / "theirs" / name).read_text() == name
        (tmp_path / "theirs" / name).unlink()
    back = convert(tmp_path / "theirs", tmp_path / "back", "f32")
    for name in ("consolidated.safetensors", "params.json"):
        assert (back / name).read_bytes() == (ours / name).read_bytes()


def test_a_head_of_its_own_is_refused(tmp_path):
    make_tiny_model(tmp_path / "in")
    ours = convert(tmp_path / "in", tmp_path / "ours", "f32")
    with pytest.raises(SystemExit, match="expected tied embeddings, got a head"):
        write_checkpoint(ours, tmp_path / "theirs")


def runs(prefill, decode):
    pairs = zip(prefill, decode, strict=True)
    return [Run(p, d, 0.01 * i, 0.005 * i) for i, (p, d) in enumerate(pairs)]


def test_rows_are_medians():
    row = table.row("x", runs([10, 30, 20], [1, 2, 4]), 18.5, "about")
    assert (row.prefill, row.decode) == (20, 2)
    assert (row.prefill_spread, row.decode_spread) == (1.0, 1.5)
    assert (row.perplexity, row.others, row.about) == (18.5, 0.02, "about")


def test_the_footer_tells_what_the_host_took(capsys):
    measured = {"mmengine-fp8": runs([1], [1]), "mmengine-int4": runs([1, 1, 1], [1, 1, 1])}
    rows = [table.row(name, each, 20.0, "about") for name, each in measured.items()]
    bench_peers.show(rows, measured, 712, bench_peers.parse([]))
    text = " ".join(capsys.readouterr().out.split())
    assert "stolen: the host took at most 1.0% of the time of all processors away in any" in text


def test_ratios_are_of_rounds():
    """The second round was slow for all: that is in no ratio."""
    measured = {
        "mmengine-fp8": runs([300, 150, 310], [80, 40, 84]),
        "mmengine-bf16": runs([350, 170, 340], [50, 25, 51]),
        "llama.cpp-F16": runs([200, 100, 170], [30, 15, 30]),
        "llama.cpp-Q8_0": runs([250, 120, 260], [40, 16, 40]),
    }
    decode, prefill = table.ratios(measured)
    assert (decode.what, decode.ours, decode.theirs) == (
        *("8-bit decode", "mmengine-fp8", "llama.cpp-Q8_0"),
    )
    assert (decode.lowest, decode.median, decode.highest) == (2.0, 2.1, 2.5)
    assert decode.bound == 1.25
    # The best by its median, in every round.
    assert (prefill.what, prefill.ours, prefill.theirs) == (
        *("exact prefill", "mmengine-bf16", "llama.cpp-F16"),
    )
    assert (prefill.lowest, prefill.median, prefill.highest) == (1.7, 1.75, 2.0)
    assert table.missing(measured) == [
        "4-bit decode: not measured, without mmengine-int4, llama.cpp-Q4_1",
        "8-bit prefill: not measured, without mmengine-int8, llama.cpp-F32, llama.cpp-BF16, "
        "llama.cpp-Q4_1",
    ]


def test_every_headline_is_of_engines_that_exist():
    measured = {name: runs([1], [1]) for name in NAMES}
    assert [ratio.median for ratio in table.ratios(measured)] == [1.0] * 4
    assert table.missing(measured) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llama.cpp-Q", ["llama.cpp-Q8_0", "llama.cpp-Q4_1"]),
        (
            "ctranslate2, mmengine-int8",
            ["mmengine-int8", "ctranslate2-float32", "ctranslate2-int8"],
        ),
        ("m,mmengine-bf16,l,c,t", list(NAMES)),
    ],
)
def test_names_may_be_beginnings(text, expected):
    assert bench_peers.chosen(text) == expected


@pytest.mark.parametrize("text", ["", "vllm", "mmengine-bf16,", "llama.cpp-Q5"])
def test_unknown_names_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected names, .* mmengine-bf16, "):
        bench_peers.chosen(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "peers\n"),
        (["--only", "mmengine,llama.cpp-Q4"], "peers\n"),
        (["--only", "mmengine", "--rounds", "2"], "alone\n"),
    ],
)
def test_what_needs_the_peers(options, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--check", *options])
    bench_peers.main()
    assert capsys.readouterr().out == expected


def test_bad_options_end_before_anything_is_made(capsys, tmp_path):
    for argv in (["--rounds", "0"], ["--only", "x"], ["--json", str(tmp_path / "no" / "f.json")]):
        with pytest.raises(SystemExit) as caught:
            bench_peers.parse(argv)
        assert caught.value.code == 2
        assert argv[0] in capsys.readouterr().err
