"""Writes tiny random checkpoints of the dense Llama and Mistral family, in HF or Mistral layout.

The same seed gives the same bytes on every machine, and in both layouts the same model. With
--draft the EAGLE head of that model is written, too. What an option means stands in
tiny/options.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from make_tekken import make_tekken
from safetensors.numpy import save_file
from tiny.files import hf_config, hf_name, native, native_config
from tiny.fp8 import stored_draft, stored_tensors, stored_values
from tiny.options import TinyModel, check
from tiny.weights import Array, Tensors, random_ids, random_words, tiny_weights

__all__ = [
    "Array",
    "Tensors",
    "TinyModel",
    "make_tiny_draft",
    "make_tiny_model",
    "native",
    "native_config",
    "random_ids",
    "random_words",
    "stored_draft",
    "stored_tensors",
    "stored_values",
    "tiny_weights",
]


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def write_tensors(path: Path, stem: str, tensors: Tensors, shards: int) -> None:
    """Writes path/STEM.safetensors, or so many shards and their index. The last shard holds all
    the activation scales of the Mistral layout, as in its real files."""
    if shards == 1:
        save_file(tensors, path / f"{stem}.safetensors")
        return
    parts: list[Tensors] = [{} for _ in range(shards)]
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[-1 if name.endswith(".qscale_act") else i % shards][name] = tensor
    where = {}
    for shard, part in enumerate(parts):
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, path / file)
        where.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(path / f"{stem}.safetensors.index.json", index)


def make_tiny_model(directory: str | Path, **options: Any) -> Path:
    """Writes the checkpoint of TinyModel(**options) into `directory` (made if missing) and returns
    its path. With shards > 1 an index names the file of every tensor. ValueError on bad options."""
    model = TinyModel(**options)
    check(model)
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(model)
    if model.layout != "mistral":
        write_json(path / "config.json", hf_config(model))
        named = {hf_name(model, name): tensor for name, tensor in tensors.items()}
        write_tensors(path, "model", named, model.shards)
    if model.layout != "hf":
        write_json(path / "params.json", native_config(model))
        named = dict(native(model, name, tensor) for name, tensor in tensors.items())
        write_tensors(path, "consolidated", named, model.shards)
    if model.tokenizer:
        make_tekken(path / "tekken.json", "v15", model.vocab)
    return path


def make_tiny_draft(directory: str | Path, draft_layers: int = 2, **options: Any) -> Path:
    """Writes the EAGLE draft head of the target TinyModel(**options) into `directory` (made if
    missing) and returns its path: params.json and one consolidated file, always in the Mistral
    layout, without embeddings and head. ValueError on bad options."""
    model = TinyModel(**options)
    check(model)
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    config = native_config(replace(model, layers=draft_layers, vision_layers=0))
    write_json(path / "params.json", config)
    tensors = stored_draft(model, draft_layers)
    named = dict(native(model, name, tensor) for name, tensor in tensors.items())
    write_tensors(path, "consolidated", named, 1)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="write a tiny random checkpoint")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--draft", type=Path, metavar="DIR", help="write its EAGLE head here, too")
    for field in fields(TinyModel):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    directory, draft = options.pop("directory"), options.pop("draft")
    try:
        make_tiny_model(directory, **options)
        if draft is not None:
            make_tiny_draft(draft, **options)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps({"directory": str(directory), **asdict(replace(TinyModel(), **options))}))


if __name__ == "__main__":
    main()
