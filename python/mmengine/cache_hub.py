"""Hub repositories: downloads the files of one layout with huggingface_hub, remembers where.

A note in the cache says where a complete download lies, so that later runs need neither the
library nor a network.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmengine.convert_output import output_errors
from mmengine.errors import ModelNotFoundError, OutputError
from mmengine.messages import quoted
from mmengine.progress import bar, watch_folder

_SMALL_FILES = [
    *("*.json", "chat_template.jinja"),
    *("tokenizer.model*", "mistral_instruct_tokenizer_*.model*"),
]
_MISTRAL_FILES = ["consolidated*.safetensors", *_SMALL_FILES]
_HF_FILES = ["model*.safetensors", *_SMALL_FILES]
_ALL_FILES = ["*.safetensors", *_SMALL_FILES]
_CONFIG_FILES = ["params.json", "config.json", "generation_config.json"]


def hub_path(name: str, root: Path) -> Path | None:
    """Where an earlier fetch_repository put `name`, if it is still there."""
    try:
        path = Path(json.loads(_note(name, root).read_text())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path.is_dir() else None


def fetch_repository(name: str, root: Path, progress: bool | None) -> Path:
    """The directory of a hub repository's newest snapshot, or of a complete one when offline.

    Of a repository in both layouts only the Mistral one is taken.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):
        """The library's own bars, never drawn."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options["disable"] = True
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    patterns, total = _ALL_FILES, None
    try:
        try:
            information = huggingface_hub.HfApi().model_info(name, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in information.siblings or []}
            patterns = choose_patterns(list(sizes))
            total = sum(size for file, size in sizes.items() if _taken(file, patterns))
            offline = False
        except (HFValidationError, HfHubHTTPError):
            raise
        except (OSError, RuntimeError) as error:
            # No network or told to stay offline; what an earlier download left may do.
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            offline = True
        blobs = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        with (
            bar(f"fetching {name}", total, progress) as advance,
            watch_folder(blobs, advance, total),
        ):
            path = huggingface_hub.snapshot_download(
                name,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                local_files_only=offline,
                tqdm_class=Quiet,
            )
    except Exception as error:
        raise _plain(name, error) from error
    _remember(name, root, Path(path))
    return Path(path)


def fetch_config(name: str) -> Path:
    """A snapshot of a hub repository that holds its config at least; no weight is downloaded."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_CONFIG_FILES))
    except Exception as error:
        raise _plain(name, error) from error


def choose_patterns(files: list[str]) -> list[str]:
    """The files to take: those of the Mistral layout where it is complete, else the HF layout's."""
    weights = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    native = [file for file in weights if fnmatch(file, _MISTRAL_FILES[0])]
    if "params.json" in files and native:
        return _MISTRAL_FILES
    if any(fnmatch(file, _HF_FILES[0]) for file in weights):
        return _HF_FILES
    return _ALL_FILES


def _taken(file: str, patterns: list[str]) -> bool:
    return "/" not in file and any(fnmatch(file, pattern) for pattern in patterns)


def _plain(name: str, error: Exception) -> ModelNotFoundError | OutputError:
    """One sentence instead of the library's pages."""
    from huggingface_hub import errors

    remedies = (
        (errors.GatedRepoError, "it is gated; ask for access and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "no such repository, or it is private; check the name"),
        (errors.HFValidationError, "not a valid repository name; check the name"),
        (errors.LocalEntryNotFoundError, "no network and no earlier download; check the network"),
    )
    for kind, text in remedies:
        if isinstance(error, kind):
            return ModelNotFoundError(f"model {quoted(name)}: {text}", where=name)
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EFBIG,
    ):
        reason = os.strerror(error.errno).lower()
        return OutputError(
            f"model {quoted(name)}: cannot be stored: {reason}; free some space or set HF_HOME",
            where=name,
            code=errno.errorcode[error.errno].lower(),
        )
    lines = str(error).strip().splitlines()
    reason = quoted(lines[0]) if lines else type(error).__name__
    return ModelNotFoundError(
        f"model {quoted(name)}: could not be downloaded: {reason}; "
        "check the network or give a path",
        where=name,
    )


def _note(name: str, root: Path) -> Path:
    return root / "hub" / (hashlib.sha256(name.encode()).hexdigest()[:16] + ".json")


def _remember(name: str, root: Path, path: Path) -> None:
    note = _note(name, root)
    with output_errors(str(note)):
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"name": name, "path": str(path)}) + "\n")
        draft.replace(note)
