"""mm-run plan: the memory plan of a model, from its config alone."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from mmengine.cli_output import Output, note
from mmengine.settings import ENGINE_SETTINGS, Setting
from mmengine.sizes import parse_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from mmengine.model_plan import ModelPlan

_CHANGED = {
    "device": {"help": "auto, cpu or cuda; auto is cuda where a memory or devices are given"},
}
_KEPT = ("max_context", "max_batch", "weight_dtype", "kv_dtype", "threads", "prefill_chunk")
_TAKEN = (*_KEPT, *_CHANGED)

# The Engine's options that change a plan, with what only a plan knows: cuda.
PLAN_SETTINGS = tuple(
    replace(setting, **_CHANGED.get(setting.name, {}))  # type: ignore[arg-type]
    for setting in ENGINE_SETTINGS
    if setting.name in _TAKEN
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only this verb has."""
    parser.add_argument(
        "--device-memory", metavar="SIZE", type=lambda text: parse_bytes("--device-memory", text),
        help="memory of one device, such as 80GiB, 80GB or bytes; no GPU is needed "
        "(default on cpu: what this machine has free)",
    )  # fmt: skip
    devices = Setting("devices", int, "", minimum=1)
    parser.add_argument(
        "--devices", type=lambda text: devices.parse(text, "--devices"), metavar="N",
        help="GPUs that share the model (default 1)",
    )  # fmt: skip
    parser.add_argument("--draft", metavar="DIR", help="directory of an EAGLE draft head")
    parser.add_argument("--text-only", action="store_true", help="without the vision tower")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_plan(args: argparse.Namespace, output: Output) -> None:
    """Prints the plan. That a model does not fit is an answer: the exit code is 0."""
    from mmengine.model_plan import plan

    options = {name: getattr(args, name) for name in _TAKEN if getattr(args, name) is not None}
    made = plan(
        args.model,
        **options,
        draft=args.draft,
        text_only=args.text_only,
        device_memory=args.device_memory,
        devices=args.devices,
    )
    if args.json:
        output.write_json(made)
    else:
        output.draw(lambda console: _print_plan(console, made))
    for warning in made.warnings:
        note(f"mm-run: warning: {warning}", style="yellow")


def _print_plan(console: Console, made: ModelPlan) -> None:
    _print_components(console, made)
    _print_device(console, made)
    if made.device_counts:
        _print_counts(console, made)
    console.print(_summary(made), soft_wrap=True, markup=False)


def _print_components(console: Console, made: ModelPlan) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(made.model))
    on_gpu = made.device == "cuda"
    for name in ("weights", "tensors", "parameters", "stored") + ("loaded",) * on_gpu:
        table.add_column(name, justify="left" if name == "weights" else "right")
    for part in made.components:
        cells = [part["name"], f"{part['tensors']:,}", f"{part['parameters']:,}"]
        cells += [_gb(part[name]) for name in ("bytes", "resident_bytes")[: 1 + on_gpu]]
        table.add_row(*cells)
    table.add_section()
    total = ["total", f"{made.tensors:,}", f"{made.parameters:,}", _gb(made.weights_bytes)]
    table.add_row(*total, *[_gb(made.resident_bytes)] * on_gpu)
    console.print(table)


def _print_device(console: Console, made: ModelPlan) -> None:
    from rich.table import Table

    table = Table(title=f"memory of {'each device' if made.devices > 1 else 'the device'}")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    kept = f"weights, {made.weight_dtype}" if made.weight_dtype != "auto" else "weights, as stored"
    rows = [(kept, made.weights_bytes_per_device), ("draft head", made.draft_bytes)]
    rows.append(("workspace", made.workspace_bytes))
    rows.append(("KV cache", made.kv_bytes or 0))
    used = sum(count for _, count in rows)
    for name, count in rows:
        if count:
            table.add_row(name, _gib(count))
    if made.device_memory is not None:
        rest = made.device_memory - used
        if abs(rest) >= 0.005 * (1 << 30):
            table.add_row("free" if rest > 0 else "missing", _gib(abs(rest)))
        table.add_section()
        table.add_row("there", _gib(made.device_memory))
    console.print(table)


def _print_counts(console: Console, made: ModelPlan) -> None:
    from rich.table import Table

    table = Table(title="tokens of KV cache that fit, by number of devices")
    table.add_column("devices", justify="right")
    table.add_column("weights each, GiB", justify="right")
    for dtype in ("fp8", "bf16"):
        table.add_column(f"{dtype} KV", justify="right")
        table.add_column("sequences", justify="right")
    for row in made.device_counts:
        cells = [str(row["devices"]), _gib(row["weights_bytes_per_device"])]
        for dtype in ("fp8", "bf16"):
            cells += [f"{row['kv_tokens'][dtype]:,}", str(row["sequences"][dtype])]
        table.add_row(*cells)
    console.print(table)


def _summary(made: ModelPlan) -> str:
    kv = ", ".join(f"{count:,} {name}" for name, count in made.kv_bytes_per_token.items())
    lines = [f"KV cache per token: {kv} bytes; this plan uses {made.kv_dtype}."]
    if made.draft_kv_bytes_per_token:
        lines.append(f"The draft head adds {made.draft_kv_bytes_per_token:,} bytes per token.")
    if made.kv_tokens is None:
        needed = f"{made.needed_bytes / (1 << 30):.2f} GiB"
        lines.append(f"A context of {made.max_context:,} tokens needs {needed} on each device.")
    elif made.fits:
        lines.append(
            f"Longest context: {made.max_context:,} tokens; sequences of the whole context at "
            f"once: {made.sequences}."
        )
    elif made.max_context:
        lines.append(f"It does not fit; the longest context is {made.max_context:,} tokens.")
    else:
        lines.append("It does not fit: weights and workspace leave no room for a token.")
    if made.advice:
        lines.append(made.advice)
    return "\n".join(lines)


def _gb(count: int) -> str:
    return f"{count / 1e9:.3f} GB"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f}"
