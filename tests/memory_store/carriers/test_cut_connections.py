"""Connections that are cut before, inside and after a request, or swallow everything: each update counts once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest

from memory_store import TableSpec, connect
from memory_store.carriers.grpc_server import ShardServer
from memory_store.client import StoreClient
from memory_store.errors import StoreError
from memory_store.opening import in_process_hosts, in_process_store
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec
from tests.cutting_proxy import CuttingProxy, Fault

SPEC = TableSpec("memory", rows=4096, dim=64, optimizer=OptimizerSpec("adam"))
TOKEN = "token"


@pytest.fixture
def host() -> ShardHost:
    (made,) = in_process_hosts([SPEC])
    return made


@pytest.fixture
def proxy(host: ShardHost) -> Iterator[CuttingProxy]:
    server = ShardServer(host, "127.0.0.1:0", TOKEN)
    proxy = CuttingProxy(f"127.0.0.1:{server.port}")
    yield proxy
    proxy.close()
    server.stop(0)


def step(store: StoreClient, number: int) -> bytes:
    """One step of a model without a model; what it saw."""
    random = np.random.default_rng(number)
    rows = random.integers(0, SPEC.rows, (40, 8))
    found = store.table("memory").lookup(rows, random.random((40, 8), dtype=np.float32), keep=True)
    weights = found.backward(np.sin(found.output))
    store.step({"memory": 0.01})
    return found.output.tobytes() + weights.tobytes()


def through(proxy: CuttingProxy, timeout_s: float = 60) -> StoreClient:
    store = connect([proxy.address], token=TOKEN, in_place=False, lookup="pool", timeout_s=timeout_s)
    store.take_over()
    return store


@pytest.mark.parametrize("fault", ["cut before", "cut inside", "delay"])
def test_a_connection_that_is_cut_costs_nothing(fault: str, proxy: CuttingProxy) -> None:
    store, alone = through(proxy), in_process_store([SPEC], lookup="pool")
    for number in range(20):
        if number % 2:
            proxy.arm(cast(Fault, fault))
        assert step(store, number) == step(alone, number), number
        if fault == "delay":
            proxy.arm(None)
    store.synchronise()
    assert proxy.fired[fault] >= 10
    assert store.describe()[0].version == 20
    store.close()


def test_an_answer_that_is_lost_after_the_update_was_applied(proxy: CuttingProxy, host: ShardHost) -> None:
    store, alone = through(proxy), in_process_store([SPEC], lookup="pool")
    for number in range(8):
        assert step(store, number) == step(alone, number)
        store.synchronise()
        proxy.arm("hold answer")
        random = np.random.default_rng(100 + number)
        rows, weights = random.integers(0, SPEC.rows, (4, 8)), np.ones((4, 8), np.float32)
        store.step({"memory": 0.01})  # a step without contributions: it must be made once
        wait_for_version(host, 2 * number + 2)
        while proxy.fired["hold answer"] <= number:
            time.sleep(0.005)  # the answer is on its way to the proxy
        proxy.arm(None)
        proxy.cut()
        store.synchronise()
        alone.step({"memory": 0.01})
        ours, theirs = (
            each.table("memory").lookup(rows, weights, keep=False).output for each in (store, alone)
        )
        assert ours.tobytes() == theirs.tobytes()
    assert proxy.fired["hold answer"] >= 8
    assert store.describe()[0].version == 16
    store.close()


def wait_for_version(host: ShardHost, version: int) -> None:
    deadline = time.monotonic() + 30
    while host._core.version < version and time.monotonic() < deadline:
        time.sleep(0.005)
    assert host._core.version == version


def test_a_network_that_swallows_everything_is_found_by_the_deadline(proxy: CuttingProxy) -> None:
    store = through(proxy, timeout_s=1)
    step(store, 0)
    store.synchronise()
    proxy.arm("swallow")
    failed = []

    def look_up() -> None:
        try:
            step(store, 1)
        except StoreError as error:
            failed.append(str(error))

    thread = threading.Thread(target=look_up)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for ever"
    assert failed
    assert proxy.fired["swallow"]
    store.close()


def test_a_shard_that_refuses_connections_for_a_while_is_waited_for(proxy: CuttingProxy) -> None:
    store, alone = through(proxy), in_process_store([SPEC], lookup="pool")
    assert step(store, 0) == step(alone, 0)
    store.synchronise()
    proxy.arm("refuse")
    proxy.cut()
    threading.Timer(1.0, proxy.arm, [None]).start()
    assert step(store, 1) == step(alone, 1)
    store.synchronise()
    assert proxy.fired["refuse"]
    store.close()
