"""Tiny checkpoints and prompts shared by the tests of the public interface.

The models have no tokenizer: prompts are lists of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from make_tiny_model import make_tiny_model

import mmengine


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tiny(**TinyModel options) -> the path of that checkpoint, written once a session."""
    written: dict[tuple[tuple[str, Any], ...], str] = {}

    def make(**options: Any) -> str:
        key = tuple(sorted(options.items()))
        if key not in written:
            directory = tmp_path_factory.mktemp("tiny")
            written[key] = str(make_tiny_model(directory, **options))
        return written[key]

    return make


@pytest.fixture(scope="module")
def engine(tiny: Callable[..., str]) -> Iterator[mmengine.Engine]:
    """A CPU engine over the default tiny model: vocabulary 97, context 256."""
    with mmengine.Engine(tiny(), device="cpu") as engine:
        yield engine


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Seven prompts of different lengths, around the sizes of a KV block and of a chunk."""
    lengths = (1, 5, 16, 33, 64, 100, 31)
    return [[(7 * n + 13 * i + i * i) % 97 for i in range(n)] for n in lengths]
