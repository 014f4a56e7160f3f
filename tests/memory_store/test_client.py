"""The whole store seen from its writers: however it is cut and reached, it equals one plain table.

The matrix trains the same tokens with every number of shards and writers, both lookups and both carriers, and
compares with the reference (float64, one process, no sharing of code). Writers are threads that sleep at random,
so contributions arrive in another order every time; the bytes must not show it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest

from memory_store import StoreClient, TableSpec, in_process_store
from memory_store.errors import FencedError, StoreError
from memory_store.lookups import LookupKind
from memory_store.opening import attach, in_process_hosts
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec
from tests.memory_store.batches import (
    KINDS,
    RATE,
    SPEC,
    STEPS,
    TOKENS,
    Batches,
    Clipping,
    bytes_of,
    clients,
    first_values,
    table_of,
)
from tests.memory_store.reference import ReferenceTable, norm, row_gradients, summed


@cache
def reference(clip: float | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """The table after training with all tokens in one plain process, and the gradient norm of every step."""
    table = ReferenceTable(first_values(SPEC), "adam", SPEC.optimizer.betas, SPEC.optimizer.eps)
    batches, norms = Batches(), []
    for step in range(STEPS):
        rows, weights = batches.lookup(step)
        gradient = batches.output_gradient(step, table.lookup(rows, weights))
        gradients = row_gradients(rows, weights, gradient)
        norms.append(norm(gradients))
        table.step(summed([gradients], min(1.0, (clip or np.inf) / (norms[-1] + 1e-6))), RATE)
    return table.values, tuple(norms)


def train(
    client: StoreClient, writer: int, writers: int, clip: Clipping = None, pause_s: float = 0.0005
) -> list[float]:
    """One writer's loop over its share of the tokens; returns the gradient norms it was told."""
    batches, share = Batches(), slice(writer * TOKENS // writers, (writer + 1) * TOKENS // writers)
    table, norms = client.table("memory"), []
    for step in range(client.version, STEPS):
        rows, weights = batches.lookup(step)
        found = table.lookup(rows[share], weights[share], keep=True)
        time.sleep(random.random() * pause_s)
        found.backward(batches.output_gradient(step, found.output, share))
        time.sleep(random.random() * pause_s)
        norms += client.step({"memory": RATE}, clip).gradient_norms.values()
    client.synchronise()
    return norms


def shared_hosts(shards: int) -> list[ShardHost]:
    """Shards whose rows a client on the same host reads in place."""
    placement = Placement.even(shards)
    return [
        ShardHost(ShardCore([SPEC], placement, shard, incarnation=f"life-{shard}", shared=True))
        for shard in range(shards)
    ]


def trained(
    shards: int, writers: int, lookup: LookupKind, carrier: str = "in_process", clip: Clipping = None
) -> tuple[list[ShardHost], list[list[float]]]:
    hosts = shared_hosts(shards) if carrier == "in_place" else in_process_hosts([SPEC], shards)
    with clients(hosts, writers, lookup, carrier) as group, ThreadPoolExecutor(writers) as threads:
        assert {client.reads_in_place for client in group} == {carrier == "in_place"}
        work = [threads.submit(train, client, number, writers, clip) for number, client in enumerate(group)]
        norms = [done.result() for done in work]
    return hosts, norms


# ---- the matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("writers", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_every_way_to_train_gives_the_one_table(shards: int, writers: int, lookup: LookupKind):
    expected, _ = reference()
    first, _ = trained(shards, writers, lookup)
    np.testing.assert_allclose(table_of(first, SPEC), expected, rtol=0, atol=2e-5)
    assert abs(expected - first_values(SPEC)).max() > 0.1
    # The same again, and the same over gRPC: not only close, but the same bytes.
    again, _ = trained(shards, writers, lookup)
    assert bytes_of(again) == bytes_of(first)
    remote, _ = trained(shards, writers, lookup, "grpc")
    assert bytes_of(remote) == bytes_of(first)


@pytest.mark.parametrize("writers", [1, 3])
@pytest.mark.parametrize("clip", [None, {"memory": 0.5}])
def test_fetching_gives_the_same_bytes_on_any_number_of_shards(writers: int, clip: Clipping):
    whole = bytes_of(trained(1, writers, "fetch", clip=clip)[0])
    assert {bytes_of(trained(shards, writers, "fetch", clip=clip)[0]) for shards in (2, 3, 8)} == {whole}


@pytest.mark.parametrize("clip", [None, {"memory": 1.0}])
@pytest.mark.parametrize("writers", [1, 3])
def test_reading_in_place_gives_the_bytes_of_one_shard(writers: int, clip: Clipping):
    whole = bytes_of(trained(1, writers, "pool", clip=clip)[0])
    for shards in (1, 2, 8):
        assert bytes_of(trained(shards, writers, "auto", "in_place", clip)[0]) == whole


# ---- clipping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize(("shards", "writers"), [(1, 1), (3, 1), (2, 2), (8, 4)])
def test_clipping_bounds_the_norm_over_all_shards_and_writers(shards: int, writers: int, lookup: LookupKind):
    clip = 1.0
    expected, norms = reference(clip)
    assert min(norms) < clip < max(norms)
    hosts, told = trained(shards, writers, lookup, clip={"memory": clip})
    np.testing.assert_allclose(table_of(hosts, SPEC), expected, rtol=0, atol=2e-5)
    for each in told:
        np.testing.assert_allclose(each, norms, rtol=1e-4)


def test_only_the_tables_that_are_named_are_clipped():
    specs = [TableSpec(name, 10, 2, initial_std=0, optimizer=OptimizerSpec("sgd")) for name in ("one", "two")]
    store = in_process_store(specs, 2)
    for name in ("one", "two"):
        found = store.table(name).lookup(np.array([[3]]), np.ones((1, 1), np.float32), keep=True)
        found.backward(np.float32([[3, 4]]))
    result = store.step({"one": 1.0, "two": 0.5}, {"two": 1.0})
    assert result.gradient_norms == {"one": 5, "two": 5}
    one, two = (
        store.table(name).lookup(np.array([[3]]), np.ones((1, 1), np.float32), keep=False).output
        for name in ("one", "two")
    )
    np.testing.assert_allclose(one, [[-3, -4]])
    np.testing.assert_allclose(two, [[-0.3, -0.4]], rtol=1e-5)


# ---- lookups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("lookup", [*KINDS, "auto"])
@pytest.mark.parametrize("shards", [1, 3])
def test_outputs_and_weight_gradients_are_those_of_a_plain_table(dtype: Any, lookup: LookupKind, shards: int):
    spec = TableSpec("memory", 1100, 6, dtype)
    store = in_process_store([spec], shards, lookup=lookup)
    batches = Batches(spec)
    table = store.table("memory")
    everything = np.arange(spec.rows)[:, None]
    stored = table.lookup(everything, np.ones(everything.shape), keep=False).output
    plain = ReferenceTable(stored)
    for step in range(3):
        rows, weights = batches.lookup(step)
        found = table.lookup(rows, weights, keep=True)
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
        assert found.output.dtype == spec.compute_dtype
        np.testing.assert_allclose(found.output, plain.lookup(rows, weights), **tolerance)
        gradient = batches.output_gradient(step, found.output)
        expected = plain.weight_gradient(rows, gradient)
        np.testing.assert_allclose(found.backward(gradient), expected, **tolerance)


def test_with_one_shard_both_lookups_give_the_same_bits():
    rows, weights = Batches().lookup(0)
    fetched, pooled = (
        in_process_store([SPEC], lookup=kind).table("memory").lookup(rows, weights, keep=True)
        for kind in KINDS
    )
    assert fetched.output.tobytes() == pooled.output.tobytes()
    gradient = Batches().output_gradient(0, fetched.output)
    assert fetched.backward(gradient).tobytes() == pooled.backward(gradient).tobytes()


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_look_up_is_no_special_case(lookup: LookupKind, shape: tuple[int, int]):
    store = in_process_store([SPEC], 3, lookup=lookup)
    found = store.table("memory").lookup(np.zeros(shape, np.int64), np.zeros(shape, np.float32), keep=True)
    np.testing.assert_array_equal(found.output, np.zeros((shape[0], SPEC.dim)))
    assert found.backward(found.output).shape == shape
    assert store.step({"memory": RATE}).version == 1


@pytest.mark.parametrize(
    ("tokens", "distinct", "shards", "chosen"),
    [
        (10, 100, 2, "pool"),
        (10, 15, 2, "fetch"),
        (10, 100, 12, "fetch"),
        (200, 1000, 2, "pool"),
        (200, 40, 1, "fetch"),
    ],
)
def test_the_cheaper_lookup_is_the_one_that_moves_fewer_vectors(
    tokens: int, distinct: int, shards: int, chosen: str, monkeypatch: pytest.MonkeyPatch
):
    taken = []
    for kind in KINDS:
        whole: Callable[..., Any] = getattr(StoreClient, f"_{kind}")
        monkeypatch.setattr(
            StoreClient,
            f"_{kind}",
            lambda *a, _whole=whole, _kind=kind, **k: taken.append(_kind) or _whole(*a, **k),
        )
    rows = np.resize(np.arange(distinct), (tokens, 10))
    store = in_process_store([SPEC], shards, lookup="auto")
    store.table("memory").lookup(rows, np.ones(rows.shape, np.float32), keep=False)
    assert taken == [chosen]


# ---- groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("carrier", ["in_process", "grpc"])
def test_a_writer_that_was_replaced_changes_nothing_more(lookup: LookupKind, carrier: str):
    hosts = in_process_hosts([SPEC], 2)
    with clients(hosts, 1, lookup, carrier) as (old,), clients(hosts, 1, lookup, "in_process") as (new,):
        old.version = new.version
        rows, weights = Batches().lookup(0)

        def update() -> None:
            found = old.table("memory").lookup(rows, weights, keep=True)
            found.backward(found.output)
            old.step({"memory": RATE})
            old.synchronise()

        with pytest.raises(FencedError, match="stale"):
            update()
        train(new, 0, 1)
    assert bytes_of(hosts) == bytes_of(trained(2, 1, lookup)[0])


def test_a_step_that_other_writers_never_finish_ends_at_the_deadline():
    hosts = in_process_hosts([SPEC], 2)
    client = attach(hosts, [SPEC], timeout_s=0.1)
    client.take_over(writers=2)
    client.step({"memory": RATE})
    with pytest.raises(StoreError, match=r"within 0\.1 s: it waits for the other writers"):
        client.synchronise()


def test_a_store_starts_again_from_its_first_values():
    hosts, _ = trained(2, 1, "fetch")
    store = attach(hosts, [SPEC])
    store.take_over()
    assert store.version == STEPS
    store.initialise()
    assert store.version == 0
    assert bytes_of(hosts) == bytes_of(in_process_hosts([SPEC], 2))
