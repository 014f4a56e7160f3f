"""A cut: one consistent checkpoint of everything, all at the same step.

A cut is a folder `step-00000600` of files and one `manifest.json`, written last: write to a partial name,
fsync, rename, fsync of the folder. Without its manifest a cut does not exist. The manifest is one JSON object
in canonical form

  {"body": {"format": 1, "step": ..., "tables": [...], "state": {...}, "files": [...]}, "sha256": "<of the
  body>"}

in which `files` names every file with its size and SHA-256, and for a table file the buckets its record
batches hold, in order. One flipped byte anywhere, in a file or in the manifest, is found and named when the
cut is read. Nothing in a cut is pickled: table buckets are Arrow IPC (bucket_files.py), dense weights
safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory_store.durable_files import replace_file, sha256_of, sync_folder
from memory_store.errors import CutError

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 8 << 20
_FOLDER = re.compile(r"step-(\d{8,12})")


class CutFile(BaseModel):
    """One file of a cut. `buckets` lists, for a table file, the bucket of each record batch, in order.

    A `delta` holds only rows that were touched since the files of its shard before it in the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")  # in the folder of the cut itself
    size: int
    sha256: str
    table: str | None = None
    buckets: tuple[int, ...] = ()
    delta: bool = False


class Manifest(BaseModel):
    """What a complete cut holds. `tables` are the TableSpecs, `state` is what the trainer needs to go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    step: int
    tables: tuple[dict[str, Any], ...] = ()
    state: dict[str, Any] = {}
    files: tuple[CutFile, ...]


def describe_file(
    path: Path, *, table: str | None = None, buckets: Iterable[int] = (), delta: bool = False
) -> CutFile:
    """The manifest entry of a file that has just been written."""
    return CutFile(
        name=path.name,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        table=table,
        buckets=tuple(buckets),
        delta=delta,
    )


def cut_folder(cuts: Path, step: int) -> Path:
    return cuts / f"step-{step:08d}"


def is_cut_folder(folder: Path) -> bool:
    """Whether a folder is named as a cut's is."""
    return _FOLDER.fullmatch(folder.name) is not None


def cut_step(folder: Path) -> int:
    """The step of a cut's folder, from its name."""
    return int(folder.name.removeprefix("step-"))


def begin_cut(cuts: Path, step: int) -> Path:
    """An empty folder for the cut of `step`; what an interrupted attempt left there is removed, a complete
    cut is not.
    """
    folder = cut_folder(cuts, step)
    if (folder / MANIFEST).exists():
        raise CutError(f"{folder} is a complete cut already; nothing was written over.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sync_folder(cuts)
    return folder


def finish_cut(folder: Path, manifest: Manifest) -> None:
    """Make the cut exist: all its files are on the disk, now the manifest follows.

    Raises CutError if one of them is not there: somebody else has begun this cut anew.
    """
    for entry in manifest.files:
        if not (folder / entry.name).is_file():
            raise CutError(f"{folder / entry.name} is gone; the cut of step {manifest.step} was given up.")
    sync_folder(folder)
    body = _canonical(manifest.model_dump(mode="json"))
    digest = hashlib.sha256(body).hexdigest()
    replace_file(folder / MANIFEST, b'{"body":' + body + b',"sha256":"' + digest.encode() + b'"}\n')


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cut. Raises CutError, naming the file, if it is missing or not exactly as written."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise CutError(f"{folder} is not a complete cut: it has no {MANIFEST}.")
    if path.stat().st_size > MANIFEST_BYTES_MAX:
        raise CutError(f"{path} is damaged: {path.stat().st_size} bytes is more than a manifest can have.")
    content = path.read_bytes()
    try:
        body = json.loads(content)["body"]
        canonical = _canonical(body)
        digest = hashlib.sha256(canonical).hexdigest().encode()
        if content != b'{"body":' + canonical + b',"sha256":"' + digest + b'"}\n':
            raise ValueError("checksum")
        manifest = Manifest.model_validate(body)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        raise CutError(
            f"{path} is damaged: its checksum does not match its content. Use an older cut, or train again."
        ) from None
    names = Counter(entry.name for entry in manifest.files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise CutError(f"{path} names {twice[0]} more than once; no cut has a file twice.")
    return manifest


def check_file(folder: Path, entry: CutFile) -> Path:
    """The path of a cut's file, after its size and checksum were found right.

    Raises CutError naming the file.
    """
    path = folder / entry.name
    if path.is_symlink() or not path.is_file():
        raise CutError(f"{path} is missing from the cut.")
    if path.stat().st_size != entry.size:
        raise CutError(
            f"{path} is damaged: it has {path.stat().st_size} bytes, the manifest says {entry.size}."
        )
    if sha256_of(path) != entry.sha256:
        raise CutError(
            f"{path} is damaged: its checksum is not the manifest's. Use an older cut, or train again."
        )
    return path


def verify_cut(folder: Path) -> Manifest:
    """Check every byte of a cut. Raises CutError naming the first bad file."""
    manifest = read_manifest(folder)
    for entry in manifest.files:
        check_file(folder, entry)
    return manifest


def complete_cuts(cuts: Path) -> list[Path]:
    """Folders of the cuts that exist (have a manifest), oldest first."""
    if not cuts.is_dir():
        return []
    folders = [folder for folder in cuts.iterdir() if is_cut_folder(folder) and (folder / MANIFEST).is_file()]
    return sorted(folders, key=cut_step)


def prune_cuts(cuts: Path, keep: int) -> None:
    """Remove all but the newest `keep` cuts; of several, one shares no file with the newest, or one more is kept that
    does not.

    The manifest goes first, so a cut half removed no longer exists.
    """
    folders = complete_cuts(cuts)
    older, kept = folders[:-keep], folders[-keep:]
    spare = _spare(older, kept)
    for folder in older:
        if folder != spare:
            (folder / MANIFEST).unlink()
            sync_folder(folder)
            shutil.rmtree(folder)


def _spare(older: list[Path], kept: list[Path]) -> Path | None:
    """The newest of the older cuts that shares no file with the newest of all, where all that are kept do."""
    newest = _inodes(kept[-1])
    if len(kept) == 1 or not all(newest & _inodes(folder) for folder in kept):
        return None
    return next((folder for folder in reversed(older) if not newest & _inodes(folder)), None)


def _inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.iterdir() if path.is_file()}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
