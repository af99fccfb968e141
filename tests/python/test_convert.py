"""Conversion: the numbers, the files, refused sources, and nothing half-written whatever fails."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from safetensors.numpy import save_file

import tiny_model
from mmengine import engine
from mmengine.convert import convert, quantize_fp8
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
from tiny_model import entries, run_python, sha256

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K]
BF16 = ml_dtypes.bfloat16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.gguf"
    path.parent.mkdir()
    tiny_model.write_gguf(path)
    return path


DTYPES = {"F32": np.float32, "BF16": BF16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    path = directory / "consolidated.safetensors"
    with safe_open(path, framework="numpy"):  # the reference reader accepts the header
        data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[begin + first : begin + last], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_types(tmp_path: Path, kind: Kind, tied: bool) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", kind, tied)
    exact = tensors_of(convert(tmp_path / "m.gguf", tmp_path / "f32", "f32"))
    rounded = tensors_of(convert(tmp_path / "m.gguf", tmp_path / "bf16", "bf16"))
    assert exact.keys() == rounded.keys() == meant.keys()
    for name, values in meant.items():
        assert exact[name].dtype == np.float32
        np.testing.assert_array_equal(exact[name], values)
        if values.ndim == 1:
            assert rounded[name].dtype == np.float32
            np.testing.assert_array_equal(rounded[name], values)
        else:
            np.testing.assert_array_equal(rounded[name], values.astype(BF16))


def test_fp8_rows(tmp_path: Path) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32)
    made = tensors_of(convert(tmp_path / "m.gguf", tmp_path / "fp8", "fp8"))
    matrices = [name for name, values in meant.items() if values.ndim == 2]
    scales = {name.removesuffix(".weight") + ".qscale_weight" for name in matrices}
    assert made.keys() == meant.keys() | scales
    for name in matrices:
        scale = made[name.removesuffix(".weight") + ".qscale_weight"]
        assert (scale.dtype, scale.shape) == (np.float32, meant[name].shape[:1])
        np.testing.assert_array_equal(scale, np.abs(meant[name]).max(axis=1) / np.float32(448))
        back = made[name].astype(np.float32) * scale[:, None]
        assert np.abs(back - meant[name]).max() <= (np.abs(meant[name]).max() / 448) * 16
        close = np.abs(meant[name]) > scale[:, None] * 2.0**-6
        relative = np.abs(back[close] / meant[name][close] - 1)
        assert relative.max() <= 2.0**-4 * 1.001
    params = json.loads((tmp_path / "fp8" / "params.json").read_text())
    assert params["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"}


def test_fp8_codes_are_the_nearest() -> None:
    draw = np.random.default_rng(1)
    values = (draw.normal(0, 1, (7, 33)) * 2.0 ** draw.integers(-9, 3, (7, 33))).astype(np.float32)
    values[3] = 0.0
    values[4] = 1e-45  # the scale underflows to zero
    codes, scale = quantize_fp8(values)
    assert scale[3] == scale[4] == 1.0
    assert not codes[3:5].any()
    # Every finite E4M3 number, from its bits: 4 of exponent (bias 7), 3 of mantissa.
    bits = np.arange(127)
    exponent, mantissa = bits >> 3, bits & 7
    normal = 2.0 ** (exponent - 7.0) * (1 + mantissa / 8)
    table = np.where(exponent > 0, normal, 2.0**-6 * (mantissa / 8))
    scaled = (values / scale[:, None]).astype(np.float64)
    got = table[codes & 127] * np.where(codes & 128, -1, 1)
    nearest = np.abs(np.abs(scaled)[..., None] - table).min(axis=-1)
    np.testing.assert_array_equal(np.abs(got - scaled), nearest)
    assert np.abs(got).max() == 448


def test_engine_directory(tmp_path: Path, source: Path) -> None:
    made = convert(source, tmp_path / "out")
    assert made == (tmp_path / "out").resolve()
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["weight_dtype"] == "bf16"
    assert manifest["source"] == {
        "name": "model.gguf",
        "size": source.stat().st_size,
        "sha256": sha256(source),
    }
    assert sorted([*manifest["files"], "manifest.json"]) == entries(made)
    for name, entry in manifest["files"].items():
        assert entry == {"size": (made / name).stat().st_size, "sha256": sha256(made / name)}
    assert json.loads((made / "params.json").read_text()) == {
        "dim": tiny_model.DIM,
        "n_layers": tiny_model.LAYERS,
        "n_heads": tiny_model.HEADS,
        "n_kv_heads": tiny_model.KV_HEADS,
        "head_dim": tiny_model.HEAD_DIM,
        "hidden_dim": tiny_model.HIDDEN,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(tiny_model.TOKENS),
        "tied_embeddings": True,
        "max_position_embeddings": 128,
        "mmengine": {"format": 1, "eos_token_ids": [2, 0]},
    }
    header_bytes = int.from_bytes((made / "consolidated.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0
    # The file's template would run a program; its text goes nowhere.
    assert "cycler" not in "".join(path.read_text() for path in made.glob("*.json"))


def test_same_source_same_bytes(tmp_path: Path, source: Path) -> None:
    first, second = (convert(source, tmp_path / name) for name in ("a", "b"))
    assert [sha256(first / n) for n in entries(first)] == [
        sha256(second / n) for n in entries(second)
    ]


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"metadata": {"general.architecture": "gemma3"}}, "gemma3"),
    "rope scaling": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "yarn"),
    "rope factors": ({"tensors": {"rope_freqs.weight": np.ones(32, np.float32)}}, "rope_freqs"),
    "experts": ({"metadata": {"llama.expert_count": 8}}, "expert_count"),
    "sliding window": ({"metadata": {"llama.attention.sliding_window": 64}}, "sliding_window"),
    "partial rope": ({"metadata": {"llama.rope.dimension_count": 16}}, "dimension_count"),
    "heads by layer": ({"metadata": {"llama.attention.head_count": [4, 2]}}, "differs by layer"),
    "a bias": ({"tensors": {"blk.0.attn_q.bias": np.ones(256, np.float32)}}, "attn_q.bias"),
    "type": ({"kind": Kind.Q5_0}, "token_embd.*Q5_0|Q5_0"),
    "tokenizer model": ({"metadata": {"tokenizer.ggml.model": "llama"}}, "llama"),
    "pre-tokeniser": ({"metadata": {"tokenizer.ggml.pre": "qwen2"}}, "qwen2"),
    "part of a split file": ({"metadata": {"split.count": 3}}, "parts"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_models(tmp_path: Path, name: str) -> None:
    changes, words = UNSUPPORTED[name]
    tiny_model.write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert entries(tmp_path) == ["m.gguf"]


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"metadata": {"llama.block_count": 0}}, "n_layers is 0"),
    "10^9 layers": ({"metadata": {"llama.block_count": 10**9}}, "n_layers is 1000000000"),
    "no heads": ({"metadata": {"llama.attention.head_count": 0}}, "n_heads is 0"),
    "heads not a multiple": ({"metadata": {"llama.attention.head_count_kv": 3}}, "n_kv_heads"),
    "no width": ({"metadata": {"llama.embedding_length": None}}, "dim is None"),
    "width of other type": ({"metadata": {"llama.embedding_length": "256"}}, 'dim is "256"'),
    "head size": ({"metadata": {"llama.attention.key_length": 258}}, "head_dim is 258"),
    "large epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": 0.5}}, "norm_eps"),
    "epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("nan")}}, "norm_eps"),
    "theta": ({"metadata": {"llama.rope.freq_base": -1.0}}, "rope_theta is -1.0"),
    "hidden not of the file": ({"metadata": {"llama.feed_forward_length": 256}}, r"\[512, 256\]"),
    "missing tensor": ({"tensors": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight"),
    "vocabulary": ({"metadata": {"tokenizer.ggml.tokens": [*tiny_model.TOKENS, "extra"],
                                 "tokenizer.ggml.token_type": None}}, "269 tokens.*268 rows"),
    "token twice": ({"metadata": {"tokenizer.ggml.tokens": ["a"] * 268}}, "0 and 1"),
    "types of other length": ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "2 entries"),
    "merge of one part": ({"metadata": {"tokenizer.ggml.merges": ["th"]}}, '"th"'),
    "merge without token": ({"metadata": {"tokenizer.ggml.merges": ["q z"]}}, "merges"),
    "no merges": ({"metadata": {"tokenizer.ggml.merges": None}}, "merges"),
    "end id": ({"metadata": {"tokenizer.ggml.eos_token_id": 268}}, "eos_token_id.*268"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_models(tmp_path: Path, name: str) -> None:
    changes, words = MALFORMED[name]
    tiny_model.write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelFormatError, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert entries(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bf16", "f32", "fp8"])
def test_non_finite_weight(tmp_path: Path, dtype: str, value: float) -> None:
    values = tiny_model.weights()["layers.1.attention.wv.weight"]
    values[5, 7] = value
    changed: dict[str, np.ndarray | None] = {"blk.1.attn_v.weight": values}
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors=changed)
    with pytest.raises(ModelFormatError, match=r"blk\.1\.attn_v\.weight: .*\[5, 7\]") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype)
    assert caught.value.code == "non_finite"
    assert caught.value.tensor == "blk.1.attn_v.weight"
    assert entries(tmp_path) == ["m.gguf"]


def test_a_number_too_large_for_bf16(tmp_path: Path) -> None:
    norm = np.full(tiny_model.DIM, 3.4e38, np.float32)
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors={"output_norm.weight": norm})
    convert(tmp_path / "m.gguf", tmp_path / "norms stay f32")
    values = tiny_model.weights()["tok_embeddings.weight"]
    values[0, 0] = 3.4e38
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors={"token_embd.weight": values})
    with pytest.raises(ModelFormatError, match="expected finite numbers"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


# -- checkpoint directories ------------------------------------------------------------------------


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
    made = tensors_of(convert(tmp_path / "hf", tmp_path / "out", "f32"))
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
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
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


def test_scaled_rope_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "hf")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    config_with(rope_scaling=yarn)(tmp_path / "hf")
    with pytest.raises(UnsupportedModelError, match=r"rope_type|YaRN"):
        convert(tmp_path / "hf", tmp_path / "out")
    config_with()(tmp_path / "hf")
    found = engine.inspect(tmp_path / "hf")
    for name in ("rope_factor", "rope_attention_factor"):
        scaled = found | {"config": found["config"] | {name: 4.0}}
        monkeypatch.setattr(engine, "inspect", lambda path, scaled=scaled: scaled)
        with pytest.raises(UnsupportedModelError, match="YaRN"):
            convert(tmp_path / "hf", tmp_path / "out")
    assert entries(tmp_path) == ["hf"]


def test_fp8_checkpoint_is_not_converted(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "fp8", "fp8")
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        convert(tmp_path / "fp8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    made = tensors_of(convert(tmp_path / "hf", tmp_path / "out", "f32"))
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
