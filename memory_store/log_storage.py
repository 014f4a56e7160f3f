"""The files of a log: append, sync, read, remove, in one folder.

The log knows files only as this does; a simulation gives it another one, whose writes fail and tear.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from memory_store.durable_files import sync_file, sync_folder

_STAGED_BYTES_MIN = 1 << 20


class LogStorage(Protocol):
    """Named files that grow at their end. Every method raises OSError where the disk does."""

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        ...

    def create(self, name: str) -> None:
        """Make an empty file whose name outlives a crash; FileExistsError if there is one already."""
        ...

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        """Put bytes, whole blocks of 4 KiB in all, behind a file's end: all of them, or, with OSError, none."""
        ...

    def sync(self, name: str) -> None:
        """Return once all that was appended outlives a crash."""
        ...

    def read(self, name: str) -> memoryview:
        """All bytes of a file."""
        ...

    def remove(self, name: str) -> None: ...


class FolderStorage:
    """A folder on a local or shared file system; it is made if it is not there.

    Whole blocks are written past the page cache where the file system can: nobody reads a log while its writer lives, and
    fresh pages for what is appended cost more than writing it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, int] = {}
        self._staged = mmap.mmap(-1, _STAGED_BYTES_MIN)  # begins a page, as writing past the cache demands

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def create(self, name: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.folder / name, flags, 0o644)
        try:
            sync_folder(self.folder)
        except OSError:
            os.close(descriptor)
            os.unlink(self.folder / name)
            raise
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND | os.O_DIRECT)
        self._open[name] = descriptor

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        descriptor = self._open[name]
        size = os.fstat(descriptor).st_size
        record = self._side_by_side(pieces)
        try:
            _write_all(descriptor, record)
        except OSError as error:
            os.ftruncate(descriptor, size)
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            # The file system has said that it can write past the cache, and can't.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
            self.append(name, pieces)

    def _side_by_side(self, pieces: Sequence[memoryview]) -> memoryview:
        size = sum(len(piece) for piece in pieces)
        if size > len(self._staged):
            self._staged = mmap.mmap(-1, 1 << (size - 1).bit_length())
        whole = memoryview(self._staged)[:size]
        position = 0
        for piece in pieces:
            whole[position : position + len(piece)] = piece
            position += len(piece)
        return whole

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


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
