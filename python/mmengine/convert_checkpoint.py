"""A checkpoint directory in HF or Mistral layout as a source of the converter.

Dense Llama and Mistral models with F32, F16 or BF16 weights. The loader's own reader checks config
and files first: what it refuses is refused here with the same error. HF files keep the rows of the
query and key projections in half-split RoPE order; they are put back into the native order
(adjacent pairs) head by head.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_source import Source, SourceTensor, check_shape, native_shapes
from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DTYPES = ("F32", "F16", "BF16")
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
    from mmengine.engine import inspect

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
    params = _params(config, directory=directory)
    files, located = _locate(directory, native)
    tensors = {}
    for name, shape in native_shapes(params).items():
        stored = [choice for choice in _stored_names(name, native) if choice in located]
        if not stored:
            raise ModelFormatError(
                f"{directory.name}: tensor {quoted(_stored_names(name, native)[0])} is missing; "
                "download the checkpoint again",
                code="missing_tensor",
                file=str(directory),
                tensor=_stored_names(name, native)[0],
            )
        tensor, label = located[stored[0]]
        check_shape(label, stored[0], tuple(tensor.get_shape()), shape)
        if tensor.get_dtype() not in _DTYPES:
            raise UnsupportedModelError(
                f"{label}: dtype {tensor.get_dtype()}, expected one of {', '.join(_DTYPES)}",
                tensor=stored[0],
            )
        permuted = not native and name.endswith(("attention.wq.weight", "attention.wk.weight"))
        step = params["head_dim"] if permuted else 1
        tensors[name] = SourceTensor(shape, label, _reader(tensor, len(shape), step), step)
    _check_tokenizer(directory, params)
    texts = {name: read_bytes(directory / name) for name in _TEXTS if (directory / name).is_file()}
    return Source(directory.name, [source, *files], params, tensors, texts)


def _reader(tensor: Any, rank: int, head_dim: int) -> Any:
    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        import numpy as np

        values = tensor[:].reshape(1, -1) if rank == 1 else tensor[start:stop]
        if head_dim > 1:
            split = values.reshape(-1, 2, head_dim // 2, values.shape[1])
            values = split.transpose(0, 2, 1, 3).reshape(values.shape)
        return np.ascontiguousarray(values, dtype=np.float32)

    return read


def _params(config: dict[str, Any], *, directory: Path) -> dict[str, Any]:
    """The config as the loader reads it, in the words of params.json."""
    if config["rope_factor"] != 1 or config["rope_attention_factor"] != 1:
        raise UnsupportedModelError(
            f"{directory.name}: its RoPE is scaled (YaRN, factor {config['rope_factor']:g}), which "
            "is not supported in a conversion; load the directory itself",
            where=directory.name,
            file=str(directory),
        )
    if config["rope_scaling_beta"] != 0:
        raise UnsupportedModelError(
            f"{directory.name}: its queries are scaled by position (llama_4_scaling), which is not "
            "supported in a conversion; load the directory itself",
            where=directory.name,
            file=str(directory),
        )
    return {
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


def _check_tokenizer(directory: Path, params: dict[str, Any]) -> None:
    """Refuses what the engine made of this could not be opened with."""
    from mmengine.tokenizer import Tokenizer
    from mmengine.vocabulary import load_tokenizer

    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        return
    name = "tokenizer.json" if isinstance(tokenizer, Tokenizer) else "tekken.json"
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


def _locate(directory: Path, native: bool) -> tuple[list[Path], dict[str, tuple[Any, str]]]:
    """The files with weights, and for each tensor its reader and its label for messages.

    Which file a tensor is taken from is the index's word where there is one, as in the loader.
    """
    # Registers bfloat16 with numpy, by whose name safetensors looks it up.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open

    stem = "consolidated" if native else "model"
    index = directory / f"{stem}.safetensors.index.json"
    assigned = read_object(index)["weight_map"] if index.is_file() else None
    if assigned is not None:
        files = sorted({directory / name for name in assigned.values()})
    else:
        files = sorted(directory.glob(f"{stem}*.safetensors"))
        files = [path for path in files if native or _HF_SHARD.fullmatch(path.name)]
    located: dict[str, tuple[Any, str]] = {}
    for path in files:
        try:
            opened: Any = safe_open(path, framework="numpy")
            for name in opened.keys():  # noqa: SIM118  it is no dict
                if assigned is None or assigned.get(name) == path.name:
                    label = f"{path.name}: tensor {quoted(name)}"
                    located[name] = (opened.get_slice(name), label)
        except (SafetensorError, OSError) as error:
            raise ModelFormatError(
                f"{path.name}: not a safetensors file: {quoted(str(error))}", file=str(path)
            ) from error
    return files, located


def _stored_names(native_name: str, native: bool) -> list[str]:
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
