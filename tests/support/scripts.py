"""Python programs that a test runs in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def run_script(script: str, *arguments: str) -> str:
    """Runs a Python program in a process of its own; its stdout. Fails with its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        # A new thread may open a new heap of the C library: that would look like a leak.
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
