"""The function that opens files: plain names, links that may be followed, nothing that blocks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mmengine import errors
from mmengine._testing_model import map_file, read_file
from support.small_checkpoints import (
    SHARD,
    check_tensors,
    open_checkpoint,
    tensors,
    write_hf,
    write_index,
    write_shards,
)


def refused(directory: Path) -> errors.ModelFormatError:
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(directory)
    assert caught.value.code == "path"
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "./model.safetensors",
        "a\0b.safetensors",
        "x" * 300 + ".safetensors",
    ],
)
def test_index_with_paths(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "checkpoint"
    write_hf(inside)
    (inside / "sub").mkdir()
    for copy in (tmp_path / "outside.safetensors", inside / "sub" / "inside.safetensors"):
        shutil.copy(inside / SHARD, copy)
    write_index(inside, dict.fromkeys(tensors(), name))
    refused(inside)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0"])
def test_only_plain_names(tmp_path: Path, name: str) -> None:
    for call in (lambda: map_file(str(tmp_path), name), lambda: read_file(str(tmp_path), name, 9)):
        with pytest.raises(errors.ModelFormatError) as caught:
            call()
        assert caught.value.code == "path"


def move_and_link(inside: Path, target: Path, link: str | None = None) -> None:
    """The shard of `inside` becomes a link to `target`, where the shard is put."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(inside / SHARD, target)
    (inside / SHARD).symlink_to(str(target) if link is None else link)


def test_link_inside_the_directory(tmp_path: Path) -> None:
    inside = write_hf(tmp_path / "checkpoint")
    move_and_link(inside, inside / "blobs" / "weights", "blobs/weights")
    check_tensors(open_checkpoint(inside))


def test_links_of_a_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    write_hf(snapshot)
    move_and_link(snapshot, repository / "blobs" / "9f86d081", "../../blobs/9f86d081")
    check_tensors(open_checkpoint(snapshot))
    # The same through a link to the snapshot, and to the cache.
    (tmp_path / "latest").symlink_to(snapshot)
    check_tensors(open_checkpoint(tmp_path / "latest"))
    (tmp_path / "cache").symlink_to(tmp_path / "hub")
    check_tensors(
        open_checkpoint(tmp_path / "cache" / "models--org--name" / "snapshots" / "abc123")
    )
    # A download that was broken off.
    (repository / "blobs" / "9f86d081").unlink()
    with pytest.raises(errors.ModelNotFoundError, match=SHARD):
        open_checkpoint(snapshot)


def test_link_from_a_hub_cache_to_another_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    write_hf(snapshot)
    move_and_link(snapshot, tmp_path / "models--org--name2" / "blobs" / "9f86d081")
    refused(snapshot)


@pytest.mark.parametrize(
    "kind", ["absolute", "relative", "two links", "folder", "dangling", "loop"]
)
def test_link_out_of_the_directory(tmp_path: Path, kind: str) -> None:
    inside = write_hf(tmp_path / "checkpoint")
    outside = tmp_path / "checkpoint-of-another" / "weights"
    if kind == "absolute":
        move_and_link(inside, outside)
    elif kind == "relative":
        move_and_link(inside, outside, "../checkpoint-of-another/weights")
    elif kind == "two links":
        (inside / "hop").symlink_to(outside)
        move_and_link(inside, outside, "hop")
    elif kind == "folder":
        (inside / "folder").symlink_to(outside.parent)
        move_and_link(inside, outside, "folder/weights")
    elif kind == "dangling":
        move_and_link(inside, outside)
        outside.unlink()
    else:
        (inside / SHARD).unlink()
        (inside / SHARD).symlink_to(SHARD)
    assert SHARD in str(refused(inside))


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    inside = write_hf(tmp_path)
    (inside / SHARD).unlink()
    if kind == "fifo":
        os.mkfifo(inside / SHARD)
    elif kind == "directory":
        (inside / SHARD).mkdir()
    else:
        (inside / SHARD).symlink_to("/dev/zero")
    refused(inside)


def test_mapped_and_read_files(tmp_path: Path) -> None:
    for content in (b"", b"x", bytes(range(256)) * 1000):
        (tmp_path / "data").write_bytes(content)
        assert map_file(str(tmp_path), "data") == content
        assert read_file(str(tmp_path), "data", len(content)) == content
    with pytest.raises(errors.ModelFormatError) as caught:
        read_file(str(tmp_path), "data", len(content) - 1)
    assert caught.value.code == "too_large"
    with pytest.raises(errors.ModelNotFoundError) as missing:
        map_file(str(tmp_path), "absent\n")
    assert str(missing.value).isprintable()
    assert missing.value.file == f"{tmp_path}/absent\\x0a"


def test_no_descriptors_are_left_open(tmp_path: Path) -> None:
    write_shards(tmp_path)
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for _ in range(5):
        check_tensors(open_checkpoint(tmp_path))
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(b"")
    for _ in range(5):
        with pytest.raises(errors.ModelFormatError):
            open_checkpoint(tmp_path)
    assert len(list(open_files.iterdir())) == before
