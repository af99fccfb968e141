"""Progress bars: on a terminal's stderr only, without colour when asked, nothing otherwise."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mmengine.progress import bar, watch_folder

SCRIPT = """
import sys
from mmengine.progress import bar
with bar("copying", 2_000_000_000, {"None": None, "False": False}[sys.argv[1]]) as advance:
    for _ in range(4):
        advance(500_000_000)
print("done")
"""


def on_terminal(argument: str, **environment: str) -> str:
    """What the script writes to a terminal that is its stderr."""
    ours, theirs = pty.openpty()
    paths = os.pathsep.join(path for path in sys.path if path)
    cleared = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument],
        env={**cleared, "PYTHONPATH": paths, "TERM": "xterm-256color", **environment},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        text=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # the last writer is gone
        pass
    finally:
        os.close(ours)
    assert done.stdout == "done\n"
    return shown.decode()


def test_bar_on_a_terminal() -> None:
    shown = on_terminal("None")
    assert "copying" in shown
    assert "2.0/2.0 GB" in shown
    assert "B/s" in shown
    assert "\x1b[3" in shown


def test_no_colour() -> None:
    shown = on_terminal("None", NO_COLOR="1")
    assert "copying" in shown
    assert "\x1b[3" not in shown


def test_not_wanted() -> None:
    assert on_terminal("False") == ""


def test_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("copying", 10, True) as advance:
        advance(10)
    assert capfd.readouterr() == ("", "")


def test_watched_folder(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(7))
    seen: list[int] = []
    with watch_folder(tmp_path, seen.append, 100):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "new").write_bytes(bytes(150))
    assert sum(seen) == 100
