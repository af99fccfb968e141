"""An Engine whose steps are watched, and can be held back: for tests of what happens when.

All of it is the real thing; a thin core counts the steps and keeps the stats after each.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mmengine
from mmengine import engine as engine_module


class SteppedCore:
    """In the place of _core.Engine. No step is made while a test holds `turn`."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.turn = threading.Lock()
        self.stats_seen: list[Any] = []  # after each step
        self.ended: dict[int, int] = {}  # id of a request -> the step in which it ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def step(self) -> Any:
        with self.turn:
            more, outputs = self.real.step()
            self.stats_seen.append(self.real.stats())
            for output in outputs:
                if output.finish.name != "running":
                    self.ended[output.id] = len(self.stats_seen)
            return more, outputs

    @property
    def most_running(self) -> int:
        """The most requests that ran at once."""
        return max((stats.requests_running for stats in self.stats_seen), default=0)


def stepped_engine(directory: str | Path, **options: Any) -> tuple[mmengine.Engine, SteppedCore]:
    """An engine on `directory`, and its core."""
    cores: list[SteppedCore] = []
    load = engine_module.load_core

    def watched(*args: Any) -> Any:
        cores.append(SteppedCore(load(*args)))
        return cores[0]

    with patch.object(engine_module, "load_core", watched):
        made = mmengine.Engine(directory, **{"device": "cpu", **options})
    return made, cores[0]
