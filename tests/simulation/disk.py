"""A disk in memory that fails, loses what was not synced, and tears what is being written."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from random import Random


class SimulatedDisk:
    """The files of one shard's log (`LogStorage`). `fired` is told of every fault by its name."""

    def __init__(self, random: Random, failing: Callable[[str], bool], fired: Callable[[str], None]) -> None:
        self._random, self._failing, self._fired = random, failing, fired
        self._files: dict[str, bytearray] = {}
        self._synced: dict[str, int] = {}

    def names(self) -> list[str]:
        return sorted(self._files)

    def create(self, name: str) -> None:
        if name in self._files:
            raise FileExistsError(name)
        self._files[name] = bytearray()
        self._synced[name] = 0

    def append(self, name: str, pieces: Sequence[memoryview]) -> None:
        if self._failing("full disk"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if name not in self._files:
            return  # a successor has removed it; who had it open writes on into what nobody will read
        for piece in pieces:
            self._files[name] += piece

    def sync(self, name: str) -> None:
        if self._failing("failed sync"):
            raise OSError(errno.EIO, "Input/output error")
        if name in self._files:
            self._synced[name] = len(self._files[name])

    def read(self, name: str) -> memoryview:
        return memoryview(bytes(self._files[name]))

    def remove(self, name: str) -> None:
        del self._files[name], self._synced[name]

    def tear(self) -> None:
        """The process was killed in the middle of its last write: an end of what was not synced is missing."""
        self._cut("torn write")

    def lose_power(self) -> None:
        """Of what was not synced any part from its begin is left."""
        self._cut("power loss")

    def _cut(self, fault: str) -> None:
        for name, content in self._files.items():
            size = self._random.randint(self._synced[name], len(content))
            if size < len(content):
                self._fired(fault)
                del content[size:]
