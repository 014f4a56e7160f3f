"""A value table cut by rows over shards, with its row optimizer beside it.

Open a store with `in_process_store` or `connect`, look rows up through `store.table(name)`, move the table
with `store.step`. shard.py explains the step protocol; errors.py lists what can be raised.
"""

from memory_store.access import AccessReport
from memory_store.client import StoreClient
from memory_store.errors import (
    CutError,
    FencedError,
    NonFiniteGradientError,
    PkmError,
    StoreError,
    UsageError,
)
from memory_store.lookups import Lookup, LookupKind
from memory_store.opening import connect, in_process_store
from memory_store.table_handle import TableHandle
from memory_store.table_spec import OptimizerSpec, TableSpec
from memory_store.table_steps import StepResult

__all__ = [
    "AccessReport",
    "CutError",
    "FencedError",
    "Lookup",
    "LookupKind",
    "NonFiniteGradientError",
    "OptimizerSpec",
    "PkmError",
    "StepResult",
    "StoreClient",
    "StoreError",
    "TableHandle",
    "TableSpec",
    "UsageError",
    "connect",
    "in_process_store",
]
