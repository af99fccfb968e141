"""Time of all processors, as Linux counts it in the first line of /proc/stat (proc_stat(5)).

On a virtual machine some of it is stolen: a processor had work, and the host ran something else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_FIELDS = 8  # user nice system idle iowait irq softirq steal; guests, which follow, are in user


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Seconds since the machine started, of all processors together."""

    total_s: float
    idle_s: float
    stolen_s: float

    @property
    def busy_s(self) -> float:
        """All but idle ones, stolen ones too."""
        return self.total_s - self.idle_s

    def stolen_percent_since(self, before: ProcessorTime) -> float | None:
        """Of the time since `before`; None where none was counted."""
        total_s = self.total_s - before.total_s
        if total_s <= 0:
            return None
        return 100 * max(0.0, self.stolen_s - before.stolen_s) / total_s


def read_processor_time(stat: Path = Path("/proc/stat")) -> ProcessorTime | None:
    """The time so far; None where there is no such file, or it does not tell what is stolen."""
    try:
        name, *words = stat.read_text("ascii").partition("\n")[0].split()
        ticks = [int(word) for word in words[:_FIELDS]]
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(ticks) < _FIELDS:
        return None
    per_s = os.sysconf("SC_CLK_TCK")
    return ProcessorTime(sum(ticks) / per_s, (ticks[3] + ticks[4]) / per_s, ticks[7] / per_s)
