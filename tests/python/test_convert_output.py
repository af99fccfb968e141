"""Conversion is whole or not at all: bad destinations, full disks, interrupts, killed processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmengine import convert_output
from mmengine.convert import convert
from mmengine.convert_source import SourceTensor
from mmengine.errors import (
    Error,
    ModelFormatError,
    OutputError,
    UnsupportedModelError,
    UsageError,
)
from tiny_model import entries, run_python, sha256

PLACES = 40


def test_bad_destinations(tmp_path: Path, source: Path) -> None:
    before = sha256(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    (tmp_path / "link").symlink_to(source)
    for place in (source, source.parent, tmp_path, tmp_path / "link", source / "x"):
        for force in (False, True):
            with pytest.raises(UsageError):
                convert(source, place, force=force)
    for place in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(UsageError, match="exists"):
            convert(source, place)
        with pytest.raises(UsageError, match="not an engine directory"):
            convert(source, place, force=True)
    for place in (Path(""), Path("/")):
        with pytest.raises(UsageError, match="not the name of a new directory"):
            convert(source, place, force=True)
    with pytest.raises(UsageError, match="does not exist"):
        convert(source, tmp_path / "none" / "out")
    with pytest.raises(UsageError, match='"int3"'):
        convert(source, tmp_path / "out", "int3")
    assert sha256(source) == before
    assert (tmp_path / "full" / "photo.jpg").read_bytes() == b"dear"
    assert entries(tmp_path) == ["file", "full", "in", "link"]


def test_place_where_nothing_can_be_made(source: Path) -> None:
    with pytest.raises(OutputError, match=r"/proc: cannot be written: .*choose a place") as caught:
        convert(source, Path("/proc/x"))
    assert "full" not in str(caught.value)


def test_force_replaces_an_engine_directory(tmp_path: Path, source: Path) -> None:
    out = convert(source, tmp_path / "out", "f32")
    convert(source, tmp_path / "out", "bf16", force=True)
    assert json.loads((out / "manifest.json").read_text())["weight_dtype"] == "bf16"
    assert entries(tmp_path) == ["in", "out"]


def test_disk_full_at_many_places(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(source, tmp_path / "out", "f32")
    total = sum(path.stat().st_size for path in out.iterdir())
    before = {path.name: sha256(path) for path in out.iterdir()}, sha256(source)
    write = os.write
    left = 0

    def limited(descriptor: int, data: Any) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[:left])
        left -= done
        return done

    monkeypatch.setattr(convert_output.os, "write", limited)
    for place in range(PLACES):
        for destination, force in ((out, True), (tmp_path / "new", False)):
            left = total * place // PLACES
            with pytest.raises(OutputError, match="no space left") as caught:
                convert(source, destination, "f32", force=force)
            assert caught.value.code == "enospc"
            assert entries(tmp_path) == ["in", "out"]
    monkeypatch.undo()
    assert before == ({path.name: sha256(path) for path in out.iterdir()}, sha256(source))


FILE_LIMIT = """
import os, resource, sys
from pathlib import Path
from mmengine.convert import convert
from mmengine.errors import OutputError
source, folder, size, places = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
for place in range(places):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * place // places, resource.RLIM_INFINITY))
    try:
        convert(source, folder / "new", "f32")
    except OutputError as error:
        assert error.exit_code == 74 and error.code == "efbig", error
    else:
        raise SystemExit(f"written whole with a limit of {size * place // places} bytes")
    assert sorted(os.listdir(folder)) == ["in", "out"], os.listdir(folder)
