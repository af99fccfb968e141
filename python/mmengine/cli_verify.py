"""mm-run verify: checks a user's copy of a model, and says what each check found."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.cli_output import Output
from mmengine.errors import ModelFormatError

if TYPE_CHECKING:
    from rich.console import Console

    from mmengine.verify import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "not run": "dim"}


def run_verify(args: argparse.Namespace, output: Output) -> None:
    """Prints the checks; ModelFormatError (exit code 65) when one failed."""
    from mmengine.cache import resolve_model
    from mmengine.verify import verify_model

    path = Path(resolve_model(args.model, progress=None))
    checks = verify_model(path)
    failed = [check.name for check in checks if check.status == "fail"]
    if args.json:
        output.write_json({"path": str(path), "ok": not failed, "checks": checks})
    else:
        output.draw(lambda console: _print_checks(console, path, checks))
    if failed:
        raise ModelFormatError(
            f"{path}: failed: {', '.join(failed)}", file=str(path), code="verify"
        )


def _print_checks(console: Console, path: Path, checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(path)))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        word = "FAIL" if check.status == "fail" else check.status
        table.add_row(check.name, Text(word, style=_STYLES[check.status]), Text(check.detail))
    console.print(table)
