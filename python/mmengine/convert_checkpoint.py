"""A checkpoint directory in HF or Mistral layout as a source of the converter.

Dense Llama and Mistral models with F32, F16, BF16 or FP8 weights, or int8 and int4 as converted
here. The loader's own reader checks config and files first: what it refuses is refused here with
the same error. HF files keep the rows of the query and key projections in half-split RoPE order;
they are put back into the native order (adjacent pairs) head by head.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_groups import stored_columns
from mmengine.convert_source import (
    Source,
    SourceTensor,
    StoredFp8,
    check_shape,
    native_shapes,
)
from mmengine.convert_stored import StoredTensor, dequantised_groups, stored_groups
from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Read = Callable[[int, int], npt.NDArray[Any]]

_FP8 = "F8_E4M3"
_DTYPES = ("F32", "F16", "BF16", _FP8)
_SCHEMES = {"static": "TENSOR", "dynamic": "NO_SCALES", "weights only": "WEIGHT_ONLY"}
_TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "tekken.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HF_SHARD = re.compile(r"model(-(.*-)?\d{1,5}-of-\d{1,5})?\.safetensors")
# A model inside a multimodal one has a longer prefix.
_HF_PREFIXES = ("model.", "model.language_model.", "language_model.model.")
_HF_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_TOP_NAMES = {
    "tok_embeddings.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
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
    """Opens and checks everything but the weights; the loader's warnings are logged."""
    from mmengine.core import inspect

    found = inspect(directory)
    for warning in found["warnings"]:
        logging.getLogger("mmengine").warning("%s", warning)
    config, native = found["config"], found["layout"] == "mistral"
    if found["kind"] != "model":
        raise UnsupportedModelError(
            f"{directory.name}: a {found['kind']}, which is not converted; pass the directory "
            "itself as the draft of its model",
            where=directory.name,
            file=str(directory),
        )
    source = directory / ("params.json" if native else "config.json")
    params = _params(config, found["quantization"])
    if found["vision"] is not None:
        logging.getLogger("mmengine").warning(
            "%s: the vision tower is left out; the result takes text only", directory.name
        )
    files, located = _locate(directory, native)
    tensors = {}
    for name, shape in native_shapes(params).items():
        stored = [choice for choice in stored_names(name, native) if choice in located]
        if not stored:
            raise ModelFormatError(
                f"{directory.name}: tensor {quoted(stored_names(name, native)[0])} is missing; "
                "download the checkpoint again",
                code="missing_tensor",
                file=str(directory),
                tensor=stored_names(name, native)[0],
            )
        tensor = located[stored[0]]
        label = f"{tensor.path.name}: tensor {quoted(stored[0])}"
        groups = stored_groups(stored[0], located, label) if native else None
        expected = shape
        if groups is not None and len(shape) == 2:
            expected = (shape[0], stored_columns(groups.dtype, shape[1]))
        check_shape(label, stored[0], tensor.shape, expected)
        if groups is not None:
            read = dequantised_groups(groups, shape[-1])
            tensors[name] = SourceTensor(shape, stored[0], label, read, groups=groups)
            continue
        if tensor.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"{label}: dtype {tensor.dtype}, expected one of {', '.join(_DTYPES)}",
                tensor=stored[0],
            )
        permuted = not native and name.endswith(("attention.wq.weight", "attention.wk.weight"))
        step = params["head_dim"] if permuted else 1
        read = _reader(tensor, step)
        if tensor.dtype == _FP8:
            fp8 = _stored_fp8(read, _scales(stored[0], located, native), step)
            tensors[name] = SourceTensor(shape, stored[0], label, _dequantised(fp8), step, fp8)
        else:
            tensors[name] = SourceTensor(shape, stored[0], label, _as_float32(read), step)
    from mmengine.vocabulary import tokenizer_file

    _check_tokenizer(directory, params)
    own = tokenizer_file(directory)
    names = [name for name in _TEXTS if (directory / name).is_file()]
    texts = {
        name: read_bytes(directory / name)
        for name in dict.fromkeys([*names, *([] if own is None else [own])])
    }
    return Source(directory.name, [source, *files], params, tensors, texts)


def _reader(tensor: StoredTensor, head_dim: int) -> Read:
    """Rows in the stored dtype and the native order; head_dim 1: they are in it already."""

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        import numpy as np

        vector = len(tensor.shape) == 1
        values = tensor.all().reshape(1, -1) if vector else tensor.rows(start, stop)
        return np.ascontiguousarray(_native_rows(values, head_dim))

    return read


