"""begin, accept, and the checks of the public ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import BACKENDS, Guarded, Tables, native, pack, rows_step

from mmengine import errors


@pytest.mark.parametrize("name", BACKENDS)
def test_begin_and_accept(name: str) -> None:
    backend = native.Backend(name, 1)
    slots = backend.slots(3, 4)
    # Slot 2 starts with three tokens, two of them with logits; slot 0 with one.
    step = backend.begin(
        slots,
        [11, 12, 13, 21],
        [0, 3, 4],
        [2, 0],
        [0, 0],
        [0, 2, 2],
        [1, 2],
        [2, 0, 5, 0, 0, 6, 2, 1, 7],
    )
    assert step.ids.tolist() == [11, 12, 13, 21]
    assert step.positions.tolist() == [0, 1, 2, 0]
    assert step.sequence.tolist() == [0, 0, 0, 1]
    assert step.slot.tolist() == [2, 0]
    assert step.cu_rows.tolist() == [0, 3, 4]
    assert step.cu_logits.tolist() == [0, 2, 2]
    assert step.logits_row.tolist() == [1, 2]
    assert slots.block_table.reshape(3, 4).tolist() == [[6, 0, 0, 0], [0] * 4, [5, 7, 0, 0]]
    assert slots.length.tolist() == [0, 0, 0]
    backend.accept(step, [98, 99], slots)
    assert slots.length.tolist() == [1, 0, 3]
    assert slots.pending.tolist() == [-1, -1, 99]  # slot 0 had no logits row
    # The device knows where slot 2 stands and what it is fed.
    step = backend.begin(slots, [-1], [0, 1], [2], [-1], [0, 1], [0], [])
    assert step.ids.tolist() == [99]
    assert step.positions.tolist() == [3]
    backend.accept(step, [100], slots)
    assert slots.length.tolist() == [1, 0, 4]
    assert slots.pending.tolist() == [-1, -1, 100]


BAD_STEPS: list[tuple[str, dict[str, Any]]] = [
    ("cu_rows: expected 0 to 2, got 0 to 1", {"cu_rows": [0, 1]}),
    (r"slot\[0\]: expected 0 to 1, got 2", {"slot": [2]}),
    (r"logits_row\[0\]: expected a row of sequence 0, got 2", {"logits_row": [2]}),
    ("expected positions 0 to [0-9]+, got [0-9]+ to", {"start": [10_000]}),
    (r"table_update\[0\]", {"table_update": [0, 4, 1]}),
    (r"table_update\[0\]", {"table_update": [-1, 0, 1]}),
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("message", "change"), BAD_STEPS)
def test_begin_refuses(name: str, message: str, change: dict[str, Any]) -> None:
    backend = native.Backend(name, 1)
    slots = backend.slots(2, 4)
    args = {
        "row_id": [1, 2],
        "cu_rows": [0, 2],
        "slot": [0],
        "start": [0],
        "cu_logits": [0, 1],
        "logits_row": [1],
        "table_update": [0, 0, 1],
    } | change
    with pytest.raises(errors.EngineDeadError, match="begin: .*" + message):
        backend.begin(slots, *args.values())
    assert slots.block_table.tolist() == [0] * 8 or "start" in change


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "e4m3"])
def test_blocks_are_copied_whole_and_in_order(name: str, kv_dtype: str) -> None:
    backend = native.Backend(name, 1)
    pool = backend.kv(7, 3, 10, kv_dtype)
    before = np.random.default_rng(0).integers(0, 256, backend.read_blocks(pool).shape, np.uint8)
    backend.write_blocks(pool, before)
    backend.copy_blocks([1, 5, 2, 6, 6, 3], pool)
    assert np.array_equal(backend.read_blocks(pool), before[[0, 1, 2, 2, 4, 1, 2]])
    backend.copy_blocks([], pool)
    for wrong, got in (([4, 4], "4 and 4"), ([1, 0], "1 and 0"), ([-1, 2], "-1 and 2")):
        with pytest.raises(
            errors.EngineDeadError, match=rf"copy_blocks: pairs\[0\]: expected two .* got {got}"
        ):
            backend.copy_blocks(wrong, pool)


@pytest.mark.parametrize("name", BACKENDS)
def test_ops_check_shapes_once(name: str) -> None:
    backend = native.Backend(name, 1)
    weight = pack(backend, [np.ones((4, 6))], "o_proj", "bf16")
    step = rows_step(backend, 3)
    cases = [
        (
            np.zeros((3, 5), np.float32),
            np.zeros((3, 4), np.float32),
            r"linear_residual: x: expected \[3, 6\], got \[3, 5\]",
        ),
        (
            np.zeros((2, 6), np.float32),
            np.zeros((3, 4), np.float32),
            r"linear_residual: x: expected \[3, 6\], got \[2, 6\]",
        ),
        (
            np.zeros((3, 6), np.float32),
            np.zeros((3, 6), np.float32),
            r"linear_residual: residual: expected \[3, 4\], got \[3, 6\]",
        ),
    ]
    for x, residual, message in cases:
        with pytest.raises(errors.EngineDeadError, match=message):
            backend.linear_residual(step, x, weight, residual)
    head = pack(backend, [np.ones((4, 6))], "lm_head", "bf16")
    with pytest.raises(errors.EngineDeadError, match="linear_residual: weight: expected role"):
        backend.linear_residual(step, np.zeros((3, 6), np.float32), head, Guarded(3, 4, 0.0).view)


@pytest.mark.parametrize("name", BACKENDS)
def test_planned_scratch_is_enough_and_less_is_refused(name: str) -> None:
    backend = native.Backend(name, 2)
    rng = np.random.default_rng(0)
    hidden, size, heads, kv_heads, head_dim, rows, context = 20, 30, 4, 2, 8, 9, 700
    backend.scratch(
        backend.scratch_bytes(hidden, size, heads, kv_heads, head_dim, rows, 4, context)
    )
    gain = np.ones(hidden, np.float32)
    cos, sin = np.ones((2, context, head_dim // 2), np.float32)
    qkv = pack(
        backend,
        list(np.split(rng.standard_normal((64, hidden)), [32, 48])),
        "qkv_proj",
        "bf16",
        head_dim=head_dim,
    )
    gate_up = pack(backend, list(rng.standard_normal((2, size, hidden))), "gate_up_proj", "bf16")
    o_proj = pack(backend, [rng.standard_normal((hidden, 32))], "o_proj", "bf16")
    down = pack(backend, [rng.standard_normal((hidden, size))], "down_proj", "bf16")
    head = pack(backend, [rng.standard_normal((50, hidden))], "lm_head", "bf16")
    tables = Tables(backend, rows, context // backend.block_tokens + 1)
    pool = tables.pool(kv_heads, head_dim, "bf16")

    def layer(spans: list[tuple[int, int, int]]) -> None:
        n = sum(r for _, _, r in spans)
        step = tables.step(spans, logits=[1] * min(len(spans), 4) + [0] * max(len(spans) - 4, 0))
        x = rng.standard_normal((n, hidden)).astype(np.float32)
        q, mlp = np.zeros((2, n, 32), np.float32), np.zeros((n, size), np.float32)
        backend.norm_qkv_rope_store(step, x, gain, 1e-5, qkv, cos, sin, pool, q[0])
        backend.attention(step, q[0], pool, 1.0, o_proj, q[1])
        backend.linear_residual(step, q[1], o_proj, x)
        backend.norm_gate_up_silu(step, x, gain, 1e-5, gate_up, down, mlp)
        backend.linear_residual(step, mlp, down, x)
        logits = np.zeros((min(len(spans), 4), 50), np.float32)
        backend.logits(step, x, gain, 1e-5, head, logits)
        assert np.isfinite(logits).all()

    for start in range(0, context - rows, rows):
        layer([(0, start, rows)])
    layer([(0, context - 1 - rows, 1)])
    layer([(0, context - rows, 1)] + [(s, 0, 1) for s in range(1, rows)])
    backend.scratch(64)
    with pytest.raises(errors.EngineDeadError, match="scratch: expected at least"):
        layer([(1, 1, 2)])


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(errors.UsageError, match=r"instruction_set: this machine runs .*got 'sse9'"):
        native.Backend("cpu:sse9")
    with pytest.raises(errors.UsageError, match="threads: expected 0"):
        native.Backend("cpu", -1)


@pytest.mark.parametrize("name", BACKENDS)
def test_machines_are_measured(name: str) -> None:
    backend = native.Backend(name, 2)
    assert 0 < backend.measure_read_bandwidth() < 1e15
    assert 0 < backend.measure_multiply_peak() < 1e18
    assert 0 < backend.measure_int8_peak() < 1e18


def test_describe() -> None:
    assert native.Backend("cpu:scalar", 1).describe() == "cpu, scalar, 1 thread"
    assert native.Backend("cpu", 3).describe().endswith("3 threads")
    assert native.Backend("ref").describe() == "ref, 1 thread"
