"""The decoder in numpy float64, written from the published equations: the tests' own oracle.

Weights are arrays under HF names with half-split rotary rows. Rotary frequencies, angles and the
scale of queries are float32, as every reference computes them; all else is float64. A linear is a
function of its weight's name and its input, so that a caller may watch or quantise the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny.options import TinyModel

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Any]
Linear = Callable[[str, Array], Array]  # "...q_proj.weight", x [T, K] -> x W^T [T, N]


def plain(weights: Weights) -> Linear:
    """x W^T in float64."""

    def linear(name: str, x: Array) -> Array:
        out: Array = x @ np.asarray(weights[name], dtype=np.float64).T
        return out

    return linear


def rms_norm(x: Array, gain: Any, eps: float) -> Array:
    """x [T, H] over the root of its mean square, times gain [H]."""
    out: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return out * np.asarray(gain, dtype=np.float64)


def inverse_frequencies(model: TinyModel) -> npt.NDArray[np.float32]:
    """float32 [head_dim / 2], with YaRN if the model has it, as transformers computes them."""
    width, one = model.head_dim, np.float32(1.0)
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    power = np.power(np.float32(model.rope_theta), exponent)
    plain: npt.NDArray[np.float32] = one / power
    if not model.yarn_factor:
        return plain

    def border(rotations: float) -> float:
        turns = model.yarn_context / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(model.rope_theta))

    low = max(math.floor(border(model.beta_fast)), 0)
    high = min(math.ceil(border(model.beta_slow)), width - 1)
    pairs = np.arange(width // 2, dtype=np.float32)
    ramp = (pairs - np.float32(low)) / np.float32(high - low if high != low else 0.001)
    kept = one - np.clip(ramp, np.float32(0.0), one)
    stretched = one / (np.float32(model.yarn_factor) * power)
    out: npt.NDArray[np.float32] = stretched * (one - kept) + plain * kept
    return out


def rotate(model: TinyModel, x: Array) -> Array:
    """Half-split rotary embedding of x [T, heads, D] at positions 0..T-1."""
    positions = np.arange(len(x), dtype=np.float32)
    angle = (positions[:, None] * inverse_frequencies(model)[None, :]).astype(np.float64)[:, None]
    factor = model.attention_factor if model.yarn_factor else 1.0
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def query_scale(model: TinyModel, tokens: int) -> Array:
    """[T, 1, 1]: 1 + beta ln(1 + floor(p / context)), the llama-4 scaling of queries."""
    past = np.arange(tokens, dtype=np.int64) // model.yarn_context
    scale = np.float32(1.0) + np.float32(model.scaling_beta) * np.log1p(past.astype(np.float32))
    return scale.astype(np.float64)[:, None, None]


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention: q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads * D]."""
    tokens, heads, width = q.shape
    group = heads // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) / np.sqrt(width)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, v, optimize=True)
    return mixed.reshape(tokens, heads * width)


def decode(
    model: TinyModel, weights: Weights, x: Array, linear: Linear, layers: int | None = None
) -> Array:
    """x [T, H] through `layers` layers (the model's) and the final norm: what the head reads."""
    tokens = len(x)
    for layer in range(model.layers if layers is None else layers):
        at = f"model.layers.{layer}."
        h = rms_norm(x, weights[at + "input_layernorm.weight"], model.norm_eps)
        q, k, v = (
            linear(f"{at}self_attn.{name}_proj.weight", h).reshape(tokens, -1, model.head_dim)
            for name in "qkv"
        )
        q, k = rotate(model, q) * query_scale(model, tokens), rotate(model, k)
        x = x + linear(at + "self_attn.o_proj.weight", attention(q, k, v))
        h = rms_norm(x, weights[at + "post_attention_layernorm.weight"], model.norm_eps)
        gate, up = (linear(f"{at}mlp.{name}_proj.weight", h) for name in ("gate", "up"))
        x = x + linear(at + "mlp.down_proj.weight", gate / (1.0 + np.exp(-gate)) * up)
    return rms_norm(x, weights["model.norm.weight"], model.norm_eps)


def embed(weights: Weights, ids: Any) -> Array:
    """Rows of the embedding table, float64 [T, H]."""
    return np.asarray(weights["model.embed_tokens.weight"], dtype=np.float64)[np.asarray(ids)]


def logits(model: TinyModel, weights: Weights, ids: Any, linear: Linear | None = None) -> Array:
    """float64 [len(ids), vocab]: the logits after every token of `ids`."""
    hidden = decode(model, weights, embed(weights, ids), linear or plain(weights))
    head = weights.get("lm_head.weight")
    return (
        hidden
        @ np.asarray(
            weights["model.embed_tokens.weight"] if head is None else head, dtype=np.float64
        ).T
    )


def draft_hidden(
    model: TinyModel, weights: Weights, embedded: Array, hidden: Array, linear: Linear, layers: int
) -> Array:
    """The EAGLE head on embedded [T, H], of the token after each, beside the target's hidden
    [T, H]: float64 [T, H] after its final norm."""
    x = linear("eagle_linear.weight", np.concatenate([embedded, hidden], axis=-1))
    return decode(model, weights, x, linear, layers)


def log_softmax(values: Any) -> Array:
    """float64 log-probabilities over the last axis."""
    shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
    out: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out
