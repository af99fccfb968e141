"""How the verbs of mm-run open their model: the Engine's options from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmengine.cli_options import engine_options
from mmengine.cli_output import note
from mmengine.errors import UsageError
from mmengine.messages import quoted

if TYPE_CHECKING:
    from mmengine.engine import Engine

EngineFactory = Callable[..., "Engine"]
OpenEngine = Callable[..., "Engine"]


def check_effort(engine: Engine, effort: str, where: str) -> None:
    """UsageError naming `where` unless the model knows this reasoning effort."""
    efforts = () if engine.chat_format is None else engine.chat_format.efforts
    if not efforts:
        raise UsageError(f"{where}: {engine.model_name} has no reasoning effort", where=where)
    if effort not in efforts:
        raise UsageError(
            f"{where}: expected {' or '.join(efforts)}, got {quoted(effort)}", where=where
        )


def opener(factory: EngineFactory | None) -> OpenEngine:
    """open(args, **extra): an engine, its warnings told; `factory` replaces mmengine.Engine."""

    def open_engine(args: argparse.Namespace, **extra: Any) -> Engine:
        create = factory
        if create is None:
            from mmengine.engine import Engine

            create = Engine
        engine = create(args.model, **{**extra, **engine_options(args)})
        for warning in engine.warnings:
            note(f"mm-run: warning: {warning}", style="yellow")
        return engine

    return open_engine
