"""Where a job's value tables lie (`memory.placement`): in host shards, on the trainer's device, or in both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from memory_store.client import StoreClient
from memory_store.opening import in_process_store
from memory_store.shard_metrics import ShardMetrics
from memory_store.table_handle import TableHandle
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.job_spec import JobSpec

if TYPE_CHECKING:
    from memory_store.spans import Spans


def store_in_process(
    job: JobSpec, device: torch.device, metrics: ShardMetrics, spans: Spans | None = None
) -> StoreClient:
    """The store of a job without shard processes, with first values; this process is its only writer."""
    if job.memory is not None and job.memory.placement == "gpu":
        return DeviceStore(job.tables(), device, metrics)
    shards, lookup = job.store.shards, job.store.lookup
    return in_process_store(job.tables(), shards, lookup=lookup, metrics=metrics, spans=spans)


def placed_tables(job: JobSpec, store: StoreClient, device: torch.device) -> dict[str, TableHandle]:
    """The tables as the layers of a trainer read them, by name."""
    memory = job.memory
    if memory is not None and memory.placement == "cached":
        return {
            name: CachedTable(store, spec, memory.cached_rows, device) for name, spec in store.specs.items()
        }
    return {name: store.table(name) for name in store.specs}


class HitRate:
    """The share of the different rows of lookups that had a copy on the device, over all cached tables of a trainer."""

    def __init__(self, tables: Mapping[str, TableHandle]) -> None:
        self._caches = [table.cache for table in tables.values() if isinstance(table, CachedTable)]
        self._found = self._looked_up = 0

    def since_last_asked(self) -> float | None:
        """None if there was no lookup, or if no table is cached."""
        found, looked_up = (
            sum(cache.found for cache in self._caches),
            sum(cache.looked_up for cache in self._caches),
        )
        share = (found - self._found) / (looked_up - self._looked_up) if looked_up > self._looked_up else None
        self._found, self._looked_up = found, looked_up
        return share
