"""The `scaling` benchmark: what a larger table, and more shards, cost.

Selection compares a query with 2 sqrt(K) sub-keys, so its time may grow with sqrt(K). Reading rows out of memory,
past the caches, should hardly depend on K. A shard's memory should be its values and its
optimizer state and little else, and a shard should be ready in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from math import ceil, isqrt

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from benchmarks.bags import Bags
from benchmarks.embedded_ray import embedded_ray
from benchmarks.machine import available_bytes, resident_bytes, this_machine
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.placed_shards import placed_shards
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from memory_store.actor import RunningShards
from memory_store.client import StoreClient
from memory_store.table_handle import TableHandle
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.product_keys import ProductKeys

SMALL, LARGE = 2**16, 2**24
HEADS, K, QUERY_DIM = 4, 32, 128
_SPARE_BYTES = 2 << 30  # left to the rest of the machine


@dataclass(frozen=True)
class ScalingSize:
    """Table sizes and row width, tokens of a lookup, and the table that 1 to 4 shards hold.

    The tables of each of `shard_rows` fill at least `caches_full` times the last cache.
    """

    rows: tuple[int, ...]
    shard_rows: tuple[int, ...]
    caches_full: int
    dim: int
    tokens: int
    repeats: int
    shard_counts: tuple[int, ...]
    sharded_rows: int


_ROWS = (2**16, 2**18, 2**20, 2**22, 2**24)
FULL = ScalingSize(_ROWS, _ROWS, 4, 64, 4096, 15, (1, 2, 4), 2**20)
QUICK = ScalingSize(_ROWS, (SMALL, LARGE), 4, 64, 4096, 5, (4,), 2**18)


def run(size: ScalingSize, *, quick: bool) -> BenchmarkRun:
    """Measure selection over K; then shards: start, memory and lookups over K, and over S."""
    recorder = Recorder("scaling", quick=quick)
    use_threads(CORES)
    _measure_selection(recorder, size)
    with embedded_ray(len(size.shard_rows) + max(size.shard_counts)):
        _measure_table_sizes(recorder, size)
        for shards in size.shard_counts:
            _measure_shards(recorder, size, shards)
    return recorder.finish()


def _measure_selection(recorder: Recorder, size: ScalingSize) -> None:
    """Selection at every K, in turn, and how much faster than sqrt(K) it grows from the smallest."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(size.tokens, HEADS, QUERY_DIM, generator=generator)
    keys = {rows: ProductKeys(HEADS, isqrt(rows), QUERY_DIM, generator) for rows in size.rows}
    select = torch.no_grad()(lambda rows: keys[rows].select(queries, K))
    seconds = paired_seconds({str(rows): partial(select, rows) for rows in size.rows}, size.repeats)
    smallest = min(size.rows)
    for rows in size.rows:
        recorder.add("selection", "ms", seconds[str(rows)] * 1e3, rows=rows)
        growth = seconds[str(rows)] / seconds[str(smallest)] / (rows / smallest) ** 0.5
        recorder.add("selection time / sqrt(K), over that of the smallest", "ratio", growth, rows=rows)


def _measure_table_sizes(recorder: Recorder, size: ScalingSize) -> None:
    """One shard process for each K: how soon it is ready, what it occupies, and lookups in all of them in turn.

    The largest table has Adam's state beside its values, which is what its memory is measured with. A lookup reads
    as many distinct rows as the smallest table has. Small tables come in such numbers that, when a table's turn comes
    again, the others have pushed it out of the caches: all sizes are read from memory.
    """
    read, largest = min(size.shard_rows), max(size.shard_rows)
    ideal = 3 * 4 * largest * size.dim
    cache_bytes = (this_machine().last_level_cache_mib or 64) * 2**20
    siblings = {
        rows: max(1, ceil(size.caches_full * cache_bytes / (4 * rows * size.dim))) for rows in size.shard_rows
    }
    values_bytes = 4 * size.dim * sum(rows * count for rows, count in siblings.items())
    wanted = ideal + values_bytes + _SPARE_BYTES
    if wanted > available_bytes():
        reason = f"tables of up to {largest} rows need {wanted / 2**30:.1f} GiB of free memory"
        recorder.missing("lookups_2e24_over_2e16", reason)
        recorder.missing("resident_over_ideal_bytes", reason)
        return
    with ExitStack() as stack:
        lookups = {}
        for rows in size.shard_rows:
            optimizer = OptimizerSpec("adam" if rows == largest else "sgd")
            specs = [
                TableSpec(f"memory-{number}", rows, size.dim, optimizer=optimizer)
                for number in range(siblings[rows])
            ]
            begun = time.perf_counter()
            shards, store = stack.enter_context(_running(specs, 1))
            recorder.add("start of a shard", "s", [time.perf_counter() - begun], rows=rows)
            if rows == largest:
                _step(store, Bags.drawn(rows, size.dim, size.tokens, HEADS * K))
                _record_resident(recorder, shards, rows, ideal)
            tables = cycle([store.table(spec.name) for spec in specs])
            lookups[rows] = partial(_look_up_next, tables, _distinct_rows(rows, read))
        seconds = paired_seconds({str(rows): lookup for rows, lookup in lookups.items()}, size.repeats)
    bare = _bare_reads(siblings, size, read)
    for rows in size.shard_rows:
        recorder.add("first numbers of rows", "million rows/s", read / bare[str(rows)] / 1e6, rows=rows)
        recorder.add(
            "pooled lookup, cold caches", "million rows/s", read / seconds[str(rows)] / 1e6, rows=rows
        )
    if {SMALL, LARGE} <= set(size.shard_rows):
        share = seconds[str(SMALL)] / seconds[str(LARGE)]
        recorder.ratio(
            "lookups_2e24_over_2e16", recorder.add("lookups at 2^24 rows / at 2^16", "ratio", share)
        )
        recorder.ceiling("lookups_2e24_over_2e16", float(np.median(bare[str(SMALL)] / bare[str(LARGE)])))
    else:
        recorder.missing("lookups_2e24_over_2e16", "one of the two tables was not measured")


