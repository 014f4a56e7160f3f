"""The files of a log: append, sync, read, remove, in one folder.

The log knows files only as this does; a simulation gives it another one, whose writes fail and tear.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from memory_store.durable_files import sync_file, sync_folder

_PIECES_AT_ONCE = 512  # below the system's limit for one write


class LogStorage(Protocol):
    """Named files that grow at their end. Every method raises OSError where the disk does."""

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        ...

    def create(self, name: str) -> None:
        """Make an empty file whose name outlives a crash; FileExistsError if there is one already."""
        ...

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        """Put bytes behind a file's end: all of them, or, with OSError, none."""
        ...

    def sync(self, name: str) -> None:
        """Return once all that was appended outlives a crash."""
        ...

    def read(self, name: str) -> memoryview:
        """All bytes of a file."""
        ...

    def remove(self, name: str) -> None: ...


class FolderStorage:
    """A folder on a local or shared file system; it is made if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, int] = {}

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def create(self, name: str) -> None:
        descriptor = os.open(
            self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        try:
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            os.unlink(self.folder / name)
            raise
        self._open[name] = descriptor

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        descriptor = self._open[name]
        size = os.fstat(descriptor).st_size
        left = [piece for piece in pieces if len(piece)]
        try:
            while left:
                written = os.writev(descriptor, left[:_PIECES_AT_ONCE])
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if written:
                    left[0] = left[0][written:]
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def sync(self, name: str) -> None:
        if name in self._open:
            os.fdatasync(self._open[name])
        else:
            sync_file(self.folder / name)

    def read(self, name: str) -> memoryview:
        path = self.folder / name
        if path.stat().st_size == 0:
            return memoryview(b"")
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def remove(self, name: str) -> None:
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
        (self.folder / name).unlink()
