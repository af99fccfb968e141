"""The tiles of a product on cuda: what fits a multiprocessor, and the scratch memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmengine import _testing_cuda_gemm as native

PROCESSOR_BYTES = 228 * 1024  # shared memory of one multiprocessor of Hopper
RESERVED = 1024  # of it, per block


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("columns", [8, 16, 32, 64, 128])
def test_stages_fit_shared_memory(fmt: str, terms: int, columns: int) -> None:
    tile = native.gemm_tile(fmt, terms, columns)
    elements = {"fp8": 128, "bf16": 64}[fmt]
    assert tile["x_bytes"] == columns * terms * elements * 2
    assert tile["stage_bytes"] == 16384 + tile["x_bytes"]
    assert tile["stage_bytes"] % 1024 == 0  # every stage keeps the alignment of the swizzle
    assert tile["stages"] >= 2
    assert tile["shared_bytes"] == tile["stages"] * (tile["stage_bytes"] + 16) + 16
    blocks = tile["blocks_per_processor"]
    assert blocks * (tile["shared_bytes"] + RESERVED) <= PROCESSOR_BYTES
    assert blocks == (2 if columns <= 32 else 1)
    # 29 KB under way on each multiprocessor keep memory busy.
    assert blocks * tile["stages"] * 16384 >= 29e3


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_budgets_are_what_kernels_are_launched_with(fmt: str) -> None:
    source = Path(__file__).parents[2] / "csrc" / "kernels" / "cuda" / f"gemm_{fmt}.cu"
    line = r"budget: \w+<(?:(\d), )?(\d+)> \d+ registers (\d+) shared"
    budgets = re.findall(line, source.read_text(encoding="utf-8"))
    assert len(budgets) == {"fp8": 10, "bf16": 5}[fmt]
    for terms, columns, shared in budgets:
        tile = native.gemm_tile(fmt, int(terms or 2), int(columns))
        assert tile["shared_bytes"] == int(shared)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 8), (8, 8), (9, 16), (17, 32), (33, 64), (64, 64), (65, 128)]
)
def test_columns_are_the_fewest_that_hold_the_rows(rows: int, columns: int) -> None:
    plan = native.gemm_plan(native.Spec("o_proj", 300, 300, "fp8"), 1, rows, 132)
    assert plan["columns"] == columns
    assert plan["whole_tiles"] == (columns == 128)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("role", ["o_proj", "gate_up_proj"])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (576, 576), (1536, 5000), (12288, 28672)])
@pytest.mark.parametrize("most", [1, 8, 33, 64, 65, 2048])
def test_scratch_is_enough_for_all_products_on_all_devices(
    fmt: str, role: str, n: int, k: int, most: int
) -> None:
    spec = native.Spec(role, n, k, fmt)
    limit = native.gemm_plan(spec, 2, most, 1)["scratch_limit"]
    for rows in {r for r in (1, 7, 8, 9, 31, 33, 64, 65, 130, 1024, 2047, most) if r <= most}:
        for processors in (1, 2, 78, 114, 132, 144):
            for terms in (1, 2):
                plan = native.gemm_plan(spec, terms, rows, processors)
                assert plan["scratch_bytes"] <= limit
                assert 1 <= plan["blocks"] <= 2 * processors


@pytest.mark.parametrize("n_tiles", [1, 3, 96])
@pytest.mark.parametrize("column_blocks", [1, 2, 7, 8, 9, 16, 21])
def test_tiles_at_work_together_share_what_they_read(n_tiles: int, column_blocks: int) -> None:
    count = n_tiles * column_blocks
    places = [native.tile_place(i, n_tiles, column_blocks) for i in range(count)]
    assert sorted(places) == [(n, c) for n in range(n_tiles) for c in range(column_blocks)]
    group = places[: n_tiles * min(8, column_blocks)]
    for first in range(len(group) - 131):
        together = group[first : first + 132]
        assert len({c for _, c in together}) == min(8, column_blocks)
        assert len({n for n, _ in together}) <= 132 // min(8, column_blocks) + 2
