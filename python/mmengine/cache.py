"""Finds the model that a name stands for: fetches it and converts it once, into the cache.

The cache is $MMENGINE_CACHE, else $XDG_CACHE_HOME/mmengine, else ~/.cache/mmengine. Entries appear
whole or not at all; a lock keeps two processes from making the same one. When everything is there,
nothing is imported, run or looked up on a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.errors import Error, ModelNotFoundError, UsageError
from mmengine.files import read_object
from mmengine.messages import quoted
from mmengine.synthetic import PREFIX, is_synthetic, refuse_synthetic

DEMO = "smollm2"
# Part of every key: entries made by an older converter are not found and are made again.
_CONVERSION = 1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cache_root() -> Path:
    """The cache directory; it need not exist yet."""
    for variable, below in (("MMENGINE_CACHE", ""), ("XDG_CACHE_HOME", "mmengine")):
        if value := os.environ.get(variable):
            return Path(value).absolute() / below
    home = os.environ.get("HOME")
    try:
        home = home or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError as error:
        raise UsageError("cache: no home directory; set MMENGINE_CACHE") from error
    return Path(home).absolute() / ".cache" / "mmengine"


def resolve_model(name: str, weight_dtype: str = "auto", progress: bool | None = None) -> Path:
    """The directory to load for `name`.

    "smollm2" and GGUF files are converted into the cache with `weight_dtype` ("bf16", "f32",
    "fp8", "int8", "int4"; "auto" is "bf16"); a directory is itself; "org/name" is a hub repository.
    A synthetic model has no directory: its name is what the core loads.
    `progress` is that of mmengine.progress.bar.

    Raises ModelNotFoundError for anything else, and the errors of fetch and convert.
    """
    if is_synthetic(name):
        return Path(PREFIX + os.path.expanduser(name.removeprefix(PREFIX)))
    weight_dtype = "bf16" if weight_dtype == "auto" else weight_dtype
    if name == DEMO:
        destination = cache_root() / "converted" / f"{DEMO}-{weight_dtype}-v{_CONVERSION}"
        if not _is_whole(destination):
            _convert_once(fetch(DEMO, progress), destination, weight_dtype, progress)
        return destination
    # Unlike Path, these take every string.
    expanded = os.path.expanduser(name)
    if os.path.isdir(expanded):
        return Path(expanded)
    if os.path.exists(expanded):
        return _converted_file(Path(expanded), weight_dtype, progress)
    if _HUB_NAME.fullmatch(name):
        from mmengine.cache_hub import hub_path

        if found := hub_path(name, cache_root()):
            return found
        if name.endswith(".gguf") or os.path.isdir(name.partition("/")[0]):
            raise ModelNotFoundError(f"model {quoted(name)}: no such file; give a path", where=name)
        return fetch(name, progress)
    raise _unknown(name)


def config_path(name: str) -> Path:
    """A directory with the config of `name`, for those who need no weights.

    As resolve_model, but of a hub repository that is not in the cache only the config is
    downloaded.
    """
    if os.path.exists(os.path.expanduser(name)) or not _HUB_NAME.fullmatch(name):
        return resolve_model(name, progress=None)
    from mmengine.cache_hub import fetch_config, hub_path

    return hub_path(name, cache_root()) or fetch_config(name)


def fetch(model: str, progress: bool | None = None) -> Path:
    """Downloads "smollm2" (its GGUF file) or a hub repository "org/name" (its directory).

    What is there already is not downloaded again. Raises ModelNotFoundError when it cannot be had,
    OutputError when it cannot be written, ModelFormatError when what came is not what was sent,
    UsageError for a synthetic model.
    """
    refuse_synthetic(model, "to fetch")
    if model == DEMO:
        from mmengine.cache_demo import fetch_demo, fetched_demo

        folder = cache_root() / "fetched"
        if found := fetched_demo(folder):  # without a lock: the cache may be read-only
            return found
        with _lock("fetch-smollm2"):
            return fetch_demo(folder, progress)
    if _HUB_NAME.fullmatch(model):
        from mmengine.cache_hub import fetch_repository

        with _lock("fetch-" + hashlib.sha256(model.encode()).hexdigest()[:16]):
            return fetch_repository(model, cache_root(), progress)
    raise _unknown(model)


def _converted_file(path: Path, weight_dtype: str, progress: bool | None) -> Path:
    """The cached conversion of one GGUF file, keyed by its place, size and time of change."""
    resolved = path.resolve()
    status = resolved.stat()
    key = f"{resolved}\0{status.st_size}\0{status.st_mtime_ns}\0{weight_dtype}\0{_CONVERSION}"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]", "_", resolved.stem, flags=re.ASCII)[:64]
    destination = cache_root() / "converted" / f"{stem}-{weight_dtype}-{digest}"
    if not _is_whole(destination):
        _convert_once(resolved, destination, weight_dtype, progress)
    return destination


def _is_whole(directory: Path) -> bool:
    """Whether all that the manifest of a cached conversion lists is there in its size."""
    try:
        files = read_object(directory / "manifest.json")["files"]
        return bool(files) and all(
            (directory / name).stat().st_size == entry["size"] for name, entry in files.items()
        )
    except (Error, OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _convert_once(
    source: Path, destination: Path, weight_dtype: str, progress: bool | None
) -> None:
    from mmengine.convert import convert
    from mmengine.convert_output import output_errors

    with _lock(destination.name):
        if not _is_whole(destination):
            with output_errors(str(destination)):
                destination.parent.mkdir(parents=True, exist_ok=True)
                if destination.is_dir() and not destination.is_symlink():
                    shutil.rmtree(destination)  # damaged
                else:
                    destination.unlink(missing_ok=True)
            convert(source, destination, weight_dtype, progress)


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Holds a lock between processes; it ends with the process, however that ends."""
    from mmengine.convert_output import output_errors

    folder = cache_root() / "locks"
    with output_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unknown(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"model {quoted(name)}: no such directory or GGUF file, and not a known name; "
        f'give a path, a hub repository "org/name", or "{DEMO}"',
        where=name,
    )
