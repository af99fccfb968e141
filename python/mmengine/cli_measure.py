"""mm-run perplexity and mm-run bench: tables on stdout or JSON, the running state on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmengine.cli_output import Output, read_text
from mmengine.errors import UsageError
from mmengine.synthetic import refuse_text

if TYPE_CHECKING:
    from rich.console import Console

    from mmengine.bench_result import Bench
    from mmengine.cli_engine import OpenEngine
    from mmengine.engine import Engine


def run_perplexity(args: argparse.Namespace, open_engine: OpenEngine, output: Output) -> None:
    """Runs the verb; the text is read before the model is opened."""
    from mmengine.perplexity import measure_perplexity

    refuse_text(args.model, "--text")
    text = read_text(args.text, "--text")
    with open_engine(args) as engine:
        if engine.tokenizer is None:
            raise UsageError(f"{engine.model_name}: has no tokenizer, so it cannot read a text")
        ids = engine.tokenizer.encode(text)[: args.text_tokens]
        with _status("perplexity") as update:
            result = measure_perplexity(
                engine, ids, args.stride, lambda done: update(f"{done} of {len(ids) - 1} tokens")
            )
    if args.json:
        output.write_json(result)
    else:
        output.write(
            f"perplexity {result.perplexity:.4f} over {result.tokens} tokens "
            f"(mean negative log-likelihood {result.nll:.6f})\n"
        )


def run_bench(args: argparse.Namespace, open_engine: OpenEngine, output: Output) -> None:
    """Runs the verb; the engine has room for the largest batch unless --max-batch says less."""
    from mmengine import bench, bench_plot

    picture = None if args.plot is None else bench_plot.check_plot(args.plot)
    with open_engine(args, max_batch=max(args.batch)) as engine:
        with _status("bench") as update:
            result = bench.run_bench(
                engine,
                prompt_tokens=args.prompt_tokens,
                gen_tokens=args.gen_tokens,
                batches=args.batch,
                repeat=args.repeat,
                on_run=update,
            )
        if args.json:
            output.write_json(result.as_json(engine))
        else:
            output.draw(lambda console: _print_bench(console, result, engine))
        if picture is not None:
            bench_plot.plot(result, _title(engine), picture)


def _title(engine: Engine) -> str:
    return f"{engine.model_name}, {engine.weight_dtype} weights, {engine.description}"


def _print_bench(console: Console, result: Bench, engine: Engine) -> None:
    from rich.table import Table

    table = Table(title=_title(engine))
    names = ("phase", "prompt", "gen", "batch", "tok/s", "spread", "ms/token", "GB/s", "limit")
    for name in (*names, "by"):
        table.add_column(name, justify="left" if name in ("phase", "by") else "right")
    for row, spread, bound in zip(result.rows, result.spreads, result.bounds, strict=True):
        table.add_row(
            row.phase,
            str(row.prompt_tokens),
            str(row.gen_tokens),
            str(row.batch),
            f"{row.tokens_per_s:.1f}",
            "-" if spread is None else f"{100 * spread:.0f}%",
            f"{row.ms_per_token:.2f}",
            "-" if row.gbytes_per_s is None else f"{row.gbytes_per_s:.1f}",
            f"{row.percent_of_limit:.0f}%",
            bound,
        )
    console.print(table)
    machine = result.machine
    console.print(
        f"Medians; spread is (slowest - fastest) / median; limit is the share of what this machine "
        f"was measured to allow: by memory, {machine.read_bytes_per_s / 1e9:.1f} GB/s, or "
        f"multiply, {machine.flops_per_s / 1e9:.0f} GFLOPS of floats and "
        f"{machine.int8_ops_per_s / 1e9:.0f} GOPS of int8, whichever is less."
    )
    rows = zip(result.rows, result.bounds, strict=True)
    if any(bound == "memory" and row.percent_of_limit > 100 for row, bound in rows):
        console.print("Over 100% of memory: the model stays in caches, which are faster than it.")
    for run in result.whole_runs:
        console.print(
            f"whole run: {run.requests} requests of {run.prompt_tokens} in / {run.gen_tokens} out: "
            f"{run.tokens_per_s:.1f} tok/s"
        )
    shares = (
        f"{100 * part.share:.2f}% ({1e6 * part.seconds_per_step:.0f} us a step) at batch "
        f"{part.batch}"
        for part in result.scheduling
    )
    console.print(f"scheduling: {', '.join(shares)}")
    if (turn := result.second_turn) is None:
        console.print(f"second turn: not measured in a context of {engine.max_context} tokens")
    else:
        console.print(
            f"second turn: first token after {turn.second_seconds:.3f} s, {turn.percent:.1f}% of "
            f"the first turn's {turn.first_seconds:.3f} s with {turn.history_tokens} tokens"
        )
    if result.stolen_percent is not None:
        console.print(
            f"stolen: the host took {result.stolen_percent:.1f}% of the time of all processors away"
        )


@contextmanager
def _status(title: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that tells what runs, gone at the end; nothing without a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")
