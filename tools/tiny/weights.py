"""Random weights under HF names, the same bytes from the same seed on every machine.

Weights are integer sums of raw PCG64 words, scaled and rounded by IEEE arithmetic alone, each
tensor from its own stream. Gains lie around 1 and matrices have a standard deviation of about
1/sqrt(columns), the head twice that, so logits spread like a real model's.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny.options import TinyModel

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Shapes = dict[str, tuple[tuple[int, ...], float]]  # name -> shape, standard deviation

PATCH, CHANNELS, MERGE = 14, 3, 2  # of the vision tower, as in the real model
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def random_words(seed: list[int], count: int) -> npt.NDArray[np.uint64]:
    """`count` raw PCG64 words: numpy promises this stream, unlike its distributions, for ever."""
    words: npt.NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    return words


def random_ids(model: TinyModel, stream: int, *shape: int) -> Array:
    """int64 ids of `shape`, drawn from the seed and the number of a stream."""
    words = random_words([model.seed, stream], math.prod(shape))
    return (words % np.uint64(model.vocab)).astype(np.int64).reshape(shape)


def random_tensor(model: TinyModel, name: str, shape: tuple[int, ...], std: float) -> Array:
    """float32 `shape`, bell-shaped, mean 0: each value is the sum of the four 16-bit fields of
    one raw word, so |value| <= 3.5 std."""
    words = random_words([model.seed, zlib.crc32(name.encode())], math.prod(shape))
    total = sum(
        ((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48)
    )
    # Four uniform integers below 2^16: mean 131070, variance 4 (2^32 - 1) / 12.
    unit = (total - 131070).astype(np.float64) / math.sqrt((2.0**32 - 1.0) / 3.0)
    return (unit * std).astype(np.float32).reshape(shape)


def layer_shapes(model: TinyModel, layers: int) -> Shapes:
    """Of the decoder's layers and its final norm."""
    hidden, heads, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    inner = model.intermediate
    sizes = ((heads, hidden, 1.5), (kv, hidden, 1.5), (kv, hidden, 1.0), (hidden, heads, 1.0),
             (inner, hidden, 1.0), (inner, hidden, 1.0), (hidden, inner, 1.0))  # fmt: skip
    shapes: Shapes = {"model.norm.weight": ((hidden,), 0.2)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, (rows, columns, gain) in zip(LINEARS, sizes, strict=True):
            shapes[f"{at}{name}.weight"] = ((rows, columns), gain / math.sqrt(columns))
        for name in LAYER_NORMS:
            shapes[f"{at}{name}.weight"] = ((hidden,), 0.2)
    return shapes


def vision_shapes(model: TinyModel) -> Shapes:
    """Of the Pixtral tower and its projector; nothing without a tower."""
    if model.vision_layers == 0:
        return {}
    width, inner, tower = model.vision_hidden, model.vision_intermediate, "model.vision_tower."
    projector = "model.multi_modal_projector."
    shapes: Shapes = {
        tower + "patch_conv.weight": ((width, CHANNELS, PATCH, PATCH), 1 / PATCH),
        tower + "ln_pre.weight": ((width,), 0.2),
        projector + "norm.weight": ((width,), 0.2),
    }
    matrices = {
        projector + "patch_merger.merging_layer": (width, width * MERGE * MERGE),
        projector + "linear_1": (model.hidden, width),
        projector + "linear_2": (model.hidden, model.hidden),
    }
    for layer in range(model.vision_layers):
        at = f"{tower}transformer.layers.{layer}."
        for name in "qkvo":
            matrices[f"{at}attention.{name}_proj"] = (width, width)
        for name in ("gate", "up"):
            matrices[f"{at}feed_forward.{name}_proj"] = (inner, width)
        matrices[at + "feed_forward.down_proj"] = (width, inner)
        for name in ("attention_norm", "ffn_norm"):
            shapes[f"{at}{name}.weight"] = ((width,), 0.2)
    for name, shape in matrices.items():
        shapes[name + ".weight"] = (shape, 1 / math.sqrt(shape[1]))
    return shapes


def draw(model: TinyModel, shapes: Shapes, stream: str = "") -> Tensors:
    """float32 tensors of these shapes, each from the stream named `stream` + its name."""
    tensors = {}
    for name, (shape, std) in shapes.items():
        tensors[name] = random_tensor(model, stream + name, shape, std)
        if len(shape) == 1:
            tensors[name] += np.float32(1.0)
    return tensors


def tiny_weights(model: TinyModel) -> Tensors:
    """float32 tensors under HF names ("model.layers.0...", "model.vision_tower..."), q and k rows
    in half-split order; no lm_head if tied."""
    spread = 2.0 / math.sqrt(model.hidden)
    table = (model.vocab, model.hidden)
    shapes: Shapes = {"model.embed_tokens.weight": (table, spread if model.tied else 1.0)}
    if not model.tied:
        shapes["lm_head.weight"] = (table, spread)
    return draw(model, shapes | layer_shapes(model, model.layers) | vision_shapes(model))


def draft_weights(model: TinyModel, layers: int) -> Tensors:
    """float32 tensors of an EAGLE head for this target: "eagle_linear.weight" [H, 2 H], the layers
    and the final norm under the names that they have in a model."""
    hidden = model.hidden
    shapes = layer_shapes(model, layers)
    shapes["eagle_linear.weight"] = ((hidden, 2 * hidden), 1 / math.sqrt(2 * hidden))
    return draw(model, shapes, "eagle.")