def _native_rows(values: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Rows (j, j + head_dim / 2) of every head side by side."""
    if head_dim == 1:
        return values
    split = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _as_float32(read: Read) -> Read:
    def rows(start: int, stop: int) -> npt.NDArray[np.float32]:
        import numpy as np

        return read(start, stop).astype(np.float32)

    return rows


def _scales(
    name: str, located: dict[str, StoredTensor], native: bool
) -> list[npt.NDArray[np.float32] | None]:
    """Of the weight and of its input, float32, at least rank 1; None: the file has none."""
    import numpy as np

    stem = name.removesuffix(".weight")
    suffixes = (
        ("qscale_weight", "qscale_act") if native else ("weight_scale_inv", "activation_scale")
    )
    found = (located.get(f"{stem}.{suffix}") for suffix in suffixes)
    return [
        None if entry is None else np.atleast_1d(entry.all().astype(np.float32)) for entry in found
    ]


def _stored_fp8(
    read: Read, scales: list[npt.NDArray[np.float32] | None], head_dim: int
) -> StoredFp8:
    import numpy as np

    weight_scale, input_scale = scales
    assert weight_scale is not None, "the loader's reader has checked that it is there"
    if len(weight_scale) > 1:
        weight_scale = np.ascontiguousarray(_native_rows(weight_scale, head_dim))

    def codes(start: int, stop: int) -> npt.NDArray[np.uint8]:
        return read(start, stop).view(np.uint8)

    return StoredFp8(codes, weight_scale, input_scale)


def _dequantised(fp8: StoredFp8) -> Read:
    def rows(start: int, stop: int) -> npt.NDArray[np.float32]:
        import ml_dtypes
        import numpy as np

        values = fp8.codes(start, stop).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        scale = fp8.weight_scale
        values *= scale if len(scale) == 1 else scale[start:stop, None]
        return np.asarray(values, np.float32)

    return rows


def _params(config: dict[str, Any], quantization: str) -> dict[str, Any]:
    """The config as the loader reads it, in the words of params.json."""
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_layers"],
        "n_heads": config["num_heads"],
        "n_kv_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "norm_eps": config["norm_eps"],
        "rope_theta": config["rope_theta"],
        "vocab_size": config["vocab_size"],
        "tied_embeddings": config["tied_embeddings"],
        "max_position_embeddings": config["max_context"],
        "mmengine": {"format": 1, "eos_token_ids": config["eos_ids"]},
    }
    if config["rope_type"] == "llama3":
        params["llama_3_scaling"] = {
            "original_max_position_embeddings": int(config["rope_original_context"]),
            "factor": config["rope_factor"],
            "low_freq_factor": config["rope_low_freq_factor"],
            "high_freq_factor": config["rope_high_freq_factor"],
        }
    if config["rope_type"] == "yarn":
        params["yarn"] = {
            "original_max_position_embeddings": int(config["rope_original_context"]),
            "factor": config["rope_factor"],
            "beta": config["rope_beta_fast"],
            "alpha": config["rope_beta_slow"],
            "attention_factor": config["rope_attention_factor"],
            "truncate": config["rope_truncate"],
        }
    if config["rope_scaling_beta"]:
        params["llama_4_scaling"] = {
            "original_max_position_embeddings": int(config["rope_scaling_context"]),
            "beta": config["rope_scaling_beta"],
        }
    for word, scheme in _SCHEMES.items():
        if quantization.startswith("fp8") and word in quantization:
            params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": scheme}
    return params


def _check_tokenizer(directory: Path, params: dict[str, Any]) -> None:
    """Refuses what the engine made of this could not be opened with."""
    from mmengine.vocabulary import load_tokenizer

    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        return
    name = tokenizer.file
    file = str(directory / name)
    if tokenizer.vocab_size > params["vocab_size"]:
        raise ModelFormatError(
            f"{name}: {tokenizer.vocab_size} tokens, but the model's vocabulary has "
            f"{params['vocab_size']}; tokenizer and weights are of different models",
            where=name,
            code="vocab_size",
            file=file,
        )
    for end in params["mmengine"]["eos_token_ids"]:
        if end >= tokenizer.vocab_size:
            raise ModelFormatError(
                f"{name}: {tokenizer.vocab_size} tokens, but the model's end token is "
                f"{end}; tokenizer and config are of different models",
                where=name,
                code="tokenizer",
                file=file,
            )


def _locate(directory: Path, native: bool) -> tuple[list[Path], dict[str, StoredTensor]]:
    """The files with weights, and their tensors.

    Which file a tensor is taken from is the index's word where there is one, as in the loader.
    """
    stem = "consolidated" if native else "model"
    index = directory / f"{stem}.safetensors.index.json"
    assigned = read_object(index)["weight_map"] if index.is_file() else None
    if assigned is not None:
        files = sorted({directory / name for name in assigned.values()})
    else:
        files = sorted(directory.glob(f"{stem}*.safetensors"))
        files = [path for path in files if native or _HF_SHARD.fullmatch(path.name)]
    located = {}
    for path in files:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and (assigned is None or assigned.get(name) == path.name):
                located[name] = StoredTensor(path, 8 + length, entry)
    return files, located


def stored_names(native_name: str, native: bool) -> list[str]:
    """What a tensor may be called in the files of a layout."""
    if native:
        return [native_name]
    if native_name == "output.weight":
        return list(_HF_HEADS)
    if native_name in _TOP_NAMES:
        return [prefix + _TOP_NAMES[native_name] for prefix in _HF_PREFIXES]
    _, layer, rest = native_name.split(".", 2)
    stem = _LAYER_NAMES[rest.removesuffix(".weight")]
    return [f"{prefix}layers.{layer}.{stem}.weight" for prefix in _HF_PREFIXES]
