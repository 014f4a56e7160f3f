"""Every kernel of the value table beside a copy of memory: bytes moved per second, on one core and on all.

Bytes are those the work can't do without: rows, state and outputs once each way, and the entries that name
them. What caches fetch besides, or what is fetched twice, counts against the kernel. The tables are far larger
than the caches and rows are drawn uniformly. A ratio of targets.py is that of the *worst* case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.bags import BETAS, EPS, Bags
from benchmarks.copy_bandwidth import MemoryCopy
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.results import Measurement, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.touched_lines import touching
from memory_store.arena import Arena, padded
from memory_store.grouping import group_by_address
from memory_store.kernels import gather_rows, pool_rows, weight_gradients
from memory_store.optimizers import Contributions, RowState, update_rows
from memory_store.reused_memory import empty
from memory_store.table import STATE_SHIFT
from memory_store.table_spec import OptimizerKind, OptimizerSpec
from memory_store.value_types import from_bfloat16, to_bfloat16

PER_BAG = 32
_ENTRY_BYTES = 8  # address and weight
_PATTERN = 1_000_003  # a prime, so no two rows near each other are equal

BandwidthType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BandwidthSize:
    """Bytes of a float32 table; row widths, and those at which one thread is measured too; bytes of float32 rows
    that one call reads.
    """

    table_bytes: int
    dims: tuple[int, ...]
    one_thread_dims: tuple[int, ...]
    touched_bytes: int
    repeats: int


@dataclass(frozen=True)
class _Kernel:
    """Something that touches rows: the call, the bytes it must move, the ratio it counts for, and what shows its limit."""

    name: str
    call: Callable[[], object]
    bytes_moved: int
    ratio: str | None
    limit: Callable[[], object] | None = None


class _Share(NamedTuple):
    """A kernel's share of the copy bandwidth, and that of what shows its limit."""

    measured: Measurement
    limit: Measurement | None


class _Room:
    """Memory for the values and for every optimizer's state, in an arena as on a shard; all tables use it in turn."""

    def __init__(self, table_bytes: int, narrowest_dim: int) -> None:
        numbers, rows_max = table_bytes // 4, table_bytes // (4 * narrowest_dim)
        arena = Arena(3 * padded(2 * STATE_SHIFT + table_bytes) + 3 * padded(2 * STATE_SHIFT + 4 * rows_max))
        self.values = arena.allocate((numbers,), np.float32)
        self.wide = [arena.allocate((numbers,), np.float32, shift=place * STATE_SHIFT) for place in (1, 2)]
        self.narrow = [arena.allocate((rows_max,), np.float32, shift=place * STATE_SHIFT) for place in (1, 2)]
        self.last_step = arena.allocate((rows_max,), np.uint32).view(np.uint32)

    def fill(self, dtype: BandwidthType) -> None:
        """Fill the values with normal numbers, stored as `dtype`."""
        numbers = np.random.default_rng(0).standard_normal(_PATTERN, dtype=np.float32)
        stored = to_bfloat16(numbers) if dtype == "bfloat16" else numbers
        flat = self.values.view(stored.dtype)
        for begin in range(0, flat.size, _PATTERN):
            part = flat[begin : begin + _PATTERN]
            part[:] = stored[: part.size]


class _Table:
    """A table of as many rows of `dim` as `room` has place for in float32."""

    def __init__(self, room: _Room, dim: int, dtype: BandwidthType) -> None:
        self.dim, self.dtype, self._room = dim, dtype, room
        self.rows = room.values.size // dim
        stored: NDArray[Any] = room.values.view(np.uint16) if dtype == "bfloat16" else room.values
        self.values = stored[: self.rows * dim].reshape(self.rows, dim)

    def state(self, kind: OptimizerKind) -> RowState:
        """The arrays that an optimizer updates, with state of the widths that it needs."""
        room = self._room
        first, second = (
            (room.wide if width > 1 else room.narrow)[place][: self.rows * width].reshape(self.rows, width)
            for place, width in enumerate(OptimizerSpec(kind).state_widths(self.dim))
        )
        return RowState(self.values, first, second, room.last_step[: self.rows])


