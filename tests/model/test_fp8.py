"""FP8 linears whose inputs are quantised, static and dynamic, against numpy in float64.

A code is one of few values: unless an input lies nearer to a border between two codes than the
engine's rounding, both compute the same codes and differ by float32 rounding alone. Where a code
falls on the other side, that position and all after it differ, as everything they attend to moves
inputs across borders; so sequences are short, and a tie margin stands for what then remains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_tiny_model import TinyModel, make_tiny_model, random_ids, stored_tensors
from tiny.fp8 import WEIGHT_SCALE, to_e4m3, values_of

import mmengine
from mmengine import _testing_kernels as native
from support import numpy_llama
from support.compare import assert_close
from support.numpy_fp8 import Fp8Linear

# Two ids whose logits in the reference are nearer than this count as the same first place. A code
# on the other side of its border moves a logit by up to 0.6; quantising moves all by 0.2 to 1.
TIE_MARGIN = 0.02
# The largest difference in a row whose codes are all the same, and the least part of the rows that
# are such.
SAME_CODES = 1e-4
SAME = {"static": 0.85, "dynamic": 0.85}
SEQUENCES, TOKENS = 125, 16

FP8: dict[str, Any] = {"dtype": "fp8", "layout": "mistral", "architecture": "ministral3"}
MODELS: dict[str, dict[str, Any]] = {
    "static": {**FP8, "activations": "static", "seed": 71},
    "static_medium_proportions": {
        **FP8, "activations": "static", "layout": "hf", "architecture": "mistral3",
        "vision_layers": 1, "hidden": 48, "heads": 12, "kv_heads": 1, "head_dim": 128,
        "intermediate": 112, "rope_theta": 1e6, "yarn_factor": 64.0, "yarn_context": 8,
        "seed": 72,
    },
    "static_siblings_differ": {
        **FP8, "activations": "static", "sibling_scales": "differ", "scale_dtype": "f32",
        "scale_rank": 1, "shards": 3, "yarn_factor": 8.0, "yarn_context": 8,
        "scaling_beta": 0.1, "layers": 3, "seed": 73,
    },
    "static_row_scales": {**FP8, "activations": "static", "fp8_scales": "row", "seed": 76},
    "dynamic": {**FP8, "activations": "dynamic", "seed": 74},
    "dynamic_old_prefix": {
        **FP8, "activations": "dynamic", "layout": "hf", "architecture": "mistral3",
        "vision_layers": 1, "prefix": "language_model.model.", "hidden": 99, "heads": 6,
        "head_dim": 32, "intermediate": 77, "yarn_factor": 8.0, "yarn_context": 8,
        "scaling_beta": 0.1, "seed": 75,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def references() -> Any:
    """references(name) -> model, ids, float64 logits [SEQUENCES, TOKENS, vocab] with inputs
    quantised and not, and the linear that counted."""
    known: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in known:
            model = TinyModel(**MODELS[name])
            tensors, ids = stored_tensors(model), random_ids(model, 4, SEQUENCES, TOKENS)
            values, linear = values_of(tensors), Fp8Linear(tensors)
            quantised = [numpy_llama.logits(model, values, row, linear) for row in ids]
            plain = [numpy_llama.logits(model, values, row) for row in ids]
            known[name] = model, ids, np.stack(quantised), np.stack(plain), linear
        return known[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_inputs_use_the_range(name: str, references: Any) -> None:
    """Scales fit the inputs: codes reach the top octave, and few inputs lie beyond it."""
    model, _, quantised, plain, linear = references(name)
    assert len(linear.largest_code) == 7 * model.layers
    assert min(linear.largest_code.values()) >= 256
    assert 0 < linear.clamped < 2e-3 * linear.seen or model.activations == "dynamic"
    assert np.median(np.abs(quantised - plain).max(axis=-1)) > 0.05, "quantising must be seen"


class Recorded(Fp8Linear):
    """Fp8Linear that keeps every input."""

    def __init__(self, tensors: Any) -> None:
        super().__init__(tensors)
        self.inputs: dict[str, Any] = {}

    def __call__(self, name: str, x: Any) -> Any:
        self.inputs[name] = x.astype(np.float32)
        return super().__call__(name, x)


def single_sequence(backend: Any, rows: int) -> Any:
    """A step of so many rows, for stages that look at rows only."""
    blocks = (rows - 1) // backend.block_tokens + 1
    slots = backend.slots(1, blocks)
    table = [value for i in range(blocks) for value in (0, i, i + 1)]
    return backend.begin(slots, [0] * rows, [0, rows], [0], [0], [0, 0], [], table)


@pytest.mark.parametrize("name", MODELS)
def test_every_linear(name: str, backends: list[str]) -> None:
    """The model's own weights, scales and inputs, linear by linear, against float64 on the
    dequantised operands."""
    model = TinyModel(**MODELS[name])
    tensors = stored_tensors(model)
    recorded = Recorded(tensors)
    numpy_llama.logits(model, values_of(tensors), random_ids(model, 5, 37), recorded)
    static = model.activations == "static"
    for device in backends:
        backend = native.Backend(device, 2)
        for tensor, x in recorded.inputs.items():
            codes, base = tensors[tensor], tensor.removesuffix(".weight")
            scale = tensors[base + WEIGHT_SCALE].astype(np.float32).reshape(-1)
            part = (codes.view(np.uint8), "e4m3", scale, False)
            shared = float(recorded.input_scale(tensor)[0]) if static else None
            weight = backend.pack(
                [part], "o_proj", "fp8",
                quant="fixed" if static else "per_token", input_scales=[shared] if static else [],
            )  # fmt: skip
            pairs = [native.quantise(device, row, shared) for row in x]
            given = np.stack([row for row, _ in pairs])
            own = np.array([scale for _, scale in pairs], np.float32)
            out = np.zeros((len(x), len(codes)), np.float32)
            step = single_sequence(backend, len(x))
            backend.linear_residual(step, given, weight, out, x_scale=own)
            dequantised = given.astype(np.float64) * (shared if static else own[:, None])
            expected = (
                dequantised @ (codes.astype(np.float64) * scale.astype(np.float64)[:, None]).T
            )
            assert_close(out, expected, 2e-3, f"{device} {tensor}: dequantised operands")
            reference = Fp8Linear(tensors)(tensor, x.astype(np.float64))
            assert_close(out, reference, 1e-5, f"{device} {tensor}: the reference")


@pytest.mark.parametrize("scale", [1.0, 0.0078125, 0.0123, 3.7])
def test_every_bf16_input(scale: float, backends: list[str]) -> None:
    """Codes of all 65280 finite BF16 values, subnormal ones among them."""
    bits = np.arange(65536, dtype=np.uint16)
    x = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):  # infinity is clamped, too
        expected = to_e4m3(x / np.float32(scale)).astype(np.float32)
    assert len(np.unique(expected)) == 253  # 256 codes less two of NaN; 0 equals -0
    for device in backends:
        actual, _ = native.quantise(device, x, scale)
        np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32), device)


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_end_to_end(name: str, device: str, references: Any, tmp_path: Path) -> None:
    model, ids, expected, plain, _ = references(name)
    make_tiny_model(tmp_path, **MODELS[name])
    with mmengine.Engine(str(tmp_path), device=device, kv_dtype="f32") as engine:
        actual = np.stack([engine.logits(row) for row in ids.tolist()]).astype(np.float64)
    error = np.abs(actual - expected).max(axis=-1)
    assert np.median(error) <= 1e-5
    assert (error <= SAME_CODES).mean() >= SAME[model.activations]
    chosen = np.take_along_axis(expected, actual.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    behind = expected.max(axis=-1) - chosen
    assert behind.size == 2000
    assert (behind <= TIE_MARGIN).mean() >= 0.99
    # The same numbers without quantised inputs are another model.
    assert np.abs(actual - expected).mean() < 0.15 * np.abs(actual - plain).mean()


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("name", ["static_siblings_differ", "dynamic"])
def test_another_weight_type_leaves_inputs_as_they_are(
    name: str, device: str, references: Any, tmp_path: Path
) -> None:
    _, ids, _, plain, _ = references(name)
    make_tiny_model(tmp_path, **MODELS[name])
    with mmengine.Engine(str(tmp_path), device=device, weight_dtype="f32") as engine:
        actual = np.stack([engine.logits(row) for row in ids[:5].tolist()])
    np.testing.assert_allclose(actual, plain[:5], rtol=0, atol=1e-4)
