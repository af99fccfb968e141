"""Names of models that have no files: random weights of real shapes, made by the core at load."""

from __future__ import annotations

import os

from mmengine.errors import UsageError
from mmengine.messages import quoted

PREFIX = "synthetic:"


def is_synthetic(model: str | os.PathLike[str]) -> bool:
    """Whether `model`, a name or what resolve_model made of it, stands for such a model."""
    return os.fspath(model).startswith(PREFIX)


def refuse_synthetic(model: str | os.PathLike[str], purpose: str) -> None:
    """UsageError if `model` is one: there are no files for the `purpose`, such as "to convert"."""
    if is_synthetic(model):
        raise UsageError(
            f"model {quoted(os.fspath(model))}: is made up at load, there are no files {purpose}",
            where="model",
        )


def refuse_text(model: str | os.PathLike[str], where: str) -> None:
    """UsageError if `model` is one: no tokenizer reads the text that `where` gives or would give.

    For those who can tell before the weights are made.
    """
    if is_synthetic(model):
        raise UsageError(
            f"{where}: model {quoted(os.fspath(model))} has no tokenizer, expected token ids, got "
            "text; give lists of ids with mm-run generate --prompts FILE.jsonl",
            where=where,
        )
