"""mm-run verify: whole copies pass; every kind of damage is named by the check it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_tiny_model import make_tiny_model
from safetensors.numpy import load_file, save_file

import mmengine
import tiny_model
from mmengine import verify, verify_values
from mmengine.cli import main
from mmengine.convert import convert
from mmengine.verify import verify_model
from support.family import MEDIUM_HF, write_config
from support.family_checkpoints import write_draft, write_family

E4M3 = ml_dtypes.float8_e4m3fn


def found(path: Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.detail) for check in verify_model(path)}


def failed(path: Path) -> set[str]:
    return {name for name, (status, _) in found(path).items() if status == "fail"}


def edit(path: Path, change: Any) -> None:
    """Rewrites one safetensors file with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def whole(tmp_path) -> Path:
    return make_tiny_model(tmp_path / "whole", dtype="bf16", shards=2)


@pytest.fixture
def fp8(tmp_path) -> Path:
    """A small checkpoint in the form of the real one: e4m3 linears with two BF16 scales each."""
    options = {"hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    path = make_tiny_model(
        tmp_path / "fp8", dtype="bf16", layout="mistral", architecture="mistral", **options
    )

    def quantise(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith("layers.") and "norm" not in n]:
            scale = np.array(0.0078125, ml_dtypes.bfloat16)
            tensors[name] = (tensors[name].astype(np.float32) / 0.0078125).astype(E4M3)
            stem = name.removesuffix("weight")
            tensors[stem + "qscale_weight"] = scale
            tensors[stem + "qscale_act"] = np.array(0.5, ml_dtypes.bfloat16)

    write_all(path / "consolidated.safetensors", quantise)
    config = json.loads((path / "params.json").read_text())
    config["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    (path / "params.json").write_text(json.dumps(config))
    return path


def read_all(path: Path) -> dict[str, Any]:
    """Like load_file, which knows no e4m3."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    kinds = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": E4M3, "F32": np.float32}
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        first, last = entry["data_offsets"]
        raw = np.frombuffer(data[begin + first : begin + last], kinds[entry["dtype"]])
        tensors[name] = raw.reshape(entry["shape"])
    return tensors


def write_all(path: Path, change: Any) -> None:
    tensors = read_all(path)
    change(tensors)
    names = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float32": "F32"}
    header, data = {}, b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        header[name] = {
            "dtype": names[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# ---- whole copies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bf16"},
        {"dtype": "f16", "tied": True, "shards": 3},
        {"dtype": "bf16", "layout": "mistral", "architecture": "mistral"},
    ],
)
def test_whole_checkpoints(tmp_path, options):
    checks = found(make_tiny_model(tmp_path, **options))
    assert {status for status, _ in checks.values()} == {"ok", "not run"}
    skipped = {name for name, (status, _) in checks.items() if status == "not run"}
    assert skipped == {"vocabulary", "scales", "checksums", "logits"}
    assert all(detail for _, detail in checks.values())


def test_whole_fp8_checkpoint(fp8):
    checks = found(fp8)
    assert checks["scales"] == ("ok", "28 finite and positive; those of one input agree")
    assert checks["values"] == ("ok", "all 49 tensors are finite")
    assert checks["contents"][0] == checks["spread"][0] == "ok"
    assert not failed(fp8)


@pytest.mark.parametrize("form", ["hf", "hf older", "mistral"])
def test_whole_checkpoints_of_the_family(tmp_path, form):
    path = Path(write_family(tmp_path, form))
    checks = found(path)
    assert not failed(path)
    assert checks["contents"][0] == checks["scales"][0] == checks["spread"][0] == "ok"
    # As long as the tower is not read, its config says so.
    assert {name for name, (status, _) in checks.items() if status == "warn"} <= {"config"}


def test_whole_draft_head(tmp_path):
    path = Path(write_draft(tmp_path))
    checks = found(path)
    assert not failed(path)
    assert checks["contents"][0] == checks["scales"][0] == "ok"
    assert "draft head" in checks["loader"][1]


def test_tensors_that_nobody_knows_are_a_warning(tmp_path):
    path = make_tiny_model(tmp_path)
    edit(path / "model.safetensors", lambda tensors: tensors.update(x=np.zeros(3, np.float32)))
    checks = found(path)
    assert checks["loader"][0] == checks["contents"][0] == "warn"
    assert not failed(path)


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.json"])
def test_a_tokenizer_that_cannot_be_read(whole, name):
    (whole / name).symlink_to("absent")
    status, detail = found(whole)["vocabulary"]
    assert status == "fail"
    assert f"{name} cannot be read" in detail


def test_engine_directory_with_tokenizer(source, tmp_path):
    made = convert(source, tmp_path / "made", "fp8")
    checks = found(made)
    assert not failed(made)
    assert checks["checksums"] == ("ok", "4 files are as manifest.json has them")
    size = len(tiny_model.TOKENS)
    assert checks["vocabulary"] == ("ok", f"tokenizer.json has {size} tokens, the config {size}")


def test_both_layouts_say_which_is_read(tmp_path):
    make_tiny_model(tmp_path, dtype="bf16", architecture="mistral")
    assert found(tmp_path)["layout"] == ("ok", "Hugging Face layout")
    make_tiny_model(tmp_path, dtype="bf16", architecture="mistral", layout="mistral")
    status, detail = found(tmp_path)["layout"]
    assert status == "ok"
    assert "the Mistral one is read, the Hugging Face one never" in detail
    assert not failed(tmp_path)


def test_early_config_of_medium_3_5_is_a_warning(tmp_path):
    changes = {"text_config.rope_parameters.mscale_all_dim": 1.0}
    path = Path(write_config(tmp_path, MEDIUM_HF, **changes))
    status, detail = found(path)["config"]
    assert status == "warn"
    assert "YaRN x64 over 4096 tokens, attention factor 1.415888" in detail
    assert "mscale_all_dim" in detail


def test_spread_is_that_of_the_dequantised_weights(fp8):
    name = "layers.1.attention.wq.weight"
    tensors = read_all(fp8 / "consolidated.safetensors")
    expected = float((tensors[name].astype(np.float64) * 0.0078125).std())
    headers = verify_values.scan(fp8, ["consolidated.safetensors"], *_read(fp8), lambda count: None)
    assert headers.spreads[name] == pytest.approx(expected, rel=0.02)
    assert len(headers.spreads) == 14


def _read(path: Path) -> tuple[Any, Any]:
    from mmengine.verify_files import read_header

    tensors = read_header(path / "consolidated.safetensors")
    return tensors, verify_values.read_scales(path, tensors)


# ---- damage ----------------------------------------------------------------------------------

SHARD = "model-00001-of-00002.safetensors"


def test_missing_files_are_all_named(whole):
    for name in sorted(path.name for path in whole.glob("*-of-*")):
        (whole / name).unlink()
    status, detail = found(whole)["files"]
    assert status == "fail"
    assert "model-00001-of-00002.safetensors is missing" in detail
    assert "model-00002-of-00002.safetensors is missing" in detail


@pytest.mark.parametrize(("change", "word"), [(-3, "truncated"), (5, "trailing bytes")])
def test_wrong_sizes(whole, change, word):
    path = whole / SHARD
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    status, detail = found(whole)["headers"]
    assert status == "fail"
    assert f"{SHARD}: {word}: expected {len(data)} bytes, found {len(data) + change}" in detail


def test_other_files_are_still_checked_beside_a_broken_one(whole):
    (whole / SHARD).write_bytes(b"not safetensors")
    checks = found(whole)
    assert checks["headers"][0] == "fail"
    assert checks["contents"] == ("not run", "it needs a config and whole files")
    assert checks["values"][0] == "ok"


def test_a_tensor_that_only_the_index_knows(whole):
    edit(whole / SHARD, lambda tensors: tensors.pop(next(iter(tensors))))
    assert "of the index is not in it" in found(whole)["headers"][1]
    assert {"headers", "loader", "contents"} <= failed(whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_values_that_are_not_finite(tmp_path, value, dtype):
    path = make_tiny_model(tmp_path, dtype=dtype)
    name = "model.layers.1.mlp.down_proj.weight"

    def damage(tensors: dict[str, Any]) -> None:
        tensors[name][3, 7] = value
        tensors[name][40, 1] = value

    edit(path / "model.safetensors", damage)
    status, detail = found(path)["values"]
    assert status == "fail"
    assert f"model.safetensors: {name}: 2, the first at {3 * 75 + 7}" in detail


def test_values_in_the_last_piece_are_read(whole, monkeypatch):
    monkeypatch.setattr(verify_values, "_PIECE_BYTES", 64)
    last = {}

    def damage(tensors: dict[str, Any]) -> None:
        last["name"] = "lm_head.weight" if "lm_head.weight" in tensors else next(iter(tensors))
        tensors[last["name"]].reshape(-1)[-1] = np.nan
        last["index"] = tensors[last["name"]].size - 1

    edit(whole / SHARD, damage)
    assert f"{last['name']}: 1, the first at {last['index']}" in found(whole)["values"][1]


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_of_fp8(fp8, code):
    def damage(tensors: dict[str, Any]) -> None:
        codes = tensors["layers.0.feed_forward.w2.weight"].view(np.uint8).copy()
        codes[1, 2] = code
        tensors["layers.0.feed_forward.w2.weight"] = codes.view(E4M3)

    write_all(fp8 / "consolidated.safetensors", damage)
    assert f"layers.0.feed_forward.w2.weight: 1, the first at {75 + 2}" in found(fp8)["values"][1]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_bad_scales(fp8, value):
    name = "layers.1.attention.wo.qscale_weight"
    scale = np.array(value, ml_dtypes.bfloat16)
    write_all(fp8 / "consolidated.safetensors", lambda tensors: tensors.update({name: scale}))
    status, detail = found(fp8)["scales"]
    assert status == "fail"
    assert f"not finite and positive: {name}: " in detail


@pytest.mark.parametrize("name", ["attention.wk", "feed_forward.w3"])
def test_sibling_activation_scales_that_differ_are_a_warning(fp8, name):
    changed = {f"layers.1.{name}.qscale_act": np.array(0.75, ml_dtypes.bfloat16)}
    write_all(fp8 / "consolidated.safetensors", lambda tensors: tensors.update(changed))
    status, detail = found(fp8)["scales"]
    assert status == "warn"
    assert "1 groups" in detail
    assert "at most 1.5 times" in detail


def test_who_shares_an_input():
    def ratios(names: str) -> dict[str, float]:
        scales = {name: np.float32([i + 1]) for i, name in enumerate(names.split())}
        return verify_values.sibling_ratios(scales)

    at = "model.language_model.layers.3."
    hf = [f"{at}self_attn.{n}_proj.activation_scale" for n in "qkvo"]
    hf += [f"{at}mlp.{n}_proj.activation_scale" for n in ("gate", "up", "down")]
    assert ratios(" ".join(hf)) == {
        f"{at}self_attn._proj.activation_scale": 3.0,
        f"{at}mlp._proj.activation_scale": 6 / 5,
    }
    native = [f"layers.3.attention.w{n}.qscale_act" for n in "qkvo"]
    native += [f"layers.3.feed_forward.w{n}.qscale_act" for n in "132"]
    assert sorted(ratios(" ".join(native)).values()) == [6 / 5, 3.0]
    assert ratios("layers.0.attention.wq.qscale_act layers.1.attention.wk.qscale_act") == {}
    assert ratios("layers.0.attention.wq.qscale_weight layers.0.attention.wk.qscale_weight") == {}


def test_a_scale_on_the_wrong_side_is_noticed(fp8):
    def damage(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if name.endswith("qscale_weight"):
                tensors[name] = np.array(128.0, ml_dtypes.bfloat16)

    write_all(fp8 / "consolidated.safetensors", damage)
    status, detail = found(fp8)["spread"]
    assert status == "warn"
    assert "usual are 0.001 to 0.5" in detail


def test_a_flipped_bit_is_found_by_the_manifest(source, tmp_path):
    made = convert(source, tmp_path / "made")
    data = bytearray((made / "consolidated.safetensors").read_bytes())
    data[-1] ^= 1
    (made / "consolidated.safetensors").write_bytes(data)
    status, detail = found(made)["checksums"]
    assert status == "fail"
    assert "consolidated.safetensors is not what was published" in detail
    (made / "tokenizer.json").unlink()
    assert '"tokenizer.json" is missing' in found(made)["checksums"][1]


def test_digests_of_a_hub_cache(whole, tmp_path):
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in whole.iterdir():
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if path.suffix == ".json":
            digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (blobs / digest).write_bytes(data)
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / digest, snapshot))
    assert found(snapshot)["checksums"] == ("ok", "4 files are as the hub's download has them")
    config = (snapshot / "config.json").resolve()
    config.write_bytes(config.read_bytes() + b"\n")
    assert "config.json is not what was published" in found(snapshot)["checksums"][1]


def test_digests_of_a_hub_download_into_a_folder(whole):
    notes = whole / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    digest = hashlib.sha256((whole / SHARD).read_bytes()).hexdigest()
    (notes / f"{SHARD}.metadata").write_text(f"{'a' * 40}\n{digest}\n1700000000.0\n")
    assert found(whole)["checksums"] == ("ok", "1 files are as the hub's download has them")
    (notes / f"{SHARD}.metadata").write_text(f"{'a' * 40}\n{digest[::-1]}\n1700000000.0\n")
    assert "checksums" in failed(whole)


def test_vocabularies_of_different_models(source, tmp_path):
    made = convert(source, tmp_path / "made")
    params = json.loads((made / "params.json").read_text())
    params["vocab_size"] = len(tiny_model.TOKENS) - 1
    (made / "params.json").write_text(json.dumps(params))
    status, detail = found(made)["vocabulary"]
    assert status == "fail"
    assert f"{len(tiny_model.TOKENS)} tokens" in detail
    assert f"vocabulary {len(tiny_model.TOKENS) - 1}" in detail


def test_too_few_and_too_many_parameters(whole):
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"vocab_size": 98}))
    assert found(whole)["contents"][0] == "fail"
    (whole / "config.json").write_text(json.dumps(config | {"vocab_size": 96}))
    assert found(whole)["contents"][0] == "warn"


@pytest.mark.parametrize("name", ["../outside.safetensors", "", "/etc/hostname"])
def test_an_index_that_leaves_the_directory(whole, name):
    index = whole / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["x"] = name
    index.write_text(json.dumps(content))
    assert "is not a plain file name" in found(whole)["files"][1]


def test_links_and_pipes_are_not_opened(whole, tmp_path):
    outside = tmp_path / "outside.safetensors"
    shutil.move(whole / SHARD, outside)
    (whole / SHARD).symlink_to(outside)
    assert "is a link that leaves the directory" in found(whole)["files"][1]
    (whole / SHARD).unlink()
    os.mkfifo(whole / SHARD)
    assert "is not a regular file" in found(whole)["files"][1]


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "Q4"}}'])
def test_headers_that_are_none(tmp_path, header):
    path = make_tiny_model(tmp_path)
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    status, detail = found(path)["headers"]
    assert status == "fail"
    assert "model.safetensors: " in detail


def test_no_checkpoint(tmp_path):
    with pytest.raises(mmengine.ModelNotFoundError, match=r"no params\.json and no config\.json"):
        verify_model(tmp_path)


# ---- mm-run verify ---------------------------------------------------------------------------


def test_command_line(whole, capsys):
    assert main(["verify", "-m", str(whole)]) == 0
    done = capsys.readouterr()
    assert "21 tensors fill their files exactly" in done.out
    assert "not run" in done.out
    assert done.err == ""
    (whole / SHARD).unlink()
    assert main(["verify", "-m", str(whole)]) == 65
    done = capsys.readouterr()
    assert "FAIL" in done.out
    assert f"{whole}: failed: files, loader" in done.err


def test_command_line_json(whole, capsys):
    assert main(["verify", "-m", str(whole), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert [check["name"] for check in report["checks"]] == list(found(whole))
    (whole / "config.json").write_text("{}")
    assert main(["verify", "-m", str(whole), "--json"]) == 65
    assert not json.loads(capsys.readouterr().out)["ok"]


def test_command_line_without_a_model(tmp_path, capsys):
    assert main(["verify", "-m", str(tmp_path / "none")]) == 66
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.model
def test_the_demo_model_answers_as_recorded(smollm2):
    status, detail = found(smollm2)["logits"]
    assert status == "ok"
    assert detail.startswith("SmolLM2-135M-Instruct: after 8 tokens the likeliest are those")
    assert float(detail.rpartition(" ")[2]) < 0.2


@pytest.mark.model
def test_logits_beyond_the_tolerance_fail(smollm2, monkeypatch):
    known = verify._known_logits(smollm2)
    shifted = [value + known["tolerance"] + 0.2 for value in known["top_logits"]]
    monkeypatch.setattr(verify, "_known_logits", lambda path: known | {"top_logits": shifted})
    status, detail = found(smollm2)["logits"]
    assert status == "fail"
    assert "logits differ by up to" in detail


@pytest.mark.model
def test_a_model_that_computes_something_else_is_noticed(smollm2, tmp_path):
    """RoPE of another base: every file is whole, and yet the answers are wrong."""
    copy = tmp_path / "copy"
    shutil.copytree(smollm2, copy)
    params = json.loads((copy / "params.json").read_text())
    (copy / "params.json").write_text(json.dumps(params | {"rope_theta": 2.0}))
    manifest = json.loads((copy / "manifest.json").read_text())
    data = (copy / "params.json").read_bytes()
    manifest["files"]["params.json"] = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert failed(copy) == {"logits"}
