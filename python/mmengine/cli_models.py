"""mm-run convert, fetch and inspect: the verbs that handle checkpoints without running them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.cli_output import Output, note

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def _warnings() -> Iterator[None]:
    """What the library logs in the meantime goes to stderr."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(f"mm-run: warning: {record.getMessage()}", style="yellow")

    log, handler = logging.getLogger("mmengine"), Notes(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def run_convert(args: argparse.Namespace, output: Output) -> None:
    """Converts and prints the directory made."""
    from mmengine.convert import convert

    source = Path(args.source)
    if args.destination is None:
        # resolve(): "." and ".." have no name of their own.
        whole = source.resolve()
        stem = whole.stem if whole.suffix == ".gguf" else whole.name
        destination = whole.parent / f"{stem}-{args.target_dtype}"
    else:
        destination = Path(args.destination)
    with _warnings():
        made = convert(source, destination, args.target_dtype, progress=None, force=args.force)
    output.write(f"{made}\n")


def run_fetch(args: argparse.Namespace, output: Output) -> None:
    """Fetches and prints where the model lies."""
    from mmengine.cache import fetch

    output.write(f"{fetch(args.model, progress=None)}\n")


def run_inspect(args: argparse.Namespace, output: Output) -> None:
    """Prints what a checkpoint holds; a model named by its name is fetched first."""
    from mmengine.cache import resolve_model
    from mmengine.inspect_model import inspect_model

    path = Path(resolve_model(args.model, progress=None))
    report = inspect_model(path)
    if args.json:
        output.write_json(report)
    else:
        output.draw(lambda console: _print_report(console, report))
    for warning in report["warnings"]:
        note(f"mm-run: warning: {warning}", style="yellow")


_YARN = ("rope_attention_factor", "rope_beta_fast", "rope_beta_slow", "rope_truncate")
_LLAMA3 = ("rope_low_freq_factor", "rope_high_freq_factor")
_NOT_OF = {  # fields of config that say nothing about a rope_type
    "default": {"rope_factor", "rope_original_context", *_YARN, *_LLAMA3},
    "yarn": {*_LLAMA3},
    "llama3": {*_YARN},
}


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the scaling of the positions that there is not."""
    hidden = _NOT_OF.get(config.get("rope_type", ""), set())
    if config.get("rope_scaling_beta") == 0:
        hidden = hidden | {"rope_scaling_beta", "rope_scaling_context"}
    return {name: value for name, value in config.items() if name not in hidden}


def _print_report(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = Table(title="model", show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name in ("path", "kind", "layout", "tokenizer", "tokenizer_version", "quantization"):
        facts.add_row(name, Text(str(report[name] or "none")))
    facts.add_row("size", f"{report['bytes'] / 1e9:.3f} GB")
    facts.add_row("parameters", f"{report['parameters']:,}")
    for dtype, elements in report["dtypes"].items():
        facts.add_row(f"  {dtype}", f"{elements:,}")
    for name, value in sorted(_told(report["config"]).items()):
        facts.add_row(Text(str(name)), Text(str(value)))
    if report["vision"] is not None:
        facts.add_row("vision", "a tower and its projector, which this version does not compute")
        for name, value in report["vision"].items():
            facts.add_row(f"  {name}", f"{value:,}" if value >= 100_000 else str(value))
    console.print(facts)
    tensors = Table(title=f"{len(report['tensors'])} tensors")
    tensors.add_column("name", overflow="fold")
    tensors.add_column("dtype")
    tensors.add_column("shape", justify="right")
    for tensor in report["tensors"]:
        shape = " x ".join(str(size) for size in tensor["shape"])
        tensors.add_row(Text(tensor["name"]), tensor["dtype"], shape)
    console.print(tensors)
