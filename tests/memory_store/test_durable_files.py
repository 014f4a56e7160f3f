"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from memory_store.durable_files import replace_file, sha256_of


def test_a_file_is_replaced_in_one_step(tmp_path: Path):
    path = tmp_path / "file"
    for content in (b"first", b"second and longer", b""):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_before_the_end_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def crash(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(f"memory_store.durable_files.os.{call}", crash)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        order.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr("memory_store.durable_files.os.fsync", watched_fsync)
    monkeypatch.setattr("memory_store.durable_files.os.replace", watched_replace)
    replace_file(tmp_path / "file", b"content")
    assert order == ["sync file.partial", "rename", f"sync {tmp_path.name}"]


def test_the_digest_is_sha256(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"content" * 100_000).hexdigest()
