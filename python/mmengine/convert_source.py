"""What every kind of source gives to the converter: one model in the Mistral layout's words.

A source has the parameters of params.json, checked here once, and a reader for each tensor of the
native layout. Readers give float32 rows on demand, so that no tensor is ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_groups import GroupDtype, Groups
from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.messages import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.uint8]

_MAX_MESSAGE_NAMES = 8

# Field: (least, most). Those of the loader: what is written here can be opened.
_RANGES = {
    "dim": (1, 1 << 20),
    "n_layers": (1, 1024),
    "n_heads": (1, 4096),
    "n_kv_heads": (1, 4096),
    "head_dim": (2, 256),
    "hidden_dim": (1, 1 << 22),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 30),
}
_NUMBER_RANGES = {"norm_eps": (1e-12, 0.1), "rope_theta": (1.0, 1e12)}


@dataclass(frozen=True)
class StoredFp8:
    """A matrix that the source has in E4M3 already, with its scales."""

    codes: Callable[[int, int], Codes]  # rows [start, stop) as uint8 [stop - start, columns]
    weight_scale: Rows  # float32, one or [rows]; value = code * scale
    input_scale: Rows | None  # float32, one: the input's fixed scale


@dataclass(frozen=True)
class StoredGroups:
    """A matrix that the source has in int8 or int4 already."""

    dtype: GroupDtype
    read: Callable[[int, int], Groups]  # rows [start, stop)


@dataclass(frozen=True)
class SourceTensor:
    """A matrix [rows, columns] or a vector (shape of rank 1, read as one row)."""

    shape: tuple[int, ...]
    stored_name: str  # in the file
    label: str  # "FILE: tensor NAME", for messages
    read: Callable[[int, int], Rows]  # rows [start, stop) as float32 [stop - start, columns]
    row_step: int = 1  # start and stop are multiples of this
    fp8: StoredFp8 | None = None
    groups: StoredGroups | None = None


@dataclass
class Source:
    """A model to convert; `close` releases its files."""

    name: str
    inputs: list[Path]  # every file that is read, for the manifest
    params: dict[str, Any]  # params.json; "quantization" only where linears are fp8
    tensors: dict[str, SourceTensor]  # by native name, in the order of the output
    texts: dict[str, bytes]  # tokenizer files to write
    close: Callable[[], None] = field(default=lambda: None)


def native_shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Native tensor name -> shape for checked `params`; vectors first, then matrices by layer."""
    dim, hidden = params["dim"], params["hidden_dim"]
    query = params["n_heads"] * params["head_dim"]
    key = params["n_kv_heads"] * params["head_dim"]
    layers = range(params["n_layers"])
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (dim,)}
    for layer in layers:
        shapes[f"layers.{layer}.attention_norm.weight"] = (dim,)
        shapes[f"layers.{layer}.ffn_norm.weight"] = (dim,)
    shapes["tok_embeddings.weight"] = (params["vocab_size"], dim)
    for layer in layers:
        shapes[f"layers.{layer}.attention.wq.weight"] = (query, dim)
        shapes[f"layers.{layer}.attention.wk.weight"] = (key, dim)
        shapes[f"layers.{layer}.attention.wv.weight"] = (key, dim)
        shapes[f"layers.{layer}.attention.wo.weight"] = (dim, query)
        shapes[f"layers.{layer}.feed_forward.w1.weight"] = (hidden, dim)
        shapes[f"layers.{layer}.feed_forward.w2.weight"] = (dim, hidden)
        shapes[f"layers.{layer}.feed_forward.w3.weight"] = (hidden, dim)
    if not params["tied_embeddings"]:
        shapes["output.weight"] = (params["vocab_size"], dim)
    return shapes


def check_params(params: dict[str, Any], file: str) -> None:
    """Types and ranges of every field, so that later code may compute with them."""

    def bad(name: str, expected: str) -> ModelFormatError:
        return ModelFormatError(
            f"{file}: {name} is {quoted(params.get(name))}, expected {expected}",
            where=file,
            code="config",
            file=file,
        )

    for name, (least, most) in _RANGES.items():
        count: Any = params.get(name)
        if type(count) is not int or not least <= count <= most:
            raise bad(name, f"{least} to {most}")
    for name, (low, high) in _NUMBER_RANGES.items():
        value: Any = params.get(name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise bad(name, f"a number from {low:g} to {high:g}")
    if params["head_dim"] % 2:
        raise bad("head_dim", "an even number")
    if params["n_heads"] % params["n_kv_heads"]:
        raise bad("n_heads", f"a multiple of n_kv_heads ({params['n_kv_heads']})")
    if type(params.get("tied_embeddings")) is not bool:
        raise bad("tied_embeddings", "true or false")


def check_names(found: Iterable[str], needed: Iterable[str], file: str) -> None:
    """All tensors there (else ModelFormatError naming them), none besides (UnsupportedModelError).

    An extra tensor is a part of an architecture that would be left out silently.
    """
    missing = sorted(set(needed) - set(found))
    if missing:
        raise ModelFormatError(
            f"{file}: {len(missing)} tensors are missing: {_listed(missing)}",
            where=file,
            code="missing_tensor",
            file=file,
            tensor=missing[0],
        )
    extra = sorted(set(found) - set(needed))
    if extra:
        raise UnsupportedModelError(
            f"{file}: tensors of an unknown architecture: {_listed(extra)}, "
            "expected a dense Llama or Mistral model",
            where=file,
            file=file,
            tensor=extra[0],
        )


def check_shape(label: str, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """ModelFormatError unless the two shapes are equal."""
    if got != expected:
        raise ModelFormatError(
            f"{label}: shape {list(got)}, expected {list(expected)}", code="shape", tensor=name
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:_MAX_MESSAGE_NAMES])
    more = len(names) - _MAX_MESSAGE_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
