"""A layer on the emulated device, in every order of threads and on devices of several sizes: the
same bits. And which devices it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmengine import _testing_cuda_emulator as native
from mmengine import errors

SAMPLING = [
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "logprobs": 4, "ban": [1, 2]},
    {"bias": [(3, 2.5), (3, 0.1)], "count": [(3, 2), (4, 0)], "repetition_penalty": 1.2},
]
ORDERS = [("ascending", 0, 6), ("descending", 0, 6), ("shuffled", 1, 6), ("warps", 3, 3)]


@pytest.fixture(autouse=True)
def first_order() -> Iterator[None]:
    yield
    native.set_order("ascending")


def layer(quant: str, kv_dtype: str) -> list[Any]:
    """All that two steps of one layer write: prompts of two sequences, then a row of each."""
    rng = np.random.default_rng(7)
    hidden, size, heads, kv_heads, head_dim, vocab = 70, 50, 4, 2, 26, 61
    backend = native.Backend("cuda", 1)

    def pack(role: str, *rows: int, k: int = hidden, head_dim: int = 0) -> Any:
        parts = [(rng.standard_normal((n, k)).astype(np.float32), "f32", None, False) for n in rows]
        if quant == "none":
            return backend.pack(parts, role, "bf16", head_dim=head_dim)
        codes = [(w.view(np.uint8)[:, ::4] & 0x7B, "e4m3", np.ones(1, np.float32), False)
                 for w, *_ in parts]  # fmt: skip
        scales = [0.02] * len(parts) if quant == "fixed" else []
        return backend.pack(codes, role, "fp8", quant=quant, input_scales=scales, head_dim=head_dim)

    width, kv_width = heads * head_dim, kv_heads * head_dim
    embed = pack("embed", vocab) if quant == "none" else None
    qkv = pack("qkv_proj", width, kv_width, kv_width, head_dim=head_dim)
    o_proj = pack("o_proj", hidden, k=width)
    gate_up, down = pack("gate_up_proj", size, size), pack("down_proj", hidden, k=size)
    head = pack("lm_head", vocab)
    slots, pool = backend.slots(3, 5), backend.kv(9, kv_heads, head_dim, kv_dtype)
    gain = rng.standard_normal(hidden).astype(np.float32)
    cos, sin = rng.standard_normal((2, 400, head_dim // 2)).astype(np.float32)
    seen: list[Any] = []

    def step(ids: list[int], cu: list[int], start: list[int], table: list[int]) -> None:
        ends = [c - 1 for c in cu[1:]]
        s = backend.begin(slots, ids, cu, [2, 0], start, [0, 1, 2], ends, table)
        n = len(ids)
        x, q = np.zeros((n, hidden), np.float32), np.zeros((n, width), np.float32)
        attended, gated = np.zeros((n, width), np.float32), np.zeros((n, size), np.float32)
        logits, own = np.zeros((2, vocab), np.float32), np.ones(n, np.float32)
        x[:] = rng.standard_normal((n, hidden))
        if embed is not None:
            backend.embed(s, embed, x)
        backend.norm_qkv_rope_store(s, x, gain, 1e-5, qkv, cos, sin, pool, q)
        backend.attention(s, q, pool, 0.2, o_proj, attended, out_scale=own)
        backend.linear_residual(s, attended, o_proj, x, x_scale=own)
        seen.append(x.copy())
        backend.norm_gate_up_silu(s, x, gain, 1e-5, gate_up, down, gated, out_scale=own)
        backend.linear_residual(s, gated, down, x, x_scale=own)
        backend.logits(s, x, gain, 1e-5, head, logits)
        sampled = backend.sample(s, logits, SAMPLING)
        backend.accept(s, sampled[0].tolist(), slots)
        seen.extend([*sampled, s.ids, s.positions, s.sequence, q, attended, gated, own, x, logits])

    step(rng.integers(0, vocab, 301).tolist(), [0, 290, 301], [0, 0],
         [2, 0, 4, 2, 1, 1, 2, 2, 6, 2, 3, 2, 2, 4, 8, 0, 0, 3, 0, 0, 5])  # fmt: skip
    step([-1, -1], [0, 1, 2], [-1, -1], [])
    backend.copy_blocks([4, 7], pool)
    return [*seen, backend.read_blocks(pool), pool.saturated, slots.length, slots.pending]


@pytest.mark.parametrize(
    ("quant", "kv_dtype"), [("none", "bf16"), ("fixed", "e4m3"), ("per_token", "f32")]
)
def test_a_layer_has_the_same_bits_in_every_order(quant: str, kv_dtype: str) -> None:
    results = []
    for order in ORDERS:
        native.set_order(*order)
        results.append([np.asarray(a).tobytes() for a in layer(quant, kv_dtype)])
    for other in results[1:]:
        assert [a == b for a, b in zip(results[0], other, strict=True)] == [True] * len(other)


H100 = {"driver": 13000, "runtime": 13000, "count": 1, "index": 0, "major": 9, "minor": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver": 0}, "expected a driver for NVIDIA GPUs, got none; install one for CUDA 13.0"),
        ({"driver": 12080}, "expected a driver for CUDA 13.0 or newer, got one for 12.8"),
        ({"count": 0}, "expected an NVIDIA GPU, got none"),
        ({"index": 1}, "expected cuda:0 to cuda:0, got cuda:1"),
        ({"major": 8}, r"expected a Hopper GPU .* 9\.0, got Some GPU of 8\.0"),
        ({"major": 10, "minor": 3}, r"expected a Hopper GPU .* 9\.0, got Some GPU of 10\.3"),
    ],
)
def test_devices_that_will_not_do(change: dict[str, int], message: str) -> None:
    native.check_device(*H100.values())
    native.check_device(*(H100 | {"driver": 13010, "count": 8, "index": 7}).values())
    with pytest.raises(errors.UnsupportedModelError, match="device: " + message):
        native.check_device(*(H100 | change).values())
