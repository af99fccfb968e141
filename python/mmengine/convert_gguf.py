"""A GGUF file of a dense Llama model as a source of the converter.

llama-arch GGUF keeps the rows of the query and key projections in the order of the Mistral layout
(adjacent RoPE pairs), so tensors are renamed and dequantised, never permuted. Q8_0 and Q4_1, which
are int8 and int4 under other names, can also be had as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.convert_source import (
    Source,
    SourceTensor,
    StoredGroups,
    check_names,
    check_params,
    check_shape,
    native_shapes,
)
from mmengine.convert_tokenizer import build_tokenizer
from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.gguf_groups import GROUP_TYPES, groups_of_blocks
from mmengine.gguf_reader import SUPPORTED_TYPES, GgufFile, GgufTensor
from mmengine.messages import quoted

_TOP_NAMES = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
# Metadata that would change the computation: key -> the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
}


def open_gguf(path: Path) -> Source:
    """Opens and checks everything but the weights; the source holds the file until closed."""
    file = GgufFile(path)
    try:
        return _source(file)
    except BaseException:
        file.close()
        raise


def _source(file: GgufFile) -> Source:
    where = file.path.name
    params = _params(file, where)
    texts, end_ids = build_tokenizer(file.metadata, where)
    tokens = len(file.metadata["tokenizer.ggml.tokens"])
    if tokens != params["vocab_size"]:
        raise ModelFormatError(
            f"{where}: the tokenizer has {tokens} tokens, token_embd.weight has "
            f"{params['vocab_size']} rows, expected equal numbers",
            code="vocab_size",
            file=str(file.path),
        )
    params["mmengine"] = {"format": 1, "eos_token_ids": end_ids}
    shapes = native_shapes(params)
    names = {name: _gguf_name(name) for name in shapes}
    check_names(file.tensors, names.values(), where)
    tensors = {}
    for name, shape in shapes.items():
        tensor = file.tensors[names[name]]
        label = f"{where}: tensor {tensor.name}"
        check_shape(label, tensor.name, tensor.shape, shape)
        if tensor.type_name not in SUPPORTED_TYPES:
            raise UnsupportedModelError(
                f"{label}: type {tensor.type_name} is not read, expected one of "
                f"{', '.join(SUPPORTED_TYPES)}; quantise the model to one of these",
                file=str(file.path),
                tensor=tensor.name,
            )
        groups = _groups(file, tensor)
        tensors[name] = SourceTensor(
            shape, tensor.name, label, _reader(file, tensor), groups=groups
        )
    return Source(where, [file.path], params, tensors, texts, file.close)


def _reader(file: GgufFile, tensor: GgufTensor) -> Any:
    return lambda start, stop: file.read_rows(tensor, start, stop)


def _groups(file: GgufFile, tensor: GgufTensor) -> StoredGroups | None:
    if tensor.type_name not in GROUP_TYPES or len(tensor.shape) != 2:
        return None
    return StoredGroups(
        GROUP_TYPES[tensor.type_name],
        lambda start, stop: groups_of_blocks(
            file.read_blocks(tensor, start, stop), tensor.type_name
        ),
    )


def _params(file: GgufFile, where: str) -> dict[str, Any]:
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(
            f"{where}: general.architecture is {quoted(architecture)}, supported: llama",
            file=str(file.path),
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(
            f"{where}: one part of {quoted(metadata['split.count'])}; merge the parts first",
            file=str(file.path),
        )
    for key, neutral in _NEUTRAL.items():
        value = metadata.get(f"llama.{key}")
        if value is not None and value not in neutral:
            raise UnsupportedModelError(
                f"{where}: llama.{key} is {quoted(value)}, supported: {neutral[0]}",
                file=str(file.path),
            )
    if "rope_freqs.weight" in file.tensors:
        raise UnsupportedModelError(
            f"{where}: tensor rope_freqs.weight: scaled RoPE frequencies are not supported",
            file=str(file.path),
            tensor="rope_freqs.weight",
        )

    def integer(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"{where}: llama.{key} differs by layer, supported: one number for all",
                file=str(file.path),
            )
        return value

    dim, heads = integer("embedding_length"), integer("attention.head_count")
    known = type(dim) is int and type(heads) is int and heads > 0
    head_dim = integer("attention.key_length", dim // heads if known else None)
    embedding = file.tensors.get("token_embd.weight")
    params = {
        "dim": dim,
        "n_layers": integer("block_count"),
        "n_heads": heads,
        "n_kv_heads": integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_dim": integer("feed_forward_length"),
        "norm_eps": _short(metadata.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(metadata.get("llama.rope.freq_base", 10000.0)),
        "vocab_size": embedding.shape[0] if embedding else 1,
        "tied_embeddings": "output.weight" not in file.tensors,
        "max_position_embeddings": integer("context_length"),
    }
    check_params(params, where)
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{where}: llama.{key} is {quoted(integer(key))}, supported: the head size "
                f"{head_dim}",
                file=str(file.path),
            )
    return params


def _short(value: Any) -> Any:
    """The shortest decimal of a 32-bit number: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value))) if isinstance(value, float) else value


def _gguf_name(native: str) -> str:
    if native in _TOP_NAMES:
        return _TOP_NAMES[native]
    _, layer, rest = native.split(".", 2)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
