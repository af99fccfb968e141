"""The roofline picture of a bench, by matplotlib, the extra `plot`.

Across: operations for each byte that must be moved; up: operations per second; both in powers of
ten. The roofs are the machine's measured rates, each point is a row of the bench.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_output import output_errors
from mmengine.errors import OutputError, UsageError
from mmengine.messages import quoted

if TYPE_CHECKING:
    from mmengine.bench_result import Bench

_COLOURS = {"prefill": "tab:blue", "decode": "tab:orange"}
_ROOF = "0.35"  # grey


def check_plot(name: str) -> Path:
    """The place of a picture, before anything is measured.

    Raises UsageError for a name that does not end in .png and where matplotlib is missing,
    OutputError for a place that cannot be written.
    """
    path = Path(name)
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a name that ends in .png, got {quoted(name)}")
    _figure_class()
    place = path if path.exists() else path.parent
    with output_errors(name):
        place.stat()
    if path.is_dir() or not os.access(place, os.W_OK):
        raise OutputError(
            f"{name}: cannot be written; choose a place that can be written", where=name
        )
    return path


def plot(result: Bench, title: str, path: Path) -> None:
    """Writes the picture. Raises OutputError when it cannot be written."""
    figure = _figure_class()(figsize=(9, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    intensities = [work.operations / work.bytes for work in result.works]
    _draw_roofs(axes, result, min(intensities), max(intensities))
    seen: set[str] = set()
    for row, work, intensity in zip(result.rows, result.works, intensities, strict=True):
        rate = work.operations / result.seconds(row)
        label = row.phase if row.phase not in seen else None
        seen.add(row.phase)
        axes.plot(intensity, rate, "o", color=_COLOURS[row.phase], label=label)
        axes.annotate(
            f"{row.phase} {row.prompt_tokens}, batch {row.batch}: {row.percent_of_limit:.0f} %",
            (intensity, rate), textcoords="offset points", xytext=(6, -12), fontsize=8,
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", title=title,
        xlabel="operations per byte that must be moved", ylabel="operations per second",
    )  # fmt: skip
    axes.grid(True, which="major", color="0.9")
    axes.legend(loc="lower right")
    with output_errors(str(path)):
        figure.savefig(path, format="png")


def _draw_roofs(axes: Any, result: Bench, lowest: float, highest: float) -> None:
    """The read bandwidth rises to the higher peak; the peaks are level from where it meets them."""
    machine = result.machine
    peaks = {
        f"floats, {machine.flops_per_s / 1e9:.0f} GFLOPS": machine.flops_per_s,
        f"int8, {machine.int8_ops_per_s / 1e9:.0f} GOPS": machine.int8_ops_per_s,
    }
    memory = machine.read_bytes_per_s
    left, top = lowest / 3, max(peaks.values())
    right = max(highest * 8, 8 * top / memory)
    axes.plot([left, top / memory], [left * memory, top], "-", color=_ROOF)
    axes.annotate(
        f"memory, {memory / 1e9:.1f} GB/s", (left, left * memory), textcoords="offset points",
        xytext=(10, -2), fontsize=8, color=_ROOF,
    )  # fmt: skip
    for name, peak in peaks.items():
        axes.plot([peak / memory, right], [peak, peak], "-", color=_ROOF)
        axes.annotate(
            name, (right, peak), textcoords="offset points", xytext=(0, 4), fontsize=8,
            color=_ROOF, ha="right",
        )  # fmt: skip


def _figure_class() -> Any:
    """matplotlib's Figure, which needs no display. Raises UsageError where it is not."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "--plot: needs the package matplotlib, which is not installed; "
            "pip install 'mmengine[plot]'",
            where="--plot",
            code="unsupported",
        ) from error
    return Figure
