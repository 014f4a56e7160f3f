"""Opening a store: inside this process, or at shards that run elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from memory_store import messages as m
from memory_store.bucket_files import spec_from_json
from memory_store.calls import expect
from memory_store.carriers.base import Carrier
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.carriers.grpc_credentials import Credentials
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.carriers.reconnecting import ReconnectingCarrier
from memory_store.client import TIMEOUT_S, StoreClient
from memory_store.errors import PkmError, StoreError, UsageError
from memory_store.lookups import LookupKind
from memory_store.mapped_shards import MappedShards, map_shards
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.shard_metrics import ShardMetrics
from memory_store.table_spec import TableSpec
from memory_store.wire_types import WireType

if TYPE_CHECKING:
    from memory_store.spans import Spans


def in_process_hosts(
    specs: Sequence[TableSpec],
    shards: int = 1,
    metrics: ShardMetrics | None = None,
    spans: Spans | None = None,
) -> list[ShardHost]:
    """All shards of a store, in this process; with `metrics` all are counted there together, with `spans` traced."""
    placement = Placement.even(shards)
    cores = [ShardCore(specs, placement, shard, incarnation="embedded") for shard in range(shards)]
    hosts = [ShardHost(core, metrics=metrics) for core in cores]
    if spans is not None:
        for shard, host in enumerate(hosts):
            spans.trace(host, shard)
    return hosts


def in_process_store(
    specs: Sequence[TableSpec],
    shards: int = 1,
    *,
    lookup: LookupKind = "auto",
    metrics: ShardMetrics | None = None,
    spans: Spans | None = None,
) -> StoreClient:
    """A store inside this process, with its first values, and this client as its only writer."""
    client = attach(in_process_hosts(specs, shards, metrics, spans), specs, lookup=lookup)
    client.take_over()
    return client


def attach(
    hosts: Sequence[ShardHost],
    specs: Sequence[TableSpec],
    *,
    lookup: LookupKind = "auto",
    timeout_s: float = TIMEOUT_S,
) -> StoreClient:
    """A client of shards in this process, which has not joined a group yet."""
    carriers = [InProcessCarrier(host) for host in hosts]
    return StoreClient(carriers, specs, Placement.even(len(hosts)), lookup=lookup, timeout_s=timeout_s)


def connect(
    addresses: Sequence[str],
    *,
    token: str = "",
    credentials: Credentials | None = None,
    lookup: LookupKind = "auto",
    wire: WireType = "float32",
    in_place: bool = True,
    timeout_s: float = TIMEOUT_S,
    find: Callable[[int], str] | None = None,
) -> StoreClient:
    """A client of the shards at `addresses` (host:port, in shard order), which has not joined a group yet.

    With `credentials` over TLS, where both sides show certificates; shards that have some answer no one else.

    Where all shards are on this host, rows are read in place (unless `in_place` is False, or `lookup` asks for
    messages). With `wire` "bfloat16", rows, sums of rows and their gradients travel as bfloat16, in half the bytes;
    each element that travels is off by up to 2**-8 of itself (rows read in place don't travel). A lost connection is
    made again, to the address that `find(shard)` gives then, by default to the same one: requests wait for that up to
    `timeout_s`. To train alone, call `take_over()` on the client. Raises StoreError if a shard does not answer or is not
    the one expected, and UsageError if bfloat16 is asked for where a table is float64.
    """
    placement = Placement.even(len(addresses))
    where = find or addresses.__getitem__
    carriers = [
        ReconnectingCarrier(shard, partial(_open_carrier, where, shard, token, wire, credentials))
        for shard in range(len(addresses))
    ]
    try:
        infos = _agreed(addresses, carriers, placement, timeout_s)
        specs = [spec_from_json(spec) for spec in json.loads(infos[0].tables)]
        _check_wire(wire, specs)
    except PkmError:
        for carrier in carriers:
            carrier.close()
        raise

    def remapped(incarnations: Sequence[str]) -> MappedShards | None:
        infos = [carrier.info for carrier in carriers]
        known = [info for info in infos if info is not None]
        if [info.incarnation for info in known] == list(incarnations):
            return None
        successors = map_shards(known, specs, placement)
        if successors is None:
            raise StoreError(
                "A shard was started again on another host; restore the last cut to go on without it here."
            )
        return successors

    client = StoreClient(
        carriers,
        specs,
        placement,
        lookup=lookup,
        timeout_s=timeout_s,
        mapped=map_shards(infos, specs, placement) if in_place else None,
        remapped=remapped,
    )
    client.version = infos[0].version
    return client


def _open_carrier(
    where: Callable[[int], str], shard: int, token: str, wire: WireType, credentials: Credentials | None
) -> GrpcCarrier:
    return GrpcCarrier(where(shard), token, wire, credentials)


def _check_wire(wire: WireType, specs: Sequence[TableSpec]) -> None:
    exact = [spec.name for spec in specs if spec.dtype == "float64"]
    if wire == "bfloat16" and exact:
        raise UsageError(
            f"Tables {', '.join(exact)} are float64, whose vectors don't travel as bfloat16: use wire float32."
        )


def _agreed(
    addresses: Sequence[str], carriers: Sequence[Carrier], placement: Placement, timeout_s: float
) -> list[m.ShardInfo]:
    """What the shards at `addresses` say of themselves, which must make one store."""
    futures = [carrier.submit(m.Describe(), timeout_s) for carrier in carriers]
    infos = [expect(future, m.ShardInfo) for future in futures]
    for number, (address, info) in enumerate(zip(addresses, infos, strict=True)):
        if (info.shard, info.placement) != (number, placement.digest):
            raise StoreError(
                f"{address} is shard {info.shard} of {info.shards}; shard {number} of {len(addresses)} is "
                "expected there. Give the addresses of all shards in their order."
            )
        if info.tables != infos[0].tables:
            raise StoreError(f"{address} has other tables than {addresses[0]}: they are not of one store.")
    return infos