"""


def test_file_size_limit_at_many_places(tmp_path: Path, source: Path) -> None:
    out = convert(source, tmp_path / "out", "f32")
    size = (out / "consolidated.safetensors").stat().st_size
    arguments = [str(source), str(tmp_path), str(size), str(PLACES)]
    run_python(FILE_LIMIT, *arguments)
    assert convert(source, tmp_path / "new", "f32").is_dir()


def test_full_file_system(tmp_path: Path, source: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(OutputError, match="bytes are needed") as caught:
            convert(source, disk / "new", "f32")
        assert caught.value.needed > caught.value.available > 0
        assert entries(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_short_writes_are_continued(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(source, tmp_path / "expected")
    write = os.write
    monkeypatch.setattr(
        convert_output.os, "write", lambda fd, data: write(fd, data[: max(1, len(data) // 3)])
    )
    made = convert(source, tmp_path / "made")
    monkeypatch.undo()
    assert [sha256(made / n) for n in entries(made)] == [
        sha256(expected / n) for n in entries(expected)
    ]
    monkeypatch.setattr(convert_output.os, "write", lambda fd, data: 0)
    with pytest.raises(OutputError, match="short write"):
        convert(source, tmp_path / "none")
    assert entries(tmp_path) == ["expected", "in", "made"]


@pytest.mark.parametrize("call", ["fsync", "open", "mkdir", "rename"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_calls_that_fail(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    real = getattr(os, call)

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        writes = call != "open" or (arguments and arguments[0] & os.O_WRONLY)
        if writes and (isinstance(path, int) or str(path).startswith(str(tmp_path))):
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=os.strerror(code).lower()):
        convert(source, tmp_path / "out")
    monkeypatch.undo()
    assert entries(tmp_path) == ["in"]
    assert convert(source, tmp_path / "out").is_dir()


def test_interrupt_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(source, tmp_path / "out")
    before = sha256(out / "manifest.json")
    sync = convert_output.OutputFile.sync
    for stop in range(1, len(entries(out)) + 1):
        calls = 0

        def interrupted(file: convert_output.OutputFile, stop: int = stop) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return sync(file)

        monkeypatch.setattr(convert_output.OutputFile, "sync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", "f32", force=True)
        assert entries(tmp_path) == ["in", "out"]
        assert sha256(out / "manifest.json") == before


KILLED = """
import os, signal, sys
from pathlib import Path
from mmengine import convert_output
from mmengine.convert import convert
sync = convert_output.OutputFile.sync
def kill(file):
    if file.name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return sync(file)
convert_output.OutputFile.sync = kill
convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_what_a_killed_process_leaves_is_cleaned(tmp_path: Path, source: Path) -> None:
    before = sha256(source)
    for name in ("params.json", "consolidated.safetensors", "manifest.json"):
        run_python(KILLED, str(source), str(tmp_path / "out"), name, code=-signal.SIGKILL)
        assert not (tmp_path / "out").exists()
        assert len(entries(tmp_path)) == 2
    elsewhere = tmp_path / ".mmengine-another-host-999999999-00000000.tmp"
    elsewhere.mkdir()
    alive = tmp_path / Path(convert_output._temporary_name())
    alive.mkdir()
    convert(source, tmp_path / "out")
    assert entries(tmp_path) == sorted([elsewhere.name, alive.name, "in", "out"])
    assert sha256(source) == before


def test_memory_does_not_grow_with_the_tensor() -> None:
    from mmengine.convert_tensors import write_tensor

    pieces: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> np.ndarray:
        pieces.append((start, stop))
        return np.ones((stop - start, 4096), np.float32)

    class Sink:
        def write(self, data: memoryview) -> None:
            assert len(data) <= 16 << 20

    tensor = SourceTensor((30_000, 4096), "t", "file: tensor t", read, row_step=48)
    write_tensor(Sink(), tensor, "f32", lambda count: None)  # type: ignore[arg-type]
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 30_000
    assert all(start % 48 == 0 and stop - start <= 1024 for start, stop in pieces)
    assert [start for start, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]


def test_every_error_has_an_exit_code() -> None:
    codes = {OutputError: 74, UsageError: 64, ModelFormatError: 65, UnsupportedModelError: 69}
    assert all(issubclass(kind, Error) and kind.exit_code == code for kind, code in codes.items())
