"""A checkpoint directory as a source: the loader's own judgement of it, tokenizers, small files."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_tiny_model import make_tiny_model
from safetensors import safe_open
from safetensors.numpy import save_file

import tiny_model
from mmengine import inspect
from mmengine.convert import convert
from mmengine.convert_tokenizer import build_tokenizer
from mmengine.engine import Engine
from mmengine.errors import (
    Error,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from mmengine.files import read_bytes
from mmengine.gguf_reader import GgufFile
from mmengine.mistral_sentence_piece import MistralSentencePiece
from mmengine.mistral_tokenizer import MistralTokenizer
from mmengine.vocabulary import load_tokenizer
from test_mistral_sentence_piece import shipped
from test_mistral_tokenizer import BAD as BAD_TEKKENS
from test_mistral_tokenizer import SPECIALS, WORDS, small_content
from tiny_model import entries, run_python, sha256

BF16 = ml_dtypes.bfloat16


def write_hf(directory: Path, shards: int = 1) -> dict[str, np.ndarray]:
    """An HF checkpoint in BF16 with q and k rows in half-split order; the native values."""
    directory.mkdir()
    native = {name: v.astype(BF16) for name, v in tiny_model.weights().items()}
    stored = {}
    for name, values in native.items():
        if name.endswith(("wq.weight", "wk.weight")):
            pairs = values.reshape(-1, tiny_model.HEAD_DIM // 2, 2, tiny_model.DIM)
            values = pairs.transpose(0, 2, 1, 3).reshape(values.shape).copy()
        stored[tiny_model.hf_name(name)] = values
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    names = sorted(stored)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({name: stored[name] for name in names[i::shards]}, directory / file)
    if shards > 1:
        places = {name: files[i % shards] for i, name in enumerate(names)}
        index = directory / "model.safetensors.index.json"
        tiny_model.write_json(index, {"weight_map": places})
    tiny_model.write_json(directory / "config.json", tiny_model.hf_config())
    return native


@pytest.mark.parametrize("shards", [1, 3])
def test_hf_checkpoint(tmp_path: Path, shards: int) -> None:
    native = write_hf(tmp_path / "hf", shards)
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"chat_template": "{{ boom() }}"}')
    made = tiny_model.tensors_of(convert(tmp_path / "hf", tmp_path / "out", "f32"))
    assert made.keys() == native.keys()
    for name, values in native.items():
        np.testing.assert_array_equal(made[name], values.astype(np.float32))
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    assert params["mmengine"]["eos_token_ids"] == [2]
    assert "tokenizer_config.json" in entries(tmp_path / "out")


def test_engine_directory_is_a_source(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "f32", "f32")
    direct = convert(source, tmp_path / "direct", "fp8")
    again = convert(tmp_path / "f32", tmp_path / "again", "fp8")
    for name in ("consolidated.safetensors", "params.json", "tokenizer.json"):
        assert sha256(direct / name) == sha256(again / name)


def test_bad_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, out = tmp_path / "hf", tmp_path / "out"
    write_hf(directory, 3)
    config = tiny_model.hf_config()

    tiny_model.write_json(directory / "config.json", config | {"auto_map": {"A": "code.py"}})
    convert(directory, tmp_path / "mapped")
    assert [r.getMessage() for r in caplog.records if "auto_map" in r.getMessage()]
    for change, words in (
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ):
        tiny_model.write_json(directory / "config.json", config | change)
        with pytest.raises(UnsupportedModelError, match=words):
            convert(directory, out)
    tiny_model.write_json(directory / "config.json", config)
    (directory / "model.safetensors.index.json").unlink()
    for path in directory.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(UnsupportedModelError, match="pickle formats are never loaded"):
        convert(directory, out)
    assert not out.exists()


def test_files_that_are_no_source(tmp_path: Path) -> None:
    for name, kind in (("m.pt", UnsupportedModelError), ("m.safetensors", UsageError)):
        (tmp_path / name).write_bytes(b"\x80\x04")
        with pytest.raises(kind):
            convert(tmp_path / name, tmp_path / "out")
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(ModelFormatError, match="not a GGUF file"):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    with pytest.raises(ModelNotFoundError):
        convert(tmp_path / "none", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFoundError, match="regular file"):
        convert(tmp_path / "pipe", tmp_path / "out")


FRESH = """
import sys
from pathlib import Path
from mmengine.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
assert "torch" not in sys.modules
"""


def test_bf16_checkpoint_in_a_fresh_process(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    run_python(FRESH, str(tmp_path / "hf"), str(tmp_path / "out"))
    assert "manifest.json" in entries(tmp_path / "out")


Damage = Callable[[Path], None]
SHARD = "model-00001-of-00002.safetensors"


def config_with(**changes: Any) -> Damage:
    values = tiny_model.hf_config() | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    return lambda folder: tiny_model.write_json(folder / "config.json", kept)


def shard_of(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / SHARD).write_bytes(change((folder / SHARD).read_bytes()))

    return damage


def header_of(change: Callable[[bytes], bytes]) -> Damage:
    def damage(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = change(data[8:end])
        return struct.pack("<Q", len(header)) + header + data[end:]

    return shard_of(damage)


def shard_is(make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / SHARD).rename(folder.parent / "elsewhere.safetensors")
        make(folder / SHARD)

    return damage


def index_with(name: str) -> Damage:
    index = {"weight_map": {"model.norm.weight": name}}
    return lambda folder: tiny_model.write_json(folder / "model.safetensors.index.json", index)


def text_of(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def weight_with(value: float) -> Damage:
    def damage(folder: Path) -> None:
        with safe_open(folder / SHARD, framework="numpy") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = min(name for name in stored if name.endswith("proj.weight"))
        stored[name][0, 0] = value
        save_file(stored, folder / SHARD)

    return damage


def pickles_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


DAMAGES: dict[str, Damage] = {
    "no bytes": shard_of(lambda data: b""),
    "7 bytes": shard_of(lambda data: data[:7]),
    "header length 0": shard_of(lambda data: bytes(8) + data[8:]),
    "header length over the file": shard_of(lambda data: b"\xff" * 8 + data[8:]),
    "header not JSON": header_of(lambda header: b"\xff" + header[1:]),
    "header after a space": header_of(lambda header: b" " + header),
    "duplicate key": header_of(lambda h: h.rstrip()[:-1] + b"," + h.rstrip()[1:]),
    "unknown dtype": header_of(lambda header: header.replace(b'"BF16"', b'"Q4_K"', 1)),
    "negative dimension": header_of(lambda header: header.replace(b"[256]", b"[-56]", 1)),
    "truncated": shard_of(lambda data: data[:-1]),
    "trailing bytes": shard_of(lambda data: data + b"\0"),
    "deep header": header_of(lambda header: b'{"a":' * 100_000),
    "name of another place": header_of(lambda h: h.replace(b"model.layers", b"../../layers", 1)),
    "not a number": weight_with(np.nan),
    "infinity": weight_with(np.inf),
    "missing shard": lambda folder: (folder / SHARD).unlink(),
    "pipe": shard_is(os.mkfifo),
    "folder": shard_is(os.mkdir),
    "link out": shard_is(lambda path: path.symlink_to("../elsewhere.safetensors")),
    "index leaves": index_with("../elsewhere.safetensors"),
    "index of an absolute path": index_with("/etc/passwd.safetensors"),
    "index of a pickle": index_with("pytorch_model.bin"),
    "index of a missing file": index_with("model-00009.safetensors"),
    "index lists one tensor": index_with("model-00002-of-00002.safetensors"),
    "index is no JSON": text_of("model.safetensors.index.json", "{"),
    "config is no JSON": text_of("config.json", "[" * 100_000),
    "config key twice": text_of("config.json", '{"hidden_size": 256, "hidden_size": 256}'),
    "no hidden size": config_with(hidden_size=...),
    "no heads": config_with(num_attention_heads=0),
    "10^9 layers": config_with(num_hidden_layers=10**9),
    "head size not of the tensors": config_with(head_dim=32),
    "hidden size as text": config_with(hidden_size="256"),
    "end id": config_with(eos_token_id=268),
    "unknown architecture": config_with(architectures=["GemmaForCausalLM"]),
    "no tied head": config_with(tie_word_embeddings=False),
    "pickle renamed": shard_of(lambda data: b"\x80\x04" + data),
    "zip renamed": shard_of(lambda data: b"PK\3\4" + data),
    "pickles only": pickles_only,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "tokenizer is no JSON": text_of("tokenizer.json", "{"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_the_loader_refuses_is_refused_alike(tmp_path: Path, name: str) -> None:
    write_hf(tmp_path / "hf", 2)
    DAMAGES[name](tmp_path / "hf")
    before = entries(tmp_path)
    with pytest.raises(Error) as loading:
        Engine(tmp_path / "hf", device="cpu", max_context=32)
    with pytest.raises(Error) as converting:
        convert(tmp_path / "hf", tmp_path / "out")
    assert type(converting.value) is type(loading.value)
    assert converting.value.code == loading.value.code
    assert entries(tmp_path) == before


def params_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "params.json").read_text())


def test_config_is_read_as_the_loader_reads_it(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    config_with(rope_theta=None, max_position_embeddings=None)(tmp_path / "hf")
    tiny_model.write_json(tmp_path / "hf" / "generation_config.json", {"eos_token_id": [0, 2]})
    params = params_of(convert(tmp_path / "hf", tmp_path / "out"))
    assert params["rope_theta"] == 10000.0
    assert params["max_position_embeddings"] == 32768
    assert params["mmengine"]["eos_token_ids"] == [2, 0]


def values_of(path: Path) -> dict[str, np.ndarray]:
    """float32 values of every tensor; safe_open does not give E4M3 to numpy."""
    kinds = {"F32": np.float32, "BF16": BF16, "F8_E4M3": ml_dtypes.float8_e4m3fn}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    values = {}
    for name, entry in json.loads(data[8:start]).items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[begin:end], kinds[entry["dtype"]])
        values[name] = bits.astype(np.float32).reshape(entry["shape"])
    return values


def logits_of(directory: Path) -> bytes:
    with Engine(directory, device="cpu", weight_dtype="f32", max_context=128) as model:
        return model.logits(range(3, 83)).tobytes()


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize(
    "options",
    [
        {"yarn_factor": 8.0},
        {"yarn_factor": 8.0, "mscale_all_dim": 1.0},
        {"yarn_factor": 8.0, "yarn_context": 16, "scaling_beta": 0.3},
    ],
    ids=["factor", "no attention factor", "scaled queries"],
)
def test_scaled_rope_stays_as_it_is(tmp_path: Path, layout: str, options: dict[str, Any]) -> None:
    make_tiny_model(tmp_path / "in", architecture="ministral3", layout=layout, **options)
    out = convert(tmp_path / "in", tmp_path / "out", "f32")
    assert logits_of(out) == logits_of(tmp_path / "in")
    again = convert(out, tmp_path / "again", "f32")
    assert params_of(again) == params_of(out)


def test_what_mistral_has_no_words_for_stays_as_it_is(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "in", architecture="ministral3", yarn_factor=8.0)
    path = tmp_path / "in" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"truncate": False, "attention_factor": 1.3}
    tiny_model.write_json(path, config)
    out = convert(tmp_path / "in", tmp_path / "out", "f32")
    assert inspect(out)["config"]["rope_attention_factor"] == 1.3
    assert logits_of(out) == logits_of(tmp_path / "in")


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("scales", ["tensor", "row"])
def test_fp8_stays_as_it_is(tmp_path: Path, layout: str, activations: str, scales: str) -> None:
    options = {"dtype": "fp8", "activations": activations, "fp8_scales": scales}
    options |= {"architecture": "mistral3", "vision_layers": 1}
    source = make_tiny_model(tmp_path / "in", layout=layout, **options)
    native = make_tiny_model(tmp_path / "native", layout="mistral", **options)
    out = convert(source, tmp_path / "out", "fp8")
    assert inspect(out)["quantization"] == f"fp8, {activations} activations"
    assert inspect(out)["vision"] is None
    made, stored = (values_of(path / "consolidated.safetensors") for path in (out, native))
    layers = [name for name in stored if name.startswith("layers.")]
    assert sum(name.endswith("qscale_act") for name in layers) == (
        14 if activations == "static" else 0
    )
    for name in layers:
        assert np.array_equal(made[name].ravel(), stored[name].ravel()), name
    with Engine(out, device="cpu", max_context=64) as model:
        assert np.isfinite(model.logits(range(3, 40))).all()
    assert logits_of(convert(source, tmp_path / "wide", "f32")) == logits_of(source)
    assert "quantization" not in params_of(tmp_path / "wide")


def write_tokenizer(folder: Path, tokens: list[str]) -> None:
    with GgufFile(folder.parent / "m.gguf") as file:
        metadata = file.metadata | {"tokenizer.ggml.tokens": tokens}
    metadata["tokenizer.ggml.token_type"] = [3] * 3 + [1] * (len(tokens) - 3)
    for name, data in build_tokenizer(metadata, "m.gguf")[0].items():
        (folder / name).write_bytes(data)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    write_hf(tmp_path / "hf")
    tiny_model.write_gguf(tmp_path / "m.gguf")
    write_tokenizer(tmp_path / "hf", tiny_model.TOKENS)
    convert(tmp_path / "hf", tmp_path / "good")
    write_tokenizer(tmp_path / "hf", [*tiny_model.TOKENS, "hx"])
    with pytest.raises(ModelFormatError, match=r"269 tokens.*268") as caught:
        convert(tmp_path / "hf", tmp_path / "out")
    assert caught.value.code == "vocab_size"
    write_tokenizer(tmp_path / "hf", tiny_model.TOKENS)
    tokenizer = tmp_path / "hf" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:-100])
    with pytest.raises(ModelFormatError):
        convert(tmp_path / "hf", tmp_path / "out")
    assert entries(tmp_path) == ["good", "hf", "m.gguf"]


def test_end_token_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    native = write_hf(tmp_path / "hf")
    padded = np.zeros((300, tiny_model.DIM), BF16)
    with safe_open(tmp_path / "hf" / "model-00001-of-00001.safetensors", framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    padded[: len(tiny_model.TOKENS)] = native["tok_embeddings.weight"]
    stored["model.embed_tokens.weight"] = padded
    save_file(stored, tmp_path / "hf" / "model-00001-of-00001.safetensors")
    tiny_model.write_gguf(tmp_path / "m.gguf")
    write_tokenizer(tmp_path / "hf", tiny_model.TOKENS)
    config_with(vocab_size=300)(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "good")
    config_with(vocab_size=300, eos_token_id=299)(tmp_path / "hf")
    with pytest.raises(ModelFormatError, match=r"268 tokens.*299"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_inside_a_multimodal_one(tmp_path: Path) -> None:
    native = write_hf(tmp_path / "hf")
    path = tmp_path / "hf" / "model-00001-of-00001.safetensors"
    with safe_open(path, framework="numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    longer = {
        f"model.language_model.{name.removeprefix('model.')}": stored[name] for name in stored
    }
    save_file(longer | {"model.vision_tower.x": np.ones(3, np.float32)}, path)
    made = tiny_model.tensors_of(convert(tmp_path / "hf", tmp_path / "out", "f32"))
    assert made.keys() == native.keys()


def test_small_files_are_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelFormatError, match="regular file") as caught:
            read_bytes(path)
        assert caught.value.code == "path"
    with pytest.raises(ModelNotFoundError):
        read_bytes(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"text")
    assert read_bytes(tmp_path / "file") == b"text"
    with (tmp_path / "large").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(ModelFormatError, match="at most"):
        read_bytes(tmp_path / "large")


def write_mistral(directory: Path, **options: Any) -> Path:
    """A checkpoint in the Mistral layout with a tekken.json of 2040 tokens."""
    make_tiny_model(directory, **{"layout": "mistral", "vocab": SPECIALS + WORDS, **options})
    (directory / "tekken.json").write_text(json.dumps(small_content()))
    return directory


def test_tekken_is_copied(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "in")
    convert(folder, tmp_path / "out")
    assert sha256(tmp_path / "out" / "tekken.json") == sha256(folder / "tekken.json")
    with Engine(tmp_path / "out", device="cpu", max_context=32) as made:
        assert isinstance(made.tokenizer, MistralTokenizer)


def test_mistrals_sentence_piece_file_is_copied(tmp_path: Path) -> None:
    for name, model_type in (("own", "mistral"), ("other", "llama")):
        folder = tmp_path / name
        make_tiny_model(folder, layout="hf", vocab=32000)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": model_type, "architectures": [f"{model_type.title()}ForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(shipped("v1"), folder / "tokenizer.model")
        convert(folder, tmp_path / f"{name}-made")
    made = tmp_path / "own-made" / "tokenizer.model"
    assert sha256(made) == sha256(shipped("v1"))
    assert isinstance(load_tokenizer(made.parent), MistralSentencePiece)
    assert load_tokenizer(tmp_path / "other-made") is None


@pytest.mark.parametrize("name", ["not JSON", *BAD_TEKKENS])
def test_a_broken_tekken_is_refused_as_the_loader_refuses_it(tmp_path: Path, name: str) -> None:
    folder = write_mistral(tmp_path / "in")
    if name == "not JSON":
        (folder / "tekken.json").write_text("{")
        exit_code = 65
    else:
        change, exit_code, _ = BAD_TEKKENS[name]
        content = copy.deepcopy(small_content())
        change(content)
        (folder / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(Error, match=r"^tekken\.json: ") as converting:
        convert(folder, tmp_path / "out")
    assert converting.value.exit_code == exit_code
    with pytest.raises(Error) as loading:
        Engine(folder, device="cpu", max_context=32)
    assert str(loading.value) == str(converting.value)
    assert entries(tmp_path) == ["in"]


@pytest.mark.parametrize(("layout", "file"), [("mistral", "params.json"), ("hf", "config.json")])
@pytest.mark.parametrize("vocab", [2039, 2041])
def test_tekken_of_another_size(tmp_path: Path, layout: str, file: str, vocab: int) -> None:
    folder = write_mistral(tmp_path / "in", vocab=vocab, layout=layout)
    match = rf"2040 token ids, expected vocab_size {vocab} of {file}"
    for refuse in (
        lambda: convert(folder, tmp_path / "out"),
        lambda: Engine(folder, device="cpu", max_context=32),
    ):
        with pytest.raises(ModelFormatError, match=match) as caught:
            refuse()
        assert (caught.value.code, caught.value.exit_code) == ("vocab_size", 65)
    assert entries(tmp_path) == ["in"]
