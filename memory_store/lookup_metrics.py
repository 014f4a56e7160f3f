"""The metrics of lookups. Each lookup is counted once, by the process that reads the rows.

That is the shard, for a lookup that comes as a message (one request at each shard), and the trainer, for one that reads the
shards' memory in place (one lookup, whatever the number of shards).
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from memory_store.metric_registry import REQUEST_SECONDS, TableLabels

CarrierLabel = Literal["grpc", "in_process", "shared_memory"]
LookupLabel = Literal["fetch", "pool", "in_place"]


class LookupMetrics:
    """The lookups of one process, all of them by one `carrier`."""

    def __init__(self, registry: CollectorRegistry, carrier: CarrierLabel) -> None:
        labels = ("table", "kind", "carrier")
        self.lookups = Counter(
            "pkm_lookups",
            "Lookups answered: requests at a shard, or whole lookups that read shared memory in place.",
            labels,
            registry=registry,
        )
        self.rows = Counter(
            "pkm_lookup_rows",
            "Rows read by lookups: distinct ones by fetch, one for each entry by pool and in place.",
            labels,
            registry=registry,
        )
        self.size_bytes = Counter(
            "pkm_lookup_bytes",
            "Bytes of values that lookups gave: rows by fetch, sums by pool; rows read in place. Before the wire's type.",
            labels,
            registry=registry,
        )
        self.seconds = Histogram(
            "pkm_lookup_seconds",
            "Time from a lookup's arrival to its answer, the wait for its version included.",
            ("kind", "carrier"),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._carrier = carrier
        self._tables = TableLabels()
        # To find the series by their labels takes longer than to count.
        self._series: dict[tuple[str, str], tuple[Counter, Counter, Counter, Histogram]] = {}

    def count(self, table: str, kind: LookupLabel, rows: int, size_bytes: int, seconds: float) -> None:
        """One lookup that was answered."""
        series = self._series.get((table, kind))
        if series is None:
            series = self._series[table, kind] = self._series_of(table, kind)
        lookups, all_rows, all_bytes, all_seconds = series
        lookups.inc()
        all_rows.inc(rows)
        all_bytes.inc(size_bytes)
        all_seconds.observe(seconds)

    def _series_of(self, table: str, kind: LookupLabel) -> tuple[Counter, Counter, Counter, Histogram]:
        labels = self._tables.of(table), kind, self._carrier
        return (
            self.lookups.labels(*labels),
            self.rows.labels(*labels),
            self.size_bytes.labels(*labels),
            self.seconds.labels(kind, self._carrier),
        )

    def read_in_place(self, table: str, rows: int, size_bytes: int, seconds: float) -> None:
        """One lookup that a trainer has answered itself."""
        self.count(table, "in_place", rows, size_bytes, seconds)
