"""Reading the tables of shards on the same host in place, without a message.

The shards' blocks (arena.py) are mapped side by side into this process, so that the values of a table are one
array `[addresses, D]`, as if one process held them; the kernels can't tell the difference, and the sums are
those of one process, whatever the number of shards.

Why a reader never sees a half-updated row: the tables leave version v only when every writer of the group has
committed step v. So a writer that waits until the clock of each shard shows version v of its own epoch may
read in place until it commits step v itself. When a shard has died its block stays as it was while it is
mapped; who waits there for a version that does not come maps the shard's successor instead. A writer whose
group has been replaced may read torn rows; what it computes from them is refused. Who is no member of the
group must look up by message.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store.arena import CLOCK_EPOCH, CLOCK_INCARNATION, CLOCK_VERSION, INCARNATION_BYTES, PAGE
from memory_store.errors import FencedError, StoreError
from memory_store.messages import ShardInfo
from memory_store.placement import Placement
from memory_store.table_spec import TableSpec

_PROT_NONE, _MAP_NORESERVE, _MAP_FIXED = 0, 0x4000, 0x10
_FAILED = ctypes.c_void_p(-1).value
_POLL_S = 50e-6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class MappedShards:
    """All shards of a store, mapped into this process for reading. Made by `map_shards`.

    `wait` and reading are for one thread: between the two no block may be replaced by its successor's.
    """

    def __init__(
        self,
        clocks: list[NDArray[np.int64]],
        values: dict[str, NDArray[Any]],
        incarnations: Sequence[str],
    ) -> None:
        self._clocks = clocks
        self._values = values
        self._incarnations = list(incarnations)

    def values(self, table: str) -> NDArray[Any]:
        """All rows of a table by address, `[addresses, D]`; never write to it."""
        return self._values[table]

    def wait(
        self,
        version: int,
        epoch: int,
        timeout_s: float,
        while_waiting: Callable[[], None],
        remapped: Callable[[Sequence[str]], MappedShards | None] = lambda incarnations: None,
    ) -> None:
        """Return once every shard is at `version` under `epoch`; calls `while_waiting` now and then.

        `remapped` gives the shards mapped anew if they are not these `incarnations` any more.
        Raises FencedError if another epoch has taken over, StoreError if the version is gone or does not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while (shard := self._shard_behind(version, epoch)) is not None:
            clock = self._clocks[shard]
            if clock[CLOCK_EPOCH] > epoch:
                raise FencedError(f"Epoch {epoch} is stale: epoch {clock[CLOCK_EPOCH]} has taken over.")
            if clock[CLOCK_VERSION] > version or time.monotonic() > deadline:
                raise StoreError(
                    f"Shard {shard} is at version {clock[CLOCK_VERSION]} where {version} was wanted "
                    f"(waited up to {timeout_s:g} s for the other writers)."
                )
            while_waiting()
            if (successor := remapped(self._incarnations)) is not None:
                self._clocks, self._values = successor._clocks, successor._values
                self._incarnations = successor._incarnations
            time.sleep(_POLL_S)

    def _shard_behind(self, version: int, epoch: int) -> int | None:
        for shard, clock in enumerate(self._clocks):
            if clock[CLOCK_VERSION] != version or clock[CLOCK_EPOCH] != epoch:
                return shard
        return None


def map_shards(
    infos: Sequence[ShardInfo], specs: Sequence[TableSpec], placement: Placement
) -> MappedShards | None:
    """Map the shards that `infos` describe, or None if one of them is not on this host or its rows don't fill pages."""
    arenas = [json.loads(info.arena) for info in infos]
    descriptors: list[int] = []
    try:
        for arena in arenas:
            # On another host the path may lead to anything: a pipe, say, which must not be waited for.
            descriptors.append(os.open(arena["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        clocks = [_clock(descriptor) for descriptor in descriptors]
        if not all(_signed(clock, info.incarnation) for clock, info in zip(clocks, infos, strict=True)):
            return None
        values = {}
        for spec in specs:
            offsets = [int(arena["offsets"][spec.name]) for arena in arenas]
            mapped = _side_by_side(descriptors, offsets, spec, placement)
            if mapped is None:
                return None
            values[spec.name] = mapped
        return MappedShards(clocks, values, [info.incarnation for info in infos])
    except (OSError, KeyError, ValueError):
        return None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _clock(descriptor: int) -> NDArray[np.int64]:
    return np.frombuffer(mmap.mmap(descriptor, PAGE, prot=mmap.PROT_READ), dtype=np.int64)


def _signed(clock: NDArray[np.int64], incarnation: str) -> bool:
    words = clock[CLOCK_INCARNATION : CLOCK_INCARNATION + INCARNATION_BYTES // 8]
    return words.tobytes().rstrip(b"\0") == incarnation.encode()


def _side_by_side(
    descriptors: Sequence[int], offsets: Sequence[int], spec: TableSpec, placement: Placement
) -> NDArray[Any] | None:
    """The parts of a table as one read-only array `[addresses, D]`; None if a part doesn't end at the end of a page."""
    bounds = placement.address_bounds(spec.rows) * spec.dim * spec.storage_dtype.itemsize
    if (bounds[:-1] % PAGE).any() or any(offset % PAGE for offset in offsets):
        return None
    size = int(bounds[-1])
    base = _libc.mmap(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if base == _FAILED:
        raise OSError(ctypes.get_errno(), "no room to map the shards")
    for descriptor, offset, begin, end in zip(descriptors, offsets, bounds[:-1], bounds[1:], strict=True):
        if end > begin:
            where, length = base + int(begin), int(end - begin)
            flags = mmap.MAP_SHARED | _MAP_FIXED
            if _libc.mmap(where, length, mmap.PROT_READ, flags, descriptor, offset) == _FAILED:
                raise OSError(ctypes.get_errno(), "a shard's block can't be mapped")
    block = (ctypes.c_uint8 * size).from_address(base)
    weakref.finalize(block, _libc.munmap, base, size)
    return np.ctypeslib.as_array(block).view(spec.storage_dtype).reshape(-1, spec.dim)
