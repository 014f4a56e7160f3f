"""Ways for one trainer process to reach the rows of one shard process: ours, and the peers'.

Each answers the same two questions with the same numbers: `gather` rows, `pool` weighted sums of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import ray

from benchmarks.peer_table import Addresses, Floats, Offsets, PeerConnection, start_peer_table
from benchmarks.placed_shards import placed_shards
from memory_store import messages as m
from memory_store.actor import ShardGroup
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.kernels import gather_rows, pool_rows
from memory_store.mapped_shards import map_shards
from memory_store.placement import Placement
from memory_store.reused_memory import empty
from memory_store.table_spec import TableSpec
from memory_store.wire_types import WireType

TIMEOUT_S = 60.0


class Reach(NamedTuple):
    """One way: rows `[U, D]` of addresses `[U]`; sums `[T, D]` of offsets, addresses and weights."""

    gather: Callable[[Addresses], Floats]
    pool: Callable[[Offsets, Addresses, Floats], Floats]


@contextmanager
def reaches(spec: TableSpec, rows_max: int) -> Iterator[dict[str, Reach]]:
    """All ways by name, with the shard and the peer running while the block does; Ray must run."""
    peer = start_peer_table(spec, rows_max)  # comes up while the shard does
    with placed_shards("benchmark-transport", [spec], 1) as shards:
        connection = PeerConnection(ray.get(peer.listen.remote()), rows_max, spec.dim)
        carrier = _connected(shards.group)
        narrow = _connected(shards.group, wire="bfloat16")
        try:
            found = {"grpc": _by_message(carrier, spec), "ray actor": _by_ray(peer)}
            found["grpc bfloat16"] = _by_message(narrow, spec)
            found["tcp"] = Reach(connection.gather, connection.pool)
            in_place = _in_place(carrier, spec, rows_max)
            if in_place is not None:
                found["shared memory"] = in_place
            yield found
        finally:
            connection.close()
            carrier.close()
            narrow.close()
            ray.kill(peer)


def _connected(group: ShardGroup, wire: WireType = "float32") -> GrpcCarrier:
    binding = group.binding(0)
    return GrpcCarrier(binding.address, group.token, wire)


def _by_message(carrier: GrpcCarrier, spec: TableSpec) -> Reach:
    """Messages over gRPC. Nobody trains, so the shard stays at version 0 and needs no writer."""
    nobody = m.Sender("", 0, 0)
    none = np.empty(0, dtype=np.uint32)

    def ask(request: m.Fetch | m.Pool) -> Floats:
        reply = carrier.submit(request, TIMEOUT_S).result()
        assert isinstance(reply, m.Rows)
        return reply.values

    def gather(addresses: Addresses) -> Floats:
        return ask(m.Fetch(spec.name, 0, False, addresses, none, none.view(np.float32)))

    def pool(offsets: Offsets, addresses: Addresses, weights: Floats) -> Floats:
        return ask(m.Pool(nobody, spec.name, 0, 0, False, False, offsets, addresses, weights))

    return Reach(gather, pool)


def _by_ray(peer: Any) -> Reach:
    """Calls of the peer's actor."""
    return Reach(
        lambda addresses: ray.get(peer.gather.remote(addresses)),
        lambda offsets, addresses, weights: ray.get(peer.pool.remote(offsets, addresses, weights)),
    )


def _in_place(carrier: GrpcCarrier, spec: TableSpec, rows_max: int) -> Reach | None:
    """Shared memory: rows are read where the shard keeps them, once its clock shows the version."""
    info = carrier.submit(m.Describe(), TIMEOUT_S).result()
    assert isinstance(info, m.ShardInfo)
    mapped = map_shards([info], [spec], Placement.even(1))
    if mapped is None:
        return None
    values, out = mapped.values(spec.name), empty((rows_max, spec.dim), np.float32)

    def gather(addresses: Addresses) -> Floats:
        mapped.wait(info.version, info.epoch, TIMEOUT_S, lambda: None)
        gather_rows(values, 0, addresses, out[: addresses.size])
        return out[: addresses.size]

    def pool(offsets: Offsets, addresses: Addresses, weights: Floats) -> Floats:
        mapped.wait(info.version, info.epoch, TIMEOUT_S, lambda: None)
        pool_rows(values, 0, offsets, addresses, weights, out[: offsets.size - 1])
        return out[: offsets.size - 1]

    return Reach(gather, pool)
