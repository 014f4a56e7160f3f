"""Where a job's value tables lie (`memory.placement`): in host shards, on the trainer's device, or in both."""

from __future__ import annotations

import torch

from memory_store.client import StoreClient
from memory_store.opening import in_process_store
from memory_store.table_handle import TableHandle
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.job_spec import JobSpec


def store_in_process(job: JobSpec, device: torch.device) -> StoreClient:
    """The store of a job without shard processes, with first values; this process is its only writer."""
    if job.memory is not None and job.memory.placement == "gpu":
        return DeviceStore(job.tables(), device)
    return in_process_store(job.tables(), job.store.shards, lookup=job.store.lookup)


def placed_tables(job: JobSpec, store: StoreClient, device: torch.device) -> dict[str, TableHandle]:
    """The tables as the job's layers read them, by name."""
    if job.memory is not None and job.memory.placement == "cached":
        return {
            name: CachedTable(store, spec, job.memory.cached_rows, device)
            for name, spec in store.specs.items()
        }
    return {name: store.table(name) for name in store.specs}
