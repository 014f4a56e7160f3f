"""A folder that is there whole or not at all: made beside its place, brought to the disk, and renamed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memory_store.durable_files import replace_file, sync_file, sync_folder
from memory_store.errors import UsageError

PARTS = "parts"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder which becomes `folder` if all goes well, and goes away otherwise.

    Raises UsageError if anything but an empty folder is in its place, or it can't be made.
    """
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise UsageError(f"{folder} can't be made: {error.strerror}. Choose another folder.") from None
    with beside as name:
        unfinished = Path(name) / "whole"
        unfinished.mkdir()
        yield unfinished
        put_in_place(unfinished, target)


@contextmanager
def resumable_folder(folder: Path, purpose: bytes) -> Iterator[Path]:
    """Like `whole_folder`, but yields what was made before for the same `purpose` by a process that was stopped or killed.

    That is everything but the folder PARTS, which is there for what is unfinished and does not become part of `folder`.
    A UsageError leaves nothing; it is raised also if another process is at it.
    """
    target = folder.absolute()
    unfinished = target.with_name(f".{target.name}.unfinished")
    parts, kept_purpose = unfinished / PARTS, unfinished / PARTS / "purpose"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} can't be made: {error.strerror}. Choose another folder.") from None
    with _alone_in(unfinished, folder):
        if not kept_purpose.is_file() or kept_purpose.read_bytes() != purpose:
            for path in unfinished.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            parts.mkdir()
            replace_file(kept_purpose, purpose)
        try:
            yield unfinished
            shutil.rmtree(parts)
            put_in_place(unfinished, target)
        except UsageError:
            shutil.rmtree(unfinished)
            raise


@contextmanager
def _alone_in(unfinished: Path, folder: Path) -> Iterator[None]:
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder} is being made by another process; wait for it, or choose another folder."
            ) from None
        yield
    finally:
        os.close(descriptor)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Bring the files of a folder to the disk and rename it; UsageError if anything is in its place."""
    for path in unfinished.iterdir():
        sync_file(path)
    sync_folder(unfinished)
    try:
        os.rename(unfinished, target)  # refused where anything is
    except OSError as error:
        raise UsageError(
            f"{target} can't be put in its place: {error.strerror}. Nothing was written over."
        ) from None
    sync_folder(target.parent)
