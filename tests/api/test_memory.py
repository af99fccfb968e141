"""Loading holds the packed weights and not the file a second time."""

from __future__ import annotations

from pathlib import Path

import bench_load
import pytest


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_peak_is_the_files_and_a_little(tmp_path: Path, dtype: str) -> None:
    size = bench_load.make_checkpoint(tmp_path, 800_000_000, dtype)
    assert size > 700_000_000
    peak = bench_load.load(tmp_path)["peak_bytes"]
    assert size < peak <= size + 300_000_000
