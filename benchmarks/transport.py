"""The `transport` benchmark: rows on their way from a shard process to one trainer process on the same host.

Gathers and pooled lookups of few to many rows, by shared memory, gRPC (float32, and bfloat16 on the wire), a Ray
actor call, and plain TCP into a reused buffer, all with the same kernel at the far end and the same rows at the near
one. And the bytes that pooling saves over fetching distinct rows, and bfloat16 over float32, counted on the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.bags import Bags
from benchmarks.embedded_ray import embedded_ray
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.peer_table import Floats
from benchmarks.reaches import Reach, reaches
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.wire_bytes import CountedStore
from memory_store.kernels import gather_rows
from memory_store.table_spec import OptimizerSpec, TableSpec

LARGE_BYTES = 10_000_000
ROWS_PER_TOKEN = 100
_NO_SHARED_MEMORY = "the shard's memory could not be mapped into this process"


@dataclass(frozen=True)
class TransportSize:
    """The table, the numbers of rows of one call, and the lookup whose wire bytes are counted."""

    table_rows: int
    dim: int
    calls: tuple[int, ...]
    repeats: int
    tokens: int
    entries_per_token: int
    shards: int


FULL = TransportSize(2**20, 256, (100, 1000, 10_000, 100_000), 25, 8192, 128, 4)
QUICK = TransportSize(2**20, 256, (100, 1000, 10_000, 100_000), 7, 8192, 128, 4)


def run(size: TransportSize, *, quick: bool) -> BenchmarkRun:
    """Measure the ways to a shard, then count bytes."""
    recorder = Recorder("transport", quick=quick)
    use_threads(CORES)
    spec = TableSpec("memory", size.table_rows, size.dim, optimizer=OptimizerSpec("sgd"))
    gathers: dict[int, dict[str, Samples]] = {}
    own = np.zeros((spec.rows, spec.dim), dtype=np.float32)
    own.fill(1)  # so that its pages are there
    with embedded_ray(2), reaches(spec, max(size.calls)) as ways:
        for rows in size.calls:
            gathers[rows] = _measure_gather(recorder, ways, spec, own, rows, size.repeats)
            _measure_pool(recorder, ways, spec, rows, size.repeats)
    _set_ratios(recorder, gathers, size)

    store = CountedStore(spec, size.shards)
    bags = Bags.drawn(size.table_rows, size.dim, size.tokens, size.entries_per_token)
    counted = {
        (kind, wire): store.bytes_of(kind, bags, wire)
        for kind in ("pool", "fetch")
        for wire in ("float32", "bfloat16")
    }
    for (kind, wire), count in counted.items():
        recorder.add(
            "wire bytes of forward and backward",
            "MB",
            [count / 1e6],
            lookup=kind,
            wire=wire,
            shards=size.shards,
        )
    recorder.ratio("pool_bytes_over_fetch_bytes", counted["pool", "float32"] / counted["fetch", "float32"])
    for ratio, kind in (
        ("bfloat16_bytes_over_float32_bytes", "fetch"),
        ("bfloat16_bytes_over_float32_bytes_pool", "pool"),
    ):
        recorder.ratio(ratio, counted[kind, "bfloat16"] / counted[kind, "float32"])
    return recorder.finish()


def _measure_gather(
    recorder: Recorder, ways: dict[str, Reach], spec: TableSpec, own: Floats, rows: int, repeats: int
) -> dict[str, Samples]:
    """Gather `rows` distinct rows in every way, and out of `own` memory, in turn; seconds by way."""
    random = np.random.default_rng(rows)
    addresses = np.sort(random.choice(spec.rows, min(rows, spec.rows), replace=False)).astype(np.uint32)
    expected = ways["tcp"].gather(addresses).copy()
    for name, way in ways.items():
        _check(name, way.gather(addresses), expected)
    actions = {name: partial(way.gather, addresses) for name, way in ways.items()}
    actions["tcp, half of the rows"] = partial(ways["tcp"].gather, addresses[::2].copy())
    actions["own memory"] = partial(gather_rows, own, 0, addresses, np.empty_like(expected))
    seconds = paired_seconds(actions, repeats)
    for name, samples in seconds.items():
        recorder.add("gather", "ms", samples * 1e3, way=name, rows=rows)
    return seconds


def _measure_pool(
    recorder: Recorder, ways: dict[str, Reach], spec: TableSpec, rows: int, repeats: int
) -> None:
    """Pool `rows` rows, 100 for each token, in every way, in turn."""
    bags = Bags.drawn(spec.rows, spec.dim, rows // ROWS_PER_TOKEN, ROWS_PER_TOKEN)
    addresses, weights = bags.rows.reshape(-1).astype(np.uint32), bags.weights.reshape(-1)
    offsets = np.arange(0, rows + 1, ROWS_PER_TOKEN, dtype=np.int32)
    expected = ways["tcp"].pool(offsets, addresses, weights).copy()
    for name, way in ways.items():
        _check(name, way.pool(offsets, addresses, weights), expected)
    actions = {name: partial(way.pool, offsets, addresses, weights) for name, way in ways.items()}
    for name, samples in paired_seconds(actions, repeats).items():
        recorder.add("pooled lookup", "ms", samples * 1e3, way=name, rows=rows)


def _check(way: str, found: Floats, expected: Floats) -> None:
    """All ways bring the same bits, but those of bfloat16, which may be off by 2**-8 of each element."""
    off = 2.0**-8 if "bfloat16" in way else 0.0
    np.testing.assert_allclose(found, expected, rtol=off, atol=0)


def _set_ratios(recorder: Recorder, gathers: dict[int, dict[str, Samples]], size: TransportSize) -> None:
    """The speeds of our ways over the peers'; over several sizes, the worst one."""
    for ratio, rows in (("shm_vs_ray_actor_100k_rows", 100_000), ("shm_vs_ray_actor_1k_rows", 1000)):
        seconds = gathers.get(rows, {})
        if "shared memory" in seconds:
            speed = seconds["ray actor"] / seconds["shared memory"]
            recorder.ratio(ratio, recorder.add("ray actor / shared memory", "ratio", speed, rows=rows))
            if rows == 100_000:
                recorder.ceiling(ratio, float(np.median(seconds["ray actor"] / seconds["own memory"])))
        else:
            recorder.missing(ratio, _NO_SHARED_MEMORY if seconds else f"{rows} rows were not gathered")
    large = {rows: seconds for rows, seconds in gathers.items() if 4 * size.dim * rows >= LARGE_BYTES}
    for ratio, way, peer, bare in (
        ("grpc_vs_ray_actor_10mb", "grpc", "ray actor", "tcp"),
        ("grpc_vs_tcp_10mb", "grpc", "tcp", None),
        ("grpc_bfloat16_vs_ray_actor_10mb", "grpc bfloat16", "ray actor", "tcp, half of the rows"),
    ):
        speeds = {
            rows: recorder.add(f"{peer} / {way}", "ratio", seconds[peer] / seconds[way], rows=rows).median
            for rows, seconds in large.items()
        }
        if speeds:
            worst = min(speeds, key=lambda rows: speeds[rows])
            recorder.ratio(ratio, speeds[worst])
            if bare:
                recorder.ceiling(ratio, float(np.median(large[worst][peer] / large[worst][bare])))
        else:
            recorder.missing(ratio, "no call was that large")