def measure_bandwidth(recorder: Recorder, size: BandwidthSize) -> None:
    """Record every kernel's bytes per second, and set the three `..._of_copy_bandwidth` ratios."""
    copy, room = MemoryCopy(CORES), _Room(size.table_bytes, min(size.dims))
    worst: dict[str, _Share] = {}
    for dtype in get_args(BandwidthType):
        room.fill(dtype)
        for dim in size.dims:
            table = _Table(room, dim, dtype)
            bags = Bags.drawn(table.rows, dim, size.touched_bytes // (4 * dim * PER_BAG), PER_BAG)
            for ratio, share in _measure_table(recorder, table, bags, copy, size):
                if ratio not in worst or share.measured.median < worst[ratio].measured.median:
                    worst[ratio] = share
    for ratio, share in worst.items():
        recorder.ratio(ratio, share.measured)
        if share.limit is not None:
            recorder.ceiling(ratio, share.limit.median)


def _measure_table(
    recorder: Recorder, table: _Table, bags: Bags, copy: MemoryCopy, size: BandwidthSize
) -> list[tuple[str, _Share]]:
    """All kernels on one table; returns the measured shares of the copy bandwidth, with their ratio's name."""
    kernels = _kernels(table, bags)
    if table.dim != min(size.dims):  # the worst cases, whose limits count, are those of the narrowest rows
        kernels = [replace(kernel, limit=None) for kernel in kernels]
    bytes_moved = {kernel.name: kernel.bytes_moved for kernel in kernels} | {"copy": copy.bytes_moved}
    actions: dict[str, Callable[[], object]] = {}
    for threads in sorted({1, CORES}) if table.dim in size.one_thread_dims else [CORES]:
        actions[f"copy {threads}"] = partial(copy.run, threads)
        for kernel in kernels:
            actions[f"{kernel.name} {threads}"] = partial(_on_threads, threads, kernel.call)
    limits = {
        kernel.name: partial(_on_threads, CORES, kernel.limit)
        for kernel in kernels
        if kernel.limit is not None
    }
    seconds = paired_seconds(
        actions | {_limit_of(name): limit for name, limit in limits.items()}, size.repeats
    )

    rates: dict[str, Samples] = {}
    for action, samples in ((action, seconds[action]) for action in actions):
        name, _, threads_used = action.rpartition(" ")
        rates[action] = bytes_moved[name] / samples / 1e9
        recorder.add(
            name, "GB/s", rates[action], values=table.dtype, threads=int(threads_used), dim=table.dim
        )
    case: dict[str, str | int] = {"values": table.dtype, "dim": table.dim}
    shares = []
    for kernel in kernels:
        share = rates[f"{kernel.name} {CORES}"] / rates[f"copy {CORES}"]
        measured, limit = recorder.add(f"{kernel.name} / copy", "ratio", share, **case), None
        if kernel.name in limits:
            of_limit = kernel.bytes_moved / seconds[_limit_of(kernel.name)] / 1e9
            limit = recorder.add(
                f"{_limit_of(kernel.name)} / copy", "ratio", of_limit / rates[f"copy {CORES}"], **case
            )
        if kernel.ratio:
            shares.append((kernel.ratio, _Share(measured, limit)))
        if f"{kernel.name} 1" in seconds and CORES > 1:
            gain = seconds[f"{kernel.name} 1"] / seconds[f"{kernel.name} {CORES}"]
            recorder.add(f"{kernel.name} on all threads / on one", "ratio", gain, **case)
    if table.dtype == "float32":
        recorder.add(
            "pool / embedding_bag",
            "ratio",
            seconds[f"embedding_bag {CORES}"] / seconds[f"pool {CORES}"],
            **case,
        )
    return shares


def _limit_of(name: str) -> str:
    return f"the lines of {name}"


def _on_threads(threads: int, call: Callable[[], object]) -> None:
    use_threads(threads)
    call()


def _kernels(table: _Table, bags: Bags) -> list[_Kernel]:
    """The kernels on `table`, with their outputs allocated; what they find is checked here."""
    entries, tokens, dim = bags.rows.size, bags.rows.shape[0], table.dim
    row_bytes, vectors_bytes = dim * table.values.itemsize, 4 * tokens * dim
    addresses, weights = bags.rows.reshape(-1).astype(np.uint32), bags.weights.reshape(-1)
    offsets = np.arange(tokens + 1, dtype=np.int32) * np.int32(PER_BAG)
    gathered = empty((entries, dim), np.float32)
    pooled = np.empty((tokens, dim), dtype=np.float32)
    gradient = np.empty(entries, dtype=np.float32)
    gather = partial(gather_rows, table.values, 0, addresses, gathered)
    pool = partial(pool_rows, table.values, 0, offsets, addresses, weights, pooled)
    differentiate = partial(
        weight_gradients, table.values, 0, offsets, addresses, bags.output_gradient, gradient
    )
    read_bytes = entries * (row_bytes + _ENTRY_BYTES)
    kernels = [
        _Kernel("gather", gather, entries * (row_bytes + 4 * dim + 4), "gather_of_copy_bandwidth"),
        _Kernel("pool", pool, read_bytes + vectors_bytes, "pool_of_copy_bandwidth"),
        _Kernel("weight gradient", differentiate, read_bytes + vectors_bytes, None),
    ]
    for kernel in kernels:
        kernel.call()
    stored = table.values[addresses]
    expected = from_bfloat16(stored) if table.dtype == "bfloat16" else stored
    np.testing.assert_array_equal(gathered, expected)
    by_bag = expected.reshape(tokens, PER_BAG, dim)
    np.testing.assert_allclose(pooled, np.einsum("tmd,tm->td", by_bag, bags.weights), rtol=1e-4, atol=1e-4)
    products = np.einsum("tmd,td->tm", by_bag, bags.output_gradient)
    np.testing.assert_allclose(gradient.reshape(tokens, PER_BAG), products, rtol=1e-3, atol=1e-3)

    if table.dtype == "float32":
        values, rows = torch.from_numpy(table.values), torch.from_numpy(bags.rows)
        bag = partial(
            F.embedding_bag, rows, values, per_sample_weights=torch.from_numpy(bags.weights), mode="sum"
        )
        np.testing.assert_allclose(pooled, bag().numpy(), rtol=1e-4, atol=1e-4)
        kernels.append(_Kernel("embedding_bag", bag, read_bytes + vectors_bytes, None))
    return kernels + _updates(table, bags, addresses, weights, row_bytes)


def _updates(
    table: _Table, bags: Bags, addresses: NDArray[np.uint32], weights: NDArray[np.float32], row_bytes: int
) -> list[_Kernel]:
    """One update per optimizer, of the rows of pooled bags, which have been grouped before."""
    tokens = np.arange(bags.rows.shape[0], dtype=np.int32).repeat(PER_BAG)
    contributions = Contributions.grouped(group_by_address(addresses), tokens, weights, bags.output_gradient)
    distinct = contributions.addresses.size
    entry_bytes = addresses.size * (_ENTRY_BYTES + 4) + 4 * bags.output_gradient.size
    kernels = []
    for kind in get_args(OptimizerKind):
        optimizer = OptimizerSpec(kind, betas=BETAS, eps=EPS)
        update = partial(
            update_rows,
            optimizer,
            table.state(kind),
            0,
            contributions,
            step=1,
            learning_rate=1e-3,
            scale=1.0,
            seed=0,
        )
        state_bytes = 4 * sum(optimizer.state_widths(table.dim)) + 4
        touched_bytes = distinct * 2 * (row_bytes + state_bytes)
        kernels.append(
            _Kernel(
                f"update {kind}",
                update,
                touched_bytes + entry_bytes,
                "update_of_copy_bandwidth",
                touching(table.state(kind), contributions),
            )
        )
    return kernels
