"""The metrics of the shards in one process. Counting is done for each request, never for each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from memory_store import messages as m
from memory_store.cuts import CutFile
from memory_store.errors import PkmError
from memory_store.lookup_metrics import CarrierLabel, LookupMetrics
from memory_store.metric_registry import (
    DISK_SECONDS,
    LONG_SECONDS,
    REQUEST_SECONDS,
    TableLabels,
    new_registry,
)
from memory_store.shard import ShardCore
from memory_store.table import TablePart
from memory_store.traffic import rows_and_bytes

REQUESTS = tuple(kind.__name__ for kind in get_args(m.Request))
_UPDATES = {
    m.RowGradient: "rows",
    m.EntryGradient: "entries",
    m.PoolGradient: "pooled",
    m.ReplaceRows: "replaced",
}


class ShardMetrics:
    """Of one shard; of all, where a trainer has its shards in its own process. `carrier` is how requests come."""

    def __init__(self, registry: CollectorRegistry | None = None, carrier: CarrierLabel = "grpc") -> None:
        registry = self.registry = registry or new_registry()
        self.lookups = LookupMetrics(registry, carrier)
        self.requests = Counter(
            "pkm_shard_requests",
            "Requests answered, by what was asked and how it ended: ok, or the kind of the error.",
            ("request", "outcome"),
            registry=registry,
        )
        self.updates = Counter(
            "pkm_shard_updates",
            "Contributions to a step that were taken.",
            ("kind", "carrier"),
            registry=registry,
        )
        self.update_rows = Counter(
            "pkm_shard_update_rows",
            "Entries of the contributions taken: distinct rows of kinds rows and replaced, else one for each use of a row.",
            ("kind", "carrier"),
            registry=registry,
        )
        self.update_bytes = Counter(
            "pkm_shard_update_bytes",
            "Bytes of the gradients, or new values, in the contributions taken, before the wire's type.",
            ("kind", "carrier"),
            registry=registry,
        )
        self.duplicates = Counter(
            "pkm_shard_duplicates_refused",
            "Updates and commits that had come before and were answered without being applied again.",
            registry=registry,
        )
        self.commits = Counter("pkm_shard_commits", "Commits of writers that were taken.", registry=registry)
        self.optimizer_seconds = Histogram(
            "pkm_shard_optimizer_seconds",
            "Time of the row optimizer for one table in one step.",
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.version = Gauge(
            "pkm_shard_version", "Steps that the tables have had applied.", registry=registry
        )
        self.resident_bytes = Gauge(
            "pkm_shard_resident_bytes",
            "Bytes of the arrays of a table: its values, or what the optimizer and the statistics keep beside them.",
            ("table", "part"),
            registry=registry,
        )
        self.rows = Gauge("pkm_shard_rows", "Rows of a table that lie here.", ("table",), registry=registry)
        self.log_sync_seconds = Histogram(
            "pkm_shard_log_sync_seconds",
            "Time until what was appended to the log was on the disk (fsync).",
            buckets=DISK_SECONDS,
            registry=registry,
        )
        self.log_refused = Gauge(
            "pkm_shard_log_refused", "1 while the disk refuses the log's records, else 0.", registry=registry
        )
        self.replay_seconds = Gauge(
            "pkm_shard_replay_seconds",
            "Time that this process took to recover from its log when it started.",
            registry=registry,
        )
        self.cut_seconds = Histogram(
            "pkm_shard_cut_seconds",
            "Time from the begin of a cut to its last byte, beside the steps.",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        self.cut_bytes = Counter(
            "pkm_shard_cut_bytes", "Bytes of the files that the cuts written consist of.", registry=registry
        )
        self.cuts_failed = Counter(
            "pkm_shard_cuts_failed", "Cuts that could not be written here.", registry=registry
        )
        self._staleness = _Staleness()
        registry.register(self._staleness)
        self._carrier = carrier
        self._tables = TableLabels()
        self._cores: list[ShardCore] = []
        self.version.set_function(lambda: min((core.version for core in self._cores), default=0))

    def watch(self, core: ShardCore) -> None:
        """Tell of this shard too."""
        self._cores.append(core)
        self._staleness.cores.append(core)
        for part in core.tables.values():
            part.timed = self.optimizer_seconds.time
            table = self._tables.of(part.spec.name)
            values, state = _bytes_of(part)
            self.resident_bytes.labels(table, "values").inc(values)
            self.resident_bytes.labels(table, "state").inc(state)
            self.rows.labels(table).inc(sum(_size(part.bucket_slice(bucket)) for bucket in part.buckets))

    def answered(
        self, request: m.Request, reply: m.Reply | PkmError, seconds: float, *, duplicate: bool
    ) -> None:
        """A request was answered after `seconds`; an update is a `duplicate` if it had come before."""
        failed = isinstance(reply, PkmError)
        self.requests.labels(type(request).__name__, type(reply).__name__ if failed else "ok").inc()
        if failed:
            return
        rows, size_bytes = rows_and_bytes(request, reply)
        match request:
            case m.Fetch():
                self.lookups.count(request.table, "fetch", rows, size_bytes, seconds)
            case m.Pool():
                self.lookups.count(request.table, "pool", rows, size_bytes, seconds)
            case m.PoolGradient() | m.RowGradient() | m.EntryGradient() | m.ReplaceRows() | m.Commit() if (
                duplicate
            ):
                self.duplicates.inc()
            case m.Commit():
                self.commits.inc()
            case m.RowGradient() | m.EntryGradient() | m.PoolGradient() | m.ReplaceRows():
                self._count_update(request, rows, size_bytes)

    def _count_update(self, request: m.Contributing, entries: int, size_bytes: int) -> None:
        labels = _UPDATES[type(request)], self._carrier
        self.updates.labels(*labels).inc()
        self.update_rows.labels(*labels).inc(entries)
        self.update_bytes.labels(*labels).inc(size_bytes)

    def cut_ended(self, outcome: list[CutFile] | PkmError | None, seconds: float) -> None:
        """A cut came to its end; None: it was given up for a newer one."""
        if isinstance(outcome, list):
            self.cut_seconds.observe(seconds)
            self.cut_bytes.inc(sum(file.size for file in outcome))
        elif outcome is not None:
            self.cuts_failed.inc()


class _Staleness(Collector):
    """How many versions behind the one asked for the tables were, by lookups; the cores have counted that already."""

    def __init__(self) -> None:
        self.cores: list[ShardCore] = []

    def describe(self) -> Iterable[Metric]:
        yield HistogramMetricFamily(
            "pkm_shard_lookup_staleness_steps",
            "Steps that lookups by message were served behind the version they asked for (0 unless staleness is allowed).",
        )

    def collect(self) -> Iterator[Metric]:
        (family,) = self.describe()
        assert isinstance(family, HistogramMetricFamily)
        counts = [core.staleness_counts for core in self.cores]
        total = np.zeros(max((each.size for each in counts), default=1), dtype=np.int64)
        for each in counts:
            total[: each.size] += each
        upto = np.cumsum(total)
        buckets = [(str(float(steps)), float(count)) for steps, count in enumerate(upto[:-1])]
        behind = float((total * np.arange(total.size)).sum())
        family.add_metric((), [*buckets, ("+Inf", float(upto[-1]))], behind)
        yield family


def _bytes_of(part: TablePart) -> tuple[int, int]:
    state = (part.first_state, part.second_state, part.last_step, part.accesses, part.weight_sums)
    return part.values.nbytes, sum(array.nbytes for array in state)


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)
