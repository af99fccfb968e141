"""The installed mm-run with the demo model: what a user types and what comes back."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MM_RUN = Path(sys.executable).with_name("mm-run")

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2")]


@pytest.fixture
def environment(tmp_path):
    """No settings of the user's, except where the models lie."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MMENGINE_")}
    if "MMENGINE_CACHE" in os.environ:
        kept["MMENGINE_CACHE"] = os.environ["MMENGINE_CACHE"]
    return {**kept, "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}


@pytest.fixture
def run(environment):
    """Runs mm-run to its end; gives the finished process."""

    def call(*argv, text=""):
        return subprocess.run(
            [MM_RUN, *argv],
            input=text,
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )

    return call


def one_sentence(result, code):
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mm-run: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_generate_json_is_greedy_and_counts_its_tokens(run):
    argv = ["generate", "-p", "What is the capital of France?", "-n", "24", "--temp", "0", "--json"]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "Paris" in result["text"]
    assert result["finish_reason"] in ("stop", "length")
    assert result["usage"]["completion_tokens"] == len(result["token_ids"]) <= 24
    assert result["timings"]["decode_tokens_per_s"] > 0
    assert json.loads(run(*argv).stdout)["token_ids"] == result["token_ids"]


def test_generate_streams_text_and_stats_apart(run):
    done = run("generate", "--raw", "-p", "The sky is", "-n", "8", "--temp", "0", "--stats")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert len(done.stdout) > 2
    assert "generated 8 tokens" in done.stderr
    assert "GB/s" in done.stderr


def test_logprobs_are_given_for_every_token(run):
    done = run("generate", "-p", "Hi", "-n", "4", "--logprobs", "3", "--json", "--temp", "0")
    result = json.loads(done.stdout)
    assert len(result["logprobs"]) == len(result["token_ids"])
    for token, entry in zip(result["token_ids"], result["logprobs"], strict=True):
        assert entry["token_id"] == token
        assert entry["logprob"] <= 0
        assert entry["top"][0][1] == entry["logprob"]


def test_a_batch_equals_its_prompts_alone(run, tmp_path):
    prompts = ["The sky is", "Two and two make", "Once upon a time there was a small"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    options = ["--raw", "-n", "12", "--temp", "0", "--json"]
    batch = run("generate", "--prompts", str(tmp_path / "prompts.txt"), *options)
    together = [json.loads(line)["token_ids"] for line in batch.stdout.splitlines()]
    alone = [json.loads(run("generate", "-p", p, *options).stdout)["token_ids"] for p in prompts]
    assert together == alone


def test_sigint_during_generate_keeps_the_text(environment):
    process = subprocess.Popen(
        [MM_RUN, "generate", "--raw", "-p", "Once upon a time", "-n", "4000", "--temp", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # Test runners in the background have SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        first = os.read(process.stdout.fileno(), 1)
        assert first
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert err == b"mm-run: interrupted\n"


def test_errors(run, tmp_path):
    assert "no-such-model" in one_sentence(run("generate", "-m", "no-such-model", "-p", "x"), 66)
    assert "CUDA" in one_sentence(run("generate", "--device", "cuda", "-p", "x"), 69)
    one_sentence(run("generate", "-f", str(tmp_path / "absent")), 66)
    one_sentence(run("perplexity", "--text", str(tmp_path / "absent")), 66)
    assert "temperature" in one_sentence(run("generate", "-p", "x", "--temp", "nan"), 64)
    assert "context" in one_sentence(run("generate", "-p", "x " * 100, "--max-context", "32"), 64)
    one_sentence(run("convert", str(tmp_path / "absent.gguf")), 66)


def test_chat_through_a_pipe_remembers(run):
    done = run(
        "chat", "--temp", "0", "-n", "40",
        text="My name is Ada.\nWhat is my name?\n/stats\n/image x.png\n/exit\nnot read\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ada" in done.stdout
    assert "tok/s" in done.stderr
    assert "cannot read images" in done.stderr


def test_chat_goes_on_after_a_message_that_is_too_long(run):
    done = run(
        "chat", "--temp", "0", "-n", "8", "--max-context", "128", text="x y " * 200 + "\nHi\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "128" in done.stderr


def test_perplexity_of_plain_and_shuffled_text(run, tmp_path):
    words = "The quick brown fox jumps over the lazy dog, and the dog does not care at all. " * 3
    (tmp_path / "plain.txt").write_text(words)
    (tmp_path / "odd.txt").write_text(" ".join(sorted(words.split(), key=lambda w: w[::-1])))
    results = {}
    for name in ("plain", "odd"):
        done = run("perplexity", "--text", str(tmp_path / f"{name}.txt"), "--json")
        assert done.returncode == 0, done.stderr
        results[name] = json.loads(done.stdout)
        assert results[name]["perplexity"] == pytest.approx(math.exp(results[name]["nll"]))
    assert results["plain"]["perplexity"] < results["odd"]["perplexity"]
    text = str(tmp_path / "plain.txt")
    strided = run("perplexity", "--text", text, "--json", "--max-context", "32", "--stride", "8")
    assert json.loads(strided.stdout)["tokens"] == results["plain"]["tokens"]


def test_bench_json(run):
    argv = ["bench", "--prompt-tokens", "32", "--gen-tokens", "16", "--batch", "1,2"]
    done = run(*argv, "--repeat", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == "smollm2"
    rows = [(row["phase"], row["batch"]) for row in result["results"]]
    assert rows == [("prefill", 1), ("decode", 1), ("prefill", 2), ("decode", 2)]
    assert all(row["tokens_per_s"] > 0 for row in result["results"])
    assert all(row["gbytes_per_s"] > 0 for row in result["results"] if row["phase"] == "decode")


def test_inspect_names_the_architecture(run):
    done = run("inspect", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["config"]["num_layers"] == 30
    assert report["config"]["hidden_size"] == 576
    assert report["parameters"] > 130e6
    assert report["tokenizer"] == "tokenizer.json"
    assert "num_layers" in run("inspect").stdout


def test_fetch_twice_gives_the_same_place(run):
    first, second = run("fetch", "smollm2"), run("fetch", "smollm2")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert Path(first.stdout.strip()).is_file()
