"""One table of this engine and its peers on the CPU, on the same weights: speed beside quality.

    tools/dev bench --peers [--rounds 5] [--only NAME,...] [--threads 2] [--json FILE]

Each engine is a process that loads once. A round is one run of each, one after another, so that
what disturbs the machine disturbs all alike: a prompt of 512 random ids, then 128 greedy tokens one
by one. Perplexity is that of the whole tests/data/gpl3_head.txt in one window, nothing added.
All engines together take 6 GB of memory and, on an idle machine, two minutes a round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peers import table
from peers.formats import NAMES, Files
from peers.process import QUIET, Process, Run, measure
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from mmengine import cache

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "tests" / "data" / "gpl3_head.txt"
PROMPT_TOKENS, GEN_TOKENS = 512, 128
SEED = 20_241_122


def chosen(text: str) -> list[str]:
    """The engines that a list of names or beginnings of names means, in the order of NAMES."""
    wanted = [word.strip() for word in text.split(",")]
    for word in wanted:
        if not word or not any(name.startswith(word) for name in NAMES):
            raise argparse.ArgumentTypeError(
                f"expected names, or beginnings of names, of {', '.join(NAMES)}; got {word!r}"
            )
    return [name for name in NAMES if any(name.startswith(word) for word in wanted)]


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected 1 to 1000, got {text!r}")
    return int(text)


def json_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: cannot be written")
    return path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/dev bench --peers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="default 5")
    parser.add_argument(
        *("--only",), type=chosen, default=list(NAMES), metavar="NAME,...",
        help=f"names, or beginnings of them, of {', '.join(NAMES)} (default all)",
    )  # fmt: skip
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="default 2")
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="write all runs and results there"
    )
    parser.add_argument("--peers-python", default=sys.executable, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    args = parse()
    if args.check:  # what tools/dev asks before it installs anything
        print("alone" if all(name.startswith("mmengine") for name in args.only) else "peers")
        return
    folder = ROOT / "build" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder, args.peers_python, lambda path: note(f"making {path}"))
    directory = cache.resolve_model(cache.DEMO)
    os.environ["PYTHONPATH"] = str(ROOT / "tools")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = tokenizer.encode(TEXT.read_text("ascii"), add_special_tokens=False).ids
    random, vocab = np.random.default_rng(SEED), tokenizer.get_vocab_size()

    def prompt() -> list[int]:
        return [int(token) for token in random.integers(0, vocab, PROMPT_TOKENS)]

    commands = {name: files.command(name, args.threads) for name in args.only}
    with ExitStack() as stack:
        everyone: list[Process] = []
        for name, command in commands.items():
            note(f"loading {name}")
            everyone.append(Process(name, command, folder / f"{name}.log"))
            stack.callback(everyone[-1].close)
        perplexities: dict[str, float] = {}
        for process in everyone:
            note(f"perplexity and warm-up: {process.name}")
            perplexities[process.name] = math.exp(process.ask(text=text)["nll"])
            process.ask(prompt=prompt(), gen=8)
        runs: dict[str, list[Run]] = {name: [] for name in args.only}
        for number in range(args.rounds):
            ids = prompt()
            for process in everyone:
                run = measure(process, everyone, ids, GEN_TOKENS)
                runs[process.name].append(run)
                note(
                    f"round {number + 1} of {args.rounds}: {process.name}: prefill "
                    f"{run.prefill:.1f}, decode {run.decode:.1f} tok/s"
                    + (f", others used {100 * run.others:.0f} %" if run.others > QUIET else "")
                )
        abouts = {process.name: process.about for process in everyone}
    for name in args.only:
        if name.startswith("llama.cpp"):
            embedding = files.embedding_type(name.removeprefix("llama.cpp-"))
            abouts[name] = f"embedding and head {embedding}; {abouts[name]}"
    rows = [table.row(name, runs[name], perplexities[name], abouts[name]) for name in args.only]
    show(rows, runs, len(text), args)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(rows, runs, len(text), args), indent=1) + "\n")


def show(
    rows: list[table.Row], runs: dict[str, list[Run]], text_tokens: int, args: argparse.Namespace
) -> None:
    result = Table(title=f"SmolLM2-135M-Instruct on {cpu_name()}, {args.threads} threads")
    for title in ("engine", "prefill tok/s", "spread", "decode tok/s", "spread", "perplexity"):
        result.add_column(title, justify="left" if title == "engine" else "right")
    result.add_column("others", justify="right")
    for each in rows:
        result.add_row(
            *(each.name, f"{each.prefill:.1f}", f"{100 * each.prefill_spread:.0f}%"),
            *(f"{each.decode:.1f}", f"{100 * each.decode_spread:.0f}%"),
            *(f"{each.perplexity:.3f}", f"{100 * each.others:.0f}%"),
        )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(result)
    console.print(
        f"Medians of {args.rounds} runs of each, in turns: a prompt of {PROMPT_TOKENS} tokens, "
        f"then {GEN_TOKENS} one by one; spread is (fastest - slowest) / median; others is the most "
        f"that other programs and the host used of the processors in any run; perplexity over "
        f"{text_tokens - 1} tokens."
    )
    console.print(
        f"stolen: the host took at most {100 * table.most_stolen(runs):.1f}% of the time of all "
        f"processors away in any run"
    )
    for ratio in table.ratios(runs):
        console.print(
            f"{ratio.what}: {ratio.ours} / {ratio.theirs} = {ratio.median:.2f} "
            f"({ratio.lowest:.2f} to {ratio.highest:.2f}), wanted {ratio.bound:.2f}"
        )
    for sentence in table.missing(runs):
        console.print(sentence)
    for about in dict.fromkeys(f"{each.name}: {each.about}" for each in rows):
        console.print(about, soft_wrap=True)


def as_json(
    rows: list[table.Row], runs: dict[str, list[Run]], text_tokens: int, args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "threads": args.threads,
        "prompt_tokens": PROMPT_TOKENS,
        "gen_tokens": GEN_TOKENS,
        "perplexity_tokens": text_tokens - 1,
        "results": [asdict(each) for each in rows],
        "ratios": [asdict(ratio) for ratio in table.ratios(runs)],
        "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unnamed processor"


if __name__ == "__main__":
    main()
