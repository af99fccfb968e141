"""The safetensors header parser: good files as the reference reads them, and every kind of bad one.

What the reference package rejects is rejected here; where this parser is stricter, the reasons are
listed below.
"""

from __future__ import annotations

import json
import random
import resource
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mmengine import errors
from mmengine._testing_model import parse_safetensors

FILE = "model.safetensors"
# Reasons for which a file that the reference accepts may be rejected.
STRICTER = {"header_json", "duplicate_key", "name", "rank", "dtype", "depth"}


def packed(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A file: the length of the header (or the given lie), the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def tensor(
    begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8"
) -> dict[str, Any]:
    """A header entry; the shape is [end - begin] unless given."""
    return {
        "dtype": dtype,
        "shape": [end - begin] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def entry(name: str, begin: int, end: int) -> str:
    """One `"name": {...}` pair as text, for headers with repeated keys."""
    return f"{json.dumps(name)}: {json.dumps(tensor(begin, end))}"


NAN_DIM = b'{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,2]}}'
REPEATED_FIELD = b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}'

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header_too_small"),
    "seven bytes": (b"\x02" + bytes(6), "header_too_small"),
    "length 0": (packed(b"", length=0), "header_json"),
    "length 0 with a header": (packed({"a": tensor(0, 2)}, b"xx", length=0), "header_json"),
    "length beyond the file": (packed(b"{}", length=3), "header_length"),
    "length of the cap": (packed(b"{}", length=100_000_000), "header_length"),
    "length over the cap": (packed(b"{}", length=100_000_001), "header_too_large"),
    "length 2^64-1": (packed(b"{}", length=2**64 - 1), "header_too_large"),
    "not UTF-8": (packed(b'{"\xff":1}'), "header_json"),
    "not JSON": (packed(b"{hello}"), "header_json"),
    "unfinished": (packed(b'{"a":'), "header_json"),
    "trailing garbage": (packed(b"{}x"), "header_json"),
    "trailing NUL": (packed(b"{}\0\0"), "header_json"),
    "trailing value": (packed(b"{}{}"), "header_json"),
    "lone surrogate": (packed(b'{"\\ud800":{}}'), "header_json"),
    "leading space": (packed(b" {}"), "header_json"),
    "an array": (packed(b"[]"), "header_json"),
    "same key, same offsets": (
        packed(f"{{{entry('a', 0, 2)}, {entry('a', 0, 2)}}}".encode(), b"xx"),
        "duplicate_key",
    ),
    "same key, other offsets": (
        packed(f"{{{entry('a', 0, 2)}, {entry('a', 2, 4)}}}".encode(), b"xxxx"),
        "duplicate_key",
    ),
    "same key, spelt otherwise": (
        packed(f'{{{entry("a", 0, 2)}, "\\u0061": 1}}'.encode(), b"xx"),
        "duplicate_key",
    ),
    "same field": (packed(REPEATED_FIELD, b"xx"), "duplicate_key"),
    "two metadata": (packed(b'{"__metadata__":{},"__metadata__":{}}'), "duplicate_key"),
    "same metadata key": (packed(b'{"__metadata__":{"a":"1","a":"1"}}'), "duplicate_key"),
    "metadata of numbers": (packed(b'{"__metadata__":{"a":1}}'), "header_json"),
    "metadata of lists": (packed(b'{"__metadata__":{"a":["1"]}}'), "header_json"),
    "metadata is null": (packed(b'{"__metadata__":null}'), "header_json"),
    "tensor is a list": (packed(b'{"a":[1,2]}'), "header_json"),
    "tensor is a number": (packed(b'{"a":1}'), "header_json"),
    "no shape": (packed({"a": {"dtype": "U8", "data_offsets": [0, 2]}}, b"xx"), "header_json"),
    "dtype is a number": (packed({"a": tensor(0, 2) | {"dtype": 3}}, b"xx"), "header_json"),
    "dtype is a list": (packed({"a": tensor(0, 2) | {"dtype": ["U8"]}}, b"xx"), "header_json"),
    "negative dimension": (packed({"a": tensor(0, 2, [-2])}, b"xx"), "shape"),
    "dimension -0": (packed(NAN_DIM % b"-0", b"xx"), "shape"),
    "float dimension": (packed({"a": tensor(0, 2, [2.0])}, b"xx"), "shape"),
    "dimension 2^64": (packed({"a": tensor(0, 2, [2**64])}, b"xx"), "shape"),
    "dimension is a string": (packed({"a": tensor(0, 2, ["2"])}, b"xx"), "shape"),
    "dimension is a list": (packed({"a": tensor(0, 2, [[2]])}, b"xx"), "shape"),
    "shape is a number": (packed({"a": tensor(0, 2) | {"shape": 2}}, b"xx"), "shape"),
    "dimension 1e400": (packed(NAN_DIM % b"1e400", b"xx"), "value"),
    "product 2^64": (packed({"a": tensor(0, 4, [2**32, 2**32])}, b"xxxx"), "overflow"),
    "product wraps to 4": (
        packed({"a": tensor(0, 4, [2**62 + 1, 2, 2])}, b"xxxx"),
        "overflow",
    ),
    "wraps in bytes": (packed({"a": tensor(0, 4, [2**62], "F32")}, b"xxxx"), "overflow"),
    "overlap": (packed({"a": tensor(0, 4), "b": tensor(2, 6)}, b"xxxxxx"), "offsets"),
    "hole": (packed({"a": tensor(0, 2), "b": tensor(4, 6)}, b"xxxxxx"), "offsets"),
    "hole at the begin": (packed({"a": tensor(2, 4)}, b"xxxx"), "offsets"),
    "end before begin": (packed({"a": tensor(4, 2, [2])}, b"xxxx"), "offsets"),
    "size mismatch": (packed({"a": tensor(0, 3, [2])}, b"xxx"), "offsets"),
    "one offset": (packed({"a": tensor(0, 2) | {"data_offsets": [0]}}, b"xx"), "offsets"),
    "three offsets": (packed({"a": tensor(0, 2) | {"data_offsets": [0, 2, 2]}}, b"xx"), "offsets"),
    "negative offset": (packed({"a": tensor(-1, 1)}, b"xx"), "offsets"),
    "huge offset": (packed({"a": tensor(2**63, 2**63 + 2)}, b"xx"), "offsets"),
    "truncated": (packed({"a": tensor(0, 4)}, b"xxx"), "truncated"),
    "trailing bytes": (packed({"a": tensor(0, 4)}, b"xxxxx"), "truncated"),
    "data without tensors": (packed({}, b"x"), "truncated"),
    "deep objects": (packed(b'{"a":' * 100_000), "depth"),
    "deep arrays": (packed(b'{"a":' + b"[" * 100_000), "depth"),
    "deep shape": (packed(b'{"a":{"shape":' + b"[" * 100_000), "depth"),
    "deep unknown field": (packed(b'{"a":{"more":' + b"[" * 100_000), "depth"),
    "deep metadata": (packed(b'{"__metadata__":' + b'{"a":' * 100_000), "depth"),
    "rank 9": (packed({"a": tensor(0, 1, [1] * 9)}, b"x"), "rank"),
    "rank 70,000": (packed({"a": tensor(0, 1, [1] * 70_000)}, b"x"), "rank"),
    "NUL in a name": (packed({"a\0b": tensor(0, 2)}, b"xx"), "name"),
    "path as a name": (packed({"../../x": tensor(0, 2)}, b"xx"), "name"),
    "line break in a name": (packed({"a\nb": tensor(0, 2)}, b"xx"), "name"),
    "200,000 empty tensors": (
        packed({f"t{i}": tensor(0, 0) for i in range(200_000)}),
        "too_many_tensors",
    ),
    "200,000 metadata": (
        packed({"__metadata__": {f"t{i}": "" for i in range(200_000)}}),
        "too_many_tensors",
    ),
    "pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "pickle"),
    "old torch.save": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
    "torch.save": (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", "pickle"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(16), "gguf"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "lfs_pointer"),
}


def reject(file_bytes: bytes) -> errors.Error:
    with pytest.raises(errors.Error) as caught:
        parse_safetensors(file_bytes, FILE)
    return caught.value


@pytest.mark.parametrize(("file_bytes", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file(file_bytes: bytes, reason: str) -> None:
    error = reject(file_bytes)
    assert type(error) is errors.ModelFormatError
    assert error.code == reason
    assert error.file == FILE
    assert str(error).startswith(f"{FILE}: ")
    assert len(str(error)) < 400
    assert str(error).isascii()
    assert str(error).isprintable()


def test_what_the_reference_rejects_is_in_the_table() -> None:
    accepted = set()
    for name, (file_bytes, _) in BAD_FILES.items():
        try:
            safetensors.deserialize(file_bytes)
        except safetensors.SafetensorError:
            continue
        accepted.add(name)
    assert {"leading space", "same key, same offsets", "path as a name", "rank 70,000"} <= accepted
    assert accepted <= {
        "leading space",
        "same key, same offsets",
        "same metadata key",
        "metadata is null",
        "NUL in a name",
        "path as a name",
        "line break in a name",
        "rank 9",
        "rank 70,000",
        "200,000 empty tensors",
        "200,000 metadata",
    }


@pytest.mark.parametrize("dtype", ["Q4_K", "F64", "F8_E5M2", "", "f32"])
def test_unknown_dtype(dtype: str) -> None:
    error = reject(packed({"blk.0.w": tensor(0, 2, dtype=dtype)}, b"xx"))
    assert type(error) is errors.UnsupportedModelError
    assert (error.code, error.tensor) == ("dtype", "blk.0.w")
    assert repr(dtype) in str(error)
    assert "'blk.0.w'" in str(error)


def test_extents_name_both_tensors() -> None:
    error = reject(packed({"first": tensor(0, 4), "second": tensor(2, 6)}, b"xxxxxx"))
    assert "'first'" in str(error)
    assert "'second'" in str(error)
    assert error.tensor == "second"


def test_truncation_gives_both_sizes_and_the_remedy() -> None:
    message = str(reject(packed({"a": tensor(0, 40)}, b"x" * 33)))
    assert "expected 40 bytes" in message
    assert "found 33 bytes" in message
    assert "re-download" in message


@pytest.mark.parametrize(
    ("header", "offset"),
    [(b'{"a":x}', 8 + 5), (b"{}  x", 8 + 4), (b"{\0}", 8 + 1), (b"[", 8), (b'{"\xff":1}', 8 + 2)],
)
def test_syntax_errors_have_the_offset_in_the_file(header: bytes, offset: int) -> None:
    assert reject(packed(header)).offset == offset


def test_hostile_text_is_escaped_and_cut() -> None:
    message = str(reject(packed({"\x1b[2J\n" + "z" * 5000: 1})))
    assert "\\x1b" in message
    assert len(message) < 300


def test_lengths_cost_no_memory() -> None:
    reject(packed(b"{"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (3, 100_000_000, 100_000_001, 2**63, 2**64 - 1):
        reject(packed(b"{}", length=length))
    for dims in ([2**40], [2**31, 2**31]):
        reject(packed({"a": tensor(0, 2, dims)}, b"xx"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


NUMPY_DTYPES = {
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "u8": np.uint8,
    "u16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
}


def test_reads_what_the_reference_writes() -> None:
    random_bytes = np.random.default_rng(7)
    shapes = [(), (1,), (3, 5), (0, 4), (2, 1, 3, 2), (1, 1, 1, 1, 1, 1, 1, 2)]
    tensors = {}
    for dtype, kind in NUMPY_DTYPES.items():
        for shape in shapes:
            values = random_bytes.integers(0, 100, shape)
            tensors[f"{dtype}.{'x'.join(map(str, shape))}"] = np.asarray(values).astype(kind)
    file_bytes = safetensors.numpy.save(tensors, metadata={"format": "np", "names": "\u00e9\n/"})
    found = {info["name"]: info for info in parse_safetensors(file_bytes, FILE)}
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        info = found[name]
        assert NUMPY_DTYPES[info["dtype"]] == array.dtype
        assert tuple(info["shape"]) == array.shape
        assert file_bytes[info["offset"] : info["offset"] + info["bytes"]] == array.tobytes()


@pytest.mark.parametrize(
    "file_bytes",
    [
        packed({}),
        packed(b"{}" + b" " * 62),
        packed({"__metadata__": {}}),
        packed({"__metadata__": {"a": "1"}, "w": tensor(0, 2)}, b"xx"),
        packed({"w": tensor(0, 2) | {"more": {"shape": [None, [1.5, {"dtype": 1}]]}}}, b"xx"),
        packed({"w": tensor(0, 1, []), "empty": tensor(1, 1, [2**64 - 1, 0])}, b"x"),
    ],
    ids=["nothing", "padding", "no metadata", "metadata", "more fields", "empty"],
)
def test_unusual_but_valid(file_bytes: bytes) -> None:
    names = {name for name, _ in safetensors.deserialize(file_bytes)}
    assert {info["name"] for info in parse_safetensors(file_bytes, FILE)} == names


def test_a_header_length_may_begin_like_a_pickle() -> None:
    header = json.dumps({"w": tensor(0, 2)}).encode()
    file_bytes = packed(header + b" " * (0x0280 - len(header)), b"xx")
    assert file_bytes.startswith(b"\x80\x02")
    assert [info["name"] for info in parse_safetensors(file_bytes, FILE)] == ["w"]


TOKENS = [
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BOOL"', b"[", b"]",
    b"{", b"}", b":", b",", b"0", b"-1", b"1e2", b"18446744073709551616", b"4294967296", b"\\u0000",
    b'"', b" ", b"\0", b"\xff", b"null", b"true",
]  # fmt: skip


def mutated(header: bytes, rng: random.Random) -> bytes:
    """One to four small changes: bytes, tokens, deletions, copies, digits."""
    text = bytearray(header)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        at = rng.randrange(len(text) + 1)
        end = min(len(text), at + rng.randint(1, 12))
        kind = rng.randrange(5)
        if kind == 0 and at < len(text):
            text[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            del text[at:end]
        elif kind == 3:
            text[at:at] = text[at:end]
        else:
            digits = [i for i, byte in enumerate(text) if byte in b"0123456789"]
            if digits:
                text[rng.choice(digits)] = rng.choice(b"0123456789")
    return bytes(text)


@pytest.mark.parametrize("seed", range(4))
def test_mutations_agree_with_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    data = bytes(range(64))
    good = {
        "__metadata__": {"format": "pt"},
        "a": tensor(0, 16, [2, 2], "F32"),
        "b.weight": tensor(16, 48, [4, 4], "BF16"),
        "c": tensor(48, 48, [0, 3], "I64"),
        "d": tensor(48, 64, [16], "F8_E4M3"),
    }
    accepted = rejected = 0
    reasons = set()
    for _ in range(1500):
        header = mutated(json.dumps(good, separators=(",", ":")).encode(), rng)
        length = None if rng.random() < 0.9 else rng.choice([0, 1, len(header) - 1, 2**63])
        file_bytes = packed(header, data[: rng.choice([64] * 8 + [63, 0])], length)
        try:
            reference = dict(safetensors.deserialize(file_bytes))
        except safetensors.SafetensorError:
            reject(file_bytes)
            rejected += 1
            continue
        try:
            ours = {info["name"]: info for info in parse_safetensors(file_bytes, FILE)}
        except errors.Error as error:
            reasons.add(error.code)
            continue
        accepted += 1
        assert {n: (list(i["shape"]), i["bytes"]) for n, i in ours.items()} == {
            n: (list(i["shape"]), len(i["data"])) for n, i in reference.items()
        }
        for name, info in ours.items():
            span = file_bytes[info["offset"] : info["offset"] + info["bytes"]]
            assert span == bytes(reference[name]["data"])
    assert reasons <= STRICTER
    assert accepted >= 20
    assert rejected >= 500
