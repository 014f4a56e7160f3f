"""Connecting to shards: the right ones, in the right order, of one store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from memory_store import StoreError, TableSpec, connect
from memory_store.carriers.grpc_server import ShardServer
from memory_store.opening import in_process_hosts
from memory_store.table_spec import OptimizerSpec

SPECS = [
    TableSpec("memory", 2000, 4, "bfloat16", 3, 0.5, OptimizerSpec("rowwise_adam", (0.8, 0.9), 1e-6)),
    TableSpec("other", 100, 2),
]


@contextmanager
def served(specs: list[TableSpec], shards: int) -> Iterator[list[str]]:
    servers = [ShardServer(host, "127.0.0.1:0", "token") for host in in_process_hosts(specs, shards)]
    try:
        yield [f"127.0.0.1:{server.port}" for server in servers]
    finally:
        for server in servers:
            server.stop(0)


def test_the_tables_are_learned_from_the_shards():
    with served(SPECS, 2) as addresses:
        client = connect(addresses, token="token")
        assert list(client.specs.values()) == SPECS
        client.take_over()
        found = client.table("other").lookup(np.array([[99]]), np.ones((1, 1), np.float32), keep=False)
        assert found.output.shape == (1, 2)
        client.close()


def test_shards_in_the_wrong_order_or_number_are_refused():
    with served(SPECS, 3) as addresses:
        for wrong in (addresses[::-1], addresses[:2], [addresses[0]] * 3):
            with pytest.raises(StoreError, match="in their order"):
                connect(wrong, token="token")


def test_shards_of_different_stores_are_refused():
    with (
        served(SPECS, 2) as one,
        served(SPECS[:1], 2) as other,
        pytest.raises(StoreError, match=f"{other[1]} has other tables than {one[0]}"),
    ):
        connect([one[0], other[1]], token="token")
