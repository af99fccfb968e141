"""A checkpoint directory in HF or Mistral layout as a source of the converter.

Dense Llama and Mistral models with F32, F16 or BF16 weights. HF files keep the rows of the query
and key projections in half-split RoPE order; they are put back into the native order (adjacent
pairs) head by head. Files are opened by the safetensors package, which checks their headers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_source import (
    Source,
    SourceTensor,
    check_names,
    check_params,
    check_shape,
    native_shapes,
)
from mmengine.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_DTYPES = ("F32", "F16", "BF16")
_TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "tekken.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_TOP_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def is_pickle(path: Path) -> bool:
    """Whether the name is one of the formats that run code when they are read."""
    return path.suffix.lower() in _PICKLES


def pickle_error(path: Path) -> UnsupportedModelError:
    """The refusal of such a file."""
    return UnsupportedModelError(
        f"{path.name}: pickle formats are never loaded, expected safetensors or GGUF; "
        "get the model in one of these",
        file=str(path),
    )


def open_checkpoint(directory: Path) -> Source:
    """Opens and checks everything but the weights."""
    native = (directory / "params.json").is_file()
    config_file = "params.json" if native else "config.json"
    config = read_object(directory / config_file)
    params = _params_of_mistral(config) if native else _params_of_hf(config, directory)
    files = _weight_files(directory, "consolidated" if native else "model")
    located = _locate(files)
    head = "output.weight" if native else "lm_head.weight"
    params["tied_embeddings"] = params["tied_embeddings"] and head not in located
    check_params(params, config_file)
    shapes = native_shapes(params)
    names = {name: name if native else _hf_name(name) for name in shapes}
    check_names(located, names.values(), directory.name)
    tensors = {}
    for name, shape in shapes.items():
        tensor, label = located[names[name]]
        got = tuple(tensor.get_shape())
        check_shape(label, names[name], got, shape)
        if tensor.get_dtype() not in _DTYPES:
            raise UnsupportedModelError(
                f"{label}: dtype {tensor.get_dtype()}, expected one of {', '.join(_DTYPES)}",
                tensor=names[name],
            )
        permuted = not native and name.endswith(("attention.wq.weight", "attention.wk.weight"))
        step = params["head_dim"] if permuted else 1
        tensors[name] = SourceTensor(shape, label, _reader(tensor, len(shape), step), step)
    texts = {name: read_bytes(directory / name) for name in _TEXTS if (directory / name).is_file()}
    inputs = [directory / config_file, *files]
    return Source(directory.name, inputs, params, tensors, texts)


def _reader(tensor: Any, rank: int, head_dim: int) -> Any:
    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        import numpy as np

        values = tensor[:].reshape(1, -1) if rank == 1 else tensor[start:stop]
        if head_dim > 1:
            split = values.reshape(-1, 2, head_dim // 2, values.shape[1])
            values = split.transpose(0, 2, 1, 3).reshape(values.shape)
        return np.ascontiguousarray(values, dtype=np.float32)

    return read


def _params_of_mistral(config: dict[str, Any]) -> dict[str, Any]:
    for key in ("quantization", "quantization_config", "moe", "vision_encoder", "yarn"):
        if config.get(key):
            raise UnsupportedModelError(f"params.json: {key} is not supported in a conversion")
    dim, heads = config.get("dim"), config.get("n_heads")
    head_dim = dim // heads if isinstance(dim, int) and isinstance(heads, int) and heads else None
    params = {
        "dim": dim,
        "n_layers": config.get("n_layers"),
        "n_heads": heads,
        "n_kv_heads": config.get("n_kv_heads", heads),
        "head_dim": config.get("head_dim", head_dim),
        "hidden_dim": config.get("hidden_dim"),
        "norm_eps": config.get("norm_eps"),
        "rope_theta": config.get("rope_theta", 10000.0),
        "vocab_size": config.get("vocab_size"),
        "tied_embeddings": config.get("tied_embeddings", False),
    }
    for key in ("max_position_embeddings", "mmengine"):
        if config.get(key) is not None:
            params[key] = config[key]
    return params


def _params_of_hf(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not set(architectures) & set(_ARCHITECTURES):
        raise UnsupportedModelError(
            f"config.json: architectures is {quoted(architectures)}, supported: "
            f"{', '.join(_ARCHITECTURES)}"
        )
    if "auto_map" in config:
        logging.getLogger("mmengine").warning(
            "config.json: auto_map is ignored: code of a checkpoint is never run"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    for key, value, plain in (
        ("rope_type", kind, "default"),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", bool(config.get("attention_bias")), False),
        ("mlp_bias", bool(config.get("mlp_bias")), False),
        ("quantization_config", config.get("quantization_config"), None),
    ):
        if value != plain:
            raise UnsupportedModelError(
                f"config.json: {key} is {quoted(value)}, supported in a conversion: {plain}"
            )
    dim, heads = config.get("hidden_size"), config.get("num_attention_heads")
    head_dim = dim // heads if isinstance(dim, int) and isinstance(heads, int) and heads else None
    context = config.get("max_position_embeddings")
    window = config.get("sliding_window")
    if type(window) is int and type(context) is int:
        context = min(context, window)
    theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    params = {
        "dim": dim,
        "n_layers": config.get("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or head_dim,
        "hidden_dim": config.get("intermediate_size"),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "vocab_size": config.get("vocab_size"),
        "tied_embeddings": config.get("tie_word_embeddings", False),
        "max_position_embeddings": context,
        "mmengine": {"format": 1, "eos_token_ids": _end_ids(config, directory)},
    }
    return params


def _end_ids(config: dict[str, Any], directory: Path) -> list[int]:
    path = directory / "generation_config.json"
    generation = read_object(path) if path.is_file() else {}
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if any(type(index) is not int or index < 0 for index in listed):
        raise ModelFormatError(f"config.json: eos_token_id is {quoted(ends)}, expected token ids")
    return list(dict.fromkeys(listed))


def _weight_files(directory: Path, stem: str) -> list[Path]:
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(type(s) is str for s in shards.values()):
            raise ModelFormatError(f"{index.name}: weight_map is not a map of names to files")
        paths = []
        for name in sorted(set(shards.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelFormatError(
                    f"{index.name}: {quoted(name)} is not the name of a shard", code="path"
                )
            paths.append(directory / name)
    else:
        paths = sorted(directory.glob(f"{stem}*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{directory.name}: shards are missing: {', '.join(map(quoted, missing))}; "
            "download them again"
        )
    if not paths:
        for path in sorted(directory.iterdir()):
            if is_pickle(path):
                raise pickle_error(path)
        raise ModelNotFoundError(f"{directory.name}: no {stem}*.safetensors file")
    return paths


def _locate(files: list[Path]) -> dict[str, tuple[Any, str]]:
    from safetensors import SafetensorError, safe_open

    located: dict[str, tuple[Any, str]] = {}
    for path in files:
        try:
            opened: Any = safe_open(path, framework="numpy")
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            with path.open("rb") as file:
                start = file.read(4)
            if start[:1] == b"\x80" or start == b"PK\x03\x04":
                raise pickle_error(path) from error
            raise ModelFormatError(
                f"{path.name}: not a safetensors file: {quoted(str(error))}", file=str(path)
            ) from error
        for name in names:
            if name.endswith(".rotary_emb.inv_freq"):  # follows from the config
                continue
            if name in located:
                raise ModelFormatError(
                    f"{path.name}: tensor {quoted(name)} is in another shard too",
                    code="duplicate_key",
                    file=str(path),
                    tensor=name,
                )
            located[name] = (opened.get_slice(name), f"{path.name}: tensor {quoted(name)}")
    return located


def _hf_name(native: str) -> str:
    if native in _TOP_NAMES:
        return _TOP_NAMES[native]
    _, layer, rest = native.split(".", 2)
    return f"model.layers.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
