"""The GGUF reader: values of good files, and a typed error for every kind of bad one."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

import tiny_model
from mmengine.errors import Error, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from mmengine.gguf_reader import GgufFile

F32 = int(Kind.F32)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: str | bytes = "t", shape: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0
) -> bytes:
    head = text(name) + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def image(
    keys: list[bytes] = [],
    tensors: list[bytes] = [],
    data: bytes = b"\0" * 64,
    **header: Any,
) -> bytes:
    magic, version = header.get("magic", b"GGUF"), header.get("version", 3)
    counts = header.get("tensor_count", len(tensors)), header.get("key_count", len(keys))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % header.get("alignment", 32)) + data


def u32(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


HUGE = 2**64 - 1
BAD = {
    "empty": (b"", "magic"),
    "short magic": (b"GGU", "magic"),
    "bad magic": (image(magic=b"GGML"), "magic"),
    "no header": (b"GGUF\3\0\0\0", "truncated"),
    "version 0": (image(version=0), "version"),
    "version 1": (image(version=1), "version"),
    "version 4": (image(version=4), "version"),
    "big endian": (image(version=3 << 24), "version"),
    "tensor count": (image(tensor_count=HUGE), "count"),
    "tensor count a little": (image(tensors=[tensor()], tensor_count=60000), "count"),
    "key count": (image(key_count=HUGE), "count"),
    "more keys than there are": (image([u32("a", 1)], key_count=4), "name"),
    "key length": (image([struct.pack("<QI", HUGE, 4)]), "length"),
    "key length over the limit": (image([key("k" * 65536, 7, b"\1")]), "length"),
    "key not utf8": (image([key(b"\xff\xfe", 7, b"\1")]), "utf8"),
    "value type": (image([key("a", 13, b"\0" * 8)]), "type"),
    "bool 2": (image([key("a", 7, b"\2")]), "bool"),
    "string length": (image([key("a", 8, struct.pack("<Q", HUGE))]), "length"),
    "string cut": (image([key("a", 8, struct.pack("<Q", 1 << 20))]), "truncated"),
    "array count": (image([key("a", 9, struct.pack("<IQ", 4, HUGE))]), "count"),
    "array of strings count": (image([key("a", 9, struct.pack("<IQ", 8, HUGE))]), "count"),
    "array type": (image([key("a", 9, struct.pack("<IQ", 99, 1))]), "type"),
    "array of arrays": (image([key("a", 9, struct.pack("<IQIQ", 9, 1, 4, 0))]), "nesting"),
    "duplicate key": (image([u32("a", 1), u32("a", 2)]), "duplicate_key"),
    "alignment 0": (image([u32("general.alignment", 0)]), "alignment"),
    "alignment 13": (image([u32("general.alignment", 13)]), "alignment"),
    "alignment 2^31": (image([u32("general.alignment", 1 << 31)]), "alignment"),
    "alignment text": (image([key("general.alignment", 8, text("32"))]), "alignment"),
    "no dimension": (image(tensors=[tensor(shape=())]), "rank"),
    "5 dimensions": (image(tensors=[tensor(shape=(1,) * 5)]), "rank"),
    "2^32-1 dimensions": (image(tensors=[text("t") + b"\xff" * 24]), "rank"),
    "dimension 0": (image(tensors=[tensor(shape=(0, 4))]), "shape"),
    "dimension 2^64-1": (image(tensors=[tensor(shape=(HUGE,))]), "truncated"),
    "product over 64 bits": (image(tensors=[tensor(shape=(1 << 32, 1 << 32))]), "truncated"),
    "product wraps to 16 bytes": (image(tensors=[tensor(shape=(4, 1 << 62))]), "truncated"),
    "tensor type": (image(tensors=[tensor(kind=9999)]), "type"),
    "removed tensor type": (image(tensors=[tensor(kind=4)]), "type"),
    "part of a block": (image(tensors=[tensor(shape=(33,), kind=int(Kind.Q8_0))]), "shape"),
    "misaligned": (image(tensors=[tensor(offset=4)]), "misaligned"),
    "offset past the end": (image(tensors=[tensor(offset=1 << 40)]), "truncated"),
    "offset 2^64-32": (image(tensors=[tensor(offset=2**64 - 32)]), "truncated"),
    "short data": (image(tensors=[tensor(shape=(17,))]), "truncated"),
    "duplicate name": (image(tensors=[tensor(), tensor(offset=32)]), "duplicate_name"),
    "overlap": (image(tensors=[tensor("a", (16,)), tensor("b", offset=32)]), "offsets"),
    "empty name": (image(tensors=[tensor("")]), "name"),
    "long name": (image(tensors=[tensor("n" * 65)]), "length"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(tmp_path: Path, name: str) -> None:
    data, code = BAD[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError) as caught:
            GgufFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert str(caught.value).startswith("model.gguf: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isascii()
    assert caught.value.file == str(path)
    # The first test to get as far as tensors pays for the import of the gguf package.
    assert peak < 24 << 20


def test_every_cut_is_refused(tmp_path: Path) -> None:
    keys = [u32("general.alignment", 16), key("s", 8, text("x"))]
    whole = image(keys, [tensor(shape=(16,))], alignment=16)
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    GgufFile(path).close()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            GgufFile(path)


def test_values_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    numbers = np.arange(16, dtype=np.float32)
    array = struct.pack("<IQ", 5, 3) + struct.pack("<3i", -1, 0, 7)
    strings = struct.pack("<IQ", 8, 2) + text("a") + text("\u00e9")
    keys = [
        key("u8", 0, b"\xff"),
        key("i8", 1, b"\xff"),
        key("f32", 6, struct.pack("<f", 0.5)),
        key("bool", 7, b"\1"),
        key("u64", 10, struct.pack("<Q", HUGE)),
        key("array", 9, array),
        key("strings", 9, strings),
    ]
    path.write_bytes(image(keys, [tensor("w", (4, 4))], numbers.tobytes()))
    with GgufFile(path) as file:
        expected = {"u8": 255, "i8": -1, "f32": 0.5, "bool": True, "u64": HUGE}
        assert file.metadata == expected | {"array": [-1, 0, 7], "strings": ["a", "\u00e9"]}
        assert file.metadata["bool"] is True
        entry = file.tensors["w"]
        assert (entry.shape, entry.type_name, entry.size) == ((4, 4), "F32", 64)
        np.testing.assert_array_equal(file.read_rows(entry, 1, 3), numbers.reshape(4, 4)[1:3])


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(image([u32("a", 1)], version=2))
    with GgufFile(path) as file:
        assert file.metadata == {"a": 1}


def test_rows_of_a_file_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(image(tensors=[tensor(shape=(8192, 4))], data=bytes(131072)))
    with GgufFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(4096)
        with pytest.raises(ModelFormatError) as caught:
            file.read_rows(file.tensors["t"], 4096, 8192)
    assert caught.value.code == "truncated"


def test_known_type_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(image(tensors=[tensor(shape=(32,), kind=int(Kind.Q5_0))]))
    with GgufFile(path) as file, pytest.raises(UnsupportedModelError, match=r'"t".*Q5_0'):
        file.read_rows(file.tensors["t"], 0, 1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        GgufFile(tmp_path / "none.gguf")


@given(place=st.integers(0, 1 << 30), value=st.integers(0, 255), data=st.data())
def test_changed_bytes_give_a_typed_error_or_a_checked_file(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    original = path.with_name("original.gguf")
    if not original.exists():
        tiny_model.write_gguf(original)
    changed = bytearray(original.read_bytes())
    header = 24 << 10
    changed[place % header] = value
    if data.draw(st.booleans()):
        del changed[place % len(changed) :]
    path.write_bytes(changed)
    try:
        with GgufFile(path) as file:
            assert all(t.offset + t.size <= len(changed) for t in file.tensors.values())
    except Error as error:
        assert error.exit_code in (65, 69)
