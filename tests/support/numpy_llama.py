"""A dense Llama in numpy float64, written from the published equations: the tests' own oracle.

Weights are float32 arrays under HF names with half-split rotary rows. Rotary frequencies and
angles are float32 products, as every reference computes them; all else is float64.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Sizes(Protocol):
    """What the forward pass needs to know of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """x [T, H] over the root of its mean square, times gain [H]."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def rotate(x: Array, theta: float) -> Array:
    """Half-split rotary embedding of x [T, heads, D] at positions 0..T-1."""
    tokens, _, width = x.shape
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    inverse = np.float32(1.0) / np.power(np.float32(theta), exponent)
    angle = np.arange(tokens, dtype=np.float32)[:, None] * inverse[None, :]
    cos, sin = np.cos(angle.astype(np.float64))[:, None], np.sin(angle.astype(np.float64))[:, None]
    low, high = x[..., : width // 2], x[..., width // 2 :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention: q [T, heads, D], k and v [T, kv_heads, D] -> [T, heads * D]."""
    tokens, heads, width = q.shape
    group = heads // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, heads * width)


def logits(model: Sizes, weights: dict[str, Any], ids: list[int]) -> Array:
    """float64 [len(ids), vocab]: the logits after every token of `ids`."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    tokens = len(ids)
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        h = rms_norm(x, w[at + "input_layernorm.weight"], model.norm_eps)
        q, k, v = (
            (h @ w[f"{at}self_attn.{name}_proj.weight"].T).reshape(tokens, -1, model.head_dim)
            for name in "qkv"
        )
        mixed = attention(rotate(q, model.rope_theta), rotate(k, model.rope_theta), v)
        x = x + mixed @ w[at + "self_attn.o_proj.weight"].T
        h = rms_norm(x, w[at + "post_attention_layernorm.weight"], model.norm_eps)
        gate, up = h @ w[at + "mlp.gate_proj.weight"].T, h @ w[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1.0 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return rms_norm(x, w["model.norm.weight"], model.norm_eps) @ head.T


def log_softmax(values: Array) -> Array:
    """float64 log-probabilities over the last axis."""
    shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
