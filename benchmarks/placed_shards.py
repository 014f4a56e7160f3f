"""Shards of a benchmark as Ray actors, in a placement group of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray.util.placement_group import placement_group, remove_placement_group

from memory_store.actor import RunningShards, shard_bundles, start_shards
from memory_store.table_spec import TableSpec

_TIMEOUT_S = 120.0


@contextmanager
def placed_shards(name: str, specs: Sequence[TableSpec], shards: int) -> Iterator[RunningShards]:
    """The shards, running while the block does; Ray must run."""
    place = placement_group(shard_bundles(specs, shards), strategy="SPREAD", name=name)
    try:
        if not place.wait(_TIMEOUT_S):
            raise TimeoutError(f"Ray has no room for {shards} shards")
        running = start_shards(name, specs, shards, place)
        try:
            yield running
        finally:
            running.stop()
    finally:
        remove_placement_group(place)
