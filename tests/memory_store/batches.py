"""A small table, the batches that writers train it with, clients that reach it, and a look at its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from memory_store import StoreClient, TableSpec, connect
from memory_store.carriers.grpc_server import ShardServer
from memory_store.lookups import LookupKind
from memory_store.opening import attach, in_process_hosts
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec

SPEC = TableSpec("memory", 1100, 4, optimizer=OptimizerSpec("adam", (0.9, 0.99), 1e-3))
TOKENS, ENTRIES, STEPS = 8, 5, 20
RATE = 0.05
KINDS: list[LookupKind] = ["fetch", "pool"]
Clipping = dict[str, float] | None


class Batches:
    """Tokens of a step, the same whatever the number of writers; half of the entries meet in few rows."""

    def __init__(self, spec: TableSpec = SPEC) -> None:
        self.spec = spec

    def lookup(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(step)
        rows = rng.integers(0, self.spec.rows, size=(TOKENS, ENTRIES))
        rows[:, ::2] %= 7
        return rows, rng.random((TOKENS, ENTRIES)).astype(self.spec.compute_dtype)

    def output_gradient(self, step: int, output: np.ndarray, tokens: slice = slice(None)) -> np.ndarray:
        """Of the mean over the given tokens of a quadratic loss, so that it depends on what was looked up."""
        target = np.random.default_rng(1000 + step).normal(size=(TOKENS, self.spec.dim))[tokens]
        return ((output - target) / output.shape[0]).astype(output.dtype)


def first_values(spec: TableSpec) -> np.ndarray:
    return table_of(in_process_hosts([spec]), spec)


def table_of(hosts: Sequence[ShardHost], spec: TableSpec, name: str = "values") -> np.ndarray:
    """An array of the table out of the shards' memory, in row order."""
    array = np.concatenate([getattr(host._core.tables[spec.name], name) for host in hosts])
    capacity = -(-spec.rows // 1024)
    rows = np.arange(spec.rows)
    return array[(rows % 1024) * capacity + rows // 1024]


def bytes_of(hosts: Sequence[ShardHost]) -> bytes:
    names = ("values", "first_state", "second_state", "last_step")
    return b"".join(table_of(hosts, SPEC, name).tobytes() for name in names)


@contextmanager
def clients(
    hosts: Sequence[ShardHost], writers: int, lookup: LookupKind, carrier: str, spec: TableSpec = SPEC
) -> Iterator[list[StoreClient]]:
    """One client per writer, joined into one group."""
    servers: list[ShardServer] = []
    if carrier in ("grpc", "in_place"):
        servers = [ShardServer(host, "127.0.0.1:0", "token") for host in hosts]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        found = [connect(addresses, token="token", lookup=lookup, timeout_s=60) for _ in range(writers)]
    else:
        found = [attach(hosts, [spec], lookup=lookup, timeout_s=60) for _ in range(writers)]
    try:
        leader = found[0].take_over(writers)
        for number, client in enumerate(found[1:], start=1):
            client.join(type(leader)(leader.session, leader.epoch, number), writers)
        yield found
    finally:
        for client in found:
            client.close()
        for server in servers:
            server.stop(0)
