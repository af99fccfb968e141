"""E4M3 weights and the scales beside them, activation scales measured on the model itself.

A scale is what a code is multiplied with. A matrix's is its largest magnitude over 448; a static
activation scale the largest input of that linear over 448 in a float64 run over CALIBRATION
random ids, kept to few bits so that no other rounding of that run changes it.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from tiny import forward
from tiny.options import TinyModel
from tiny.weights import Array, Tensors, draft_weights, random_ids, tiny_weights

STORED = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
E4M3_MAX = 448.0
CALIBRATION = 48  # ids; other ids reach a little further, and are clamped
SCALE_BITS = {"bf16": 8, "f32": 12}  # of a static activation scale's mantissa
# Factors that make activation scales of siblings differ; the largest is not the first.
SIBLINGS = {"q_proj": 0.75, "k_proj": 1.0, "v_proj": 0.625, "gate_proj": 0.6875, "up_proj": 1.0}
WEIGHT_SCALE, ACTIVATION_SCALE = ".weight_scale_inv", ".activation_scale"


def to_e4m3(values: Array) -> Array:
    """float32 -> E4M3 codes: clamped to +-448, then to the nearest, ties to even."""
    clamped = np.clip(values.astype(np.float32), -E4M3_MAX, E4M3_MAX)
    return clamped.astype(STORED["fp8"])


def is_layer_linear(name: str) -> bool:
    """True for the linears that are FP8 in the real model: seven a layer, and the draft's."""
    return (name.endswith("_proj.weight") and "model.layers." in name) or "eagle_linear" in name


def is_vision(name: str) -> bool:
    """True for the tensors of the tower and the projector."""
    return name.startswith(("model.vision_tower", "model.multi_modal_projector"))


def round_mantissa(value: float, bits: int) -> float:
    """The nearest number of so many significant bits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


def quantize(weight: Array, scales: str, dtype: str = "f32") -> tuple[Array, Array]:
    """float32 [rows, columns] -> E4M3 codes and scales, [rows] ("row") or [] ("tensor"); code *
    scale is the weight. Scales are the largest magnitude over 448, 1 where all is zero."""
    largest = np.abs(weight).max(axis=1) if scales == "row" else np.abs(weight).max()
    scale = np.where(largest > 0, largest / np.float32(E4M3_MAX), np.float32(1.0))
    scale = scale.astype(STORED[dtype])
    divisor = scale.astype(np.float32)
    return to_e4m3(weight / (divisor[:, None] if scales == "row" else divisor)), scale


def stored_weight(model: TinyModel, name: str, weight: Array) -> Tensors:
    """The tensors that a weight becomes in the file, HF name kept: itself and, if it is FP8, its
    scale. Weight-only FP8 takes every matrix, and an embedding that is not also the head is BF16
    there, and norms F32."""
    dtype, scales, scale_dtype = model.dtype, model.fp8_scales, "f32"
    if model.activations != "none":
        scales = "tensor" if scales == "auto" else scales
        scale_dtype = model.scale_dtype
        dtype = "fp8" if is_layer_linear(name) else "bf16"
    elif dtype == "fp8" and weight.ndim == 1:
        dtype = "f32"
    elif dtype == "fp8" and (("embed" in name and not model.tied) or is_vision(name)):
        dtype = "bf16"
    if dtype != "fp8":
        return {name: weight.astype(STORED[dtype])}
    codes, scale = quantize(weight, "tensor" if scales == "tensor" else "row", scale_dtype)
    if scale.ndim == 0 and model.activations != "none" and model.scale_rank == 1:
        scale = scale.reshape(1)
    return {name: codes, name.removesuffix(".weight") + WEIGHT_SCALE: scale}


def values_of(tensors: Tensors) -> Tensors:
    """float32 tensors as a reader of the files must understand them: scales multiplied in."""
    values = {}
    for name, tensor in tensors.items():
        if name.endswith((WEIGHT_SCALE, ACTIVATION_SCALE)):
            continue
        values[name] = tensor.astype(np.float32)
        scale = tensors.get(name.removesuffix(".weight") + WEIGHT_SCALE)
        if scale is not None:
            values[name] *= scale.astype(np.float32).reshape(-1, 1)
    return values


class Watch:
    """A linear in float64 that remembers the largest magnitude of every input."""

    def __init__(self, weights: Tensors) -> None:
        self.largest: dict[str, float] = {}
        self._linear = forward.plain(weights)

    def __call__(self, name: str, x: forward.Array) -> forward.Array:
        """As `forward.plain`."""
        self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(x).max()))
        return self._linear(name, x)


def activation_scales(model: TinyModel, largest: dict[str, float]) -> Tensors:
    """The scale of every linear's input, from the largest magnitude seen there."""
    bits, dtype = SCALE_BITS[model.scale_dtype], STORED[model.scale_dtype]
    shape = (1,) if model.scale_rank else ()
    scales: Tensors = {}
    for name, magnitude in largest.items():
        base = name.removesuffix(".weight")
        factor = SIBLINGS.get(base.rpartition(".")[2], 1.0)
        value = magnitude / E4M3_MAX * (factor if model.sibling_scales == "differ" else 1.0)
        scale: Any = np.full(shape, round_mantissa(value, bits))
        scales[base + ACTIVATION_SCALE] = scale.astype(dtype)
    return scales


def stored_tensors(model: TinyModel) -> Tensors:
    """Every tensor of the model as stored, under HF names, q and k rows half-split."""
    tensors: Tensors = {}
    for name, weight in tiny_weights(model).items():
        tensors.update(stored_weight(model, name, weight))
    if model.activations == "static":
        values = values_of(tensors)
        watch = Watch(values)
        forward.logits(model, values, random_ids(model, 3, CALIBRATION), watch)
        tensors.update(activation_scales(model, watch.largest))
    return tensors


def stored_draft(model: TinyModel, layers: int) -> Tensors:
    """Every tensor of the model's EAGLE head as stored."""
    tensors: Tensors = {}
    for name, weight in draft_weights(model, layers).items():
        tensors.update(stored_weight(model, name, weight))
    if model.activations == "static":
        target, values = values_of(stored_tensors(model)), values_of(tensors)
        embedded = forward.embed(target, random_ids(model, 3, CALIBRATION))
        hidden = forward.decode(model, target, embedded, forward.plain(target))
        watch = Watch(values)
        forward.draft_hidden(model, values, embedded[1:], hidden[:-1], watch, layers)
        tensors.update(activation_scales(model, watch.largest))
    return tensors


def stored_values(model: TinyModel) -> Tensors:
    """float32 tensors under their HF names, as a reader of the files must understand them."""
    return values_of(stored_tensors(model))