def _bare_reads(siblings: dict[int, int], size: ScalingSize, read: int) -> dict[str, Samples]:
    """Seconds in which NumPy reads the first number of each of `read` rows of tables as large, and as many, as those of the
    shards: the time that memory itself takes to find a row.
    """
    reads = {}
    for rows, count in siblings.items():
        tables = np.empty((count, rows, size.dim), dtype=np.float32)
        tables.fill(1)  # so that its pages are there
        # Flat, because take would first copy a column of a table to have its numbers side by side.
        numbers, out = cycle(tables.reshape(count, -1)), np.empty(read, dtype=np.float32)
        wanted = _distinct_rows(rows, read).reshape(-1) * size.dim
        reads[str(rows)] = partial(_read_next, numbers, wanted, out)
    return paired_seconds(reads, size.repeats)


def _read_next(
    numbers: Iterator[NDArray[np.float32]], wanted: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    np.take(next(numbers), wanted, out=out, mode="wrap")  # any mode but "raise" does without a second buffer


def _distinct_rows(rows: int, count: int) -> NDArray[np.int64]:
    """`count` different rows, as those of tokens with HEADS * K entries each."""
    drawn = np.random.default_rng(0).choice(rows, count, replace=False)
    return drawn.reshape(-1, HEADS * K)


def _look_up_next(tables: Iterator[TableHandle], rows: NDArray[np.int64]) -> None:
    next(tables).lookup(rows, np.ones(rows.shape, dtype=np.float32), keep=False)


def _record_resident(recorder: Recorder, shards: RunningShards, rows: int, ideal: int) -> None:
    resident = resident_bytes(ray.get(shards.actors[0].process_id.remote()))
    recorder.add("memory of a shard", "GiB", [resident / 2**30], rows=rows)
    share = recorder.add(
        "memory of a shard / values and optimizer state", "ratio", [resident / ideal], rows=rows
    )
    recorder.ratio("resident_over_ideal_bytes", share)


def _measure_shards(recorder: Recorder, size: ScalingSize, shards: int) -> None:
    """Start-up and whole passes over a table in `shards` processes, which share this machine's cores."""
    spec = TableSpec("memory", size.sharded_rows, size.dim, optimizer=OptimizerSpec("adam"))
    bags = Bags.drawn(spec.rows, spec.dim, size.tokens, HEADS * K)
    begun = time.perf_counter()
    with _running([spec], shards) as (_, store):
        recorder.add("start of all shards", "s", [time.perf_counter() - begun], shards=shards, rows=spec.rows)
        table = store.table(spec.name)
        lookup = partial(table.lookup, bags.rows, bags.weights, keep=False)
        seconds = paired_seconds({"lookup": lookup, "step": partial(_step, store, bags)}, size.repeats)
    for name, samples in seconds.items():
        what = "lookup" if name == "lookup" else "lookup, backward and update"
        recorder.add(what, "million rows/s", bags.rows.size / samples / 1e6, shards=shards, rows=spec.rows)


@contextmanager
def _running(specs: list[TableSpec], shards: int) -> Iterator[tuple[RunningShards, StoreClient]]:
    """Tables in shard processes, with this process as their only writer."""
    with placed_shards(f"benchmark-{specs[0].rows}-rows-{shards}-shards", specs, shards) as running:
        store = running.group.connect()
        store.take_over()
        yield running, store
        store.close()


def _step(store: StoreClient, bags: Bags) -> None:
    """Lookup, backward pass and update of the only table, waiting for the shards."""
    (name,) = store.specs
    store.table(name).lookup(bags.rows, bags.weights, keep=True).backward(bags.output_gradient)
    store.step({name: 1e-3})
    store.synchronise()
