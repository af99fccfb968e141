"""Fixtures of the tests of conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small GGUF file in a folder of its own."""
    path = tmp_path / "in" / "model.gguf"
    path.parent.mkdir()
    tiny_model.write_gguf(path)
    return path
