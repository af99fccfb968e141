"""Progress bars of fetch, convert and load: bytes, GB/s and time left, on stderr.

A bar is drawn only when the caller wants one and stderr is a terminal; without one the same code
runs and nothing is printed. rich is imported only when a bar is drawn; it honours NO_COLOR.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Advance = Callable[[int], None]

_WATCH_SECONDS = 0.2


def wanted(progress: bool | None) -> bool:
    """Whether to draw: False is never, None and True are "when stderr is a terminal"."""
    return progress is not False and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def bar(title: str, total_bytes: int | None, progress: bool | None = None) -> Iterator[Advance]:
    """Shows `title` with a bar over `total_bytes` (None: unknown) while the block runs.

    Yields advance(bytes), which any one thread may call with the bytes done since the last call.
    """
    if not wanted(progress):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """Bytes per second, in GB/s, or MB/s below 0.1 GB/s."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            if speed is None:
                return Text("-- GB/s")
            if speed < 1e8:
                return Text(f"{speed / 1e6:.1f} MB/s")
            return Text(f"{speed / 1e9:.2f} GB/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total_bytes)
        yield lambda count: display.advance(task, count)


@contextmanager
def watch_folder(folder: Path, advance: Advance, most_bytes: int | None) -> Iterator[None]:
    """While the block runs, reports the growth of all files under `folder` to `advance`.

    For downloads that other programs make and that tell nothing about their progress; with their
    temporary copies they may write more than `most_bytes`, which is not reported.
    """
    done = threading.Event()
    start = _folder_bytes(folder)

    def poll() -> None:
        seen, ended = start, False
        while not ended:
            ended = done.wait(_WATCH_SECONDS)
            now = _folder_bytes(folder)
            if most_bytes is not None:
                now = min(now, start + most_bytes)
            if now > seen:
                advance(now - seen)
                seen = now

    thread = threading.Thread(target=poll, name="mmengine-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # the file went away between the listing and the look
                continue
    return total


def stepwise(advance: Callable[[int], None], total: int) -> Callable[[float], None]:
    """A function of the fraction done, for callers that count it so, around `advance` of a bar."""
    done = 0

    def report(fraction: float) -> None:
        nonlocal done
        now = int(fraction * total)
        advance(now - done)
        done = now

    return report
