"""What a writer can do wrong: each mistake is refused with a sentence, before any row changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from memory_store import NonFiniteGradientError, StoreClient, in_process_store
from memory_store.errors import StoreError, UsageError
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_hosts
from tests.memory_store.batches import (
    KINDS,
    RATE,
    SPEC,
    TOKENS,
    Batches,
    Clipping,
    bytes_of,
    clients,
)


def one_lookup(lookup: LookupKind = "fetch", *, keep: bool = True) -> tuple[StoreClient, Any]:
    store = in_process_store([SPEC], 2, lookup=lookup)
    rows, weights = Batches().lookup(0)
    return store, store.table("memory").lookup(rows, weights, keep=keep)


@pytest.mark.parametrize("lookup", KINDS)
def test_the_backward_pass_runs_once_within_its_step_and_only_if_it_was_kept(lookup: LookupKind):
    store, found = one_lookup(lookup)
    found.backward(found.output)
    with pytest.raises(StoreError, match="has run already"):
        found.backward(found.output)
    _, other = one_lookup(lookup, keep=False)
    with pytest.raises(StoreError, match="without keep"):
        other.backward(other.output)
    store, late = one_lookup(lookup)
    store.step({"memory": RATE})
    with pytest.raises(StoreError, match="made at version 0, the tables are at 1"):
        late.backward(late.output)


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("shape", [(TOKENS + 1, 4), (TOKENS - 1, 4), (TOKENS, 5), (TOKENS * 4,)])
def test_a_gradient_of_another_shape_is_refused(lookup: LookupKind, shape: tuple[int, ...]):
    _, found = one_lookup(lookup)
    with pytest.raises(StoreError, match="one shape"):
        found.backward(np.ones(shape, np.float32))


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("clip", [None, {"memory": 1.0}])
@pytest.mark.parametrize("carrier", ["in_process", "grpc"])
def test_a_gradient_that_is_not_finite_is_refused_before_any_row_changes(
    lookup: LookupKind, clip: Clipping, carrier: str
):
    hosts = in_process_hosts([SPEC], 2)
    before = bytes_of(hosts)
    with clients(hosts, 1, lookup, carrier) as (store,):
        rows, weights = Batches().lookup(0)
        found = store.table("memory").lookup(rows, weights, keep=True)
        gradient = np.ones_like(found.output)
        gradient[3, 2] = np.nan

        def update() -> None:
            found.backward(gradient)
            store.step({"memory": RATE}, clip)

        with pytest.raises(NonFiniteGradientError, match="'memory' holds NaN or infinity"):
            update()
    assert bytes_of(hosts) == before
    assert {host._core.version for host in hosts} == {0}


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("carrier", ["in_process", "grpc"])
def test_a_step_that_is_not_finite_can_be_skipped_by_all_writers(lookup: LookupKind, carrier: str):
    """Whatever else came for the step, of any writer and to any shard, changes nothing; the next step does."""
    hosts, straight = in_process_hosts([SPEC], 2), in_process_hosts([SPEC], 2)

    def backward(store: StoreClient, step: int, writer: int, poison: float = 0.0) -> np.ndarray:
        rows, weights = Batches().lookup(step)
        half = slice(writer * TOKENS // 2, (writer + 1) * TOKENS // 2)
        found = store.table("memory").lookup(rows[half], weights[half], keep=True)
        gradient = np.ones_like(found.output)
        gradient[3, 2] += poison
        return found.backward(gradient)

    with clients(straight, 2, lookup, carrier) as others:
        for writer, store in enumerate(others):
            backward(store, 0, writer)
        step_all(others)
    with clients(hosts, 2, lookup, carrier) as writers:
        for writer, store in enumerate(writers):
            backward(store, 0, writer)
        step_all(writers)
        before = bytes_of(hosts)
        assert before == bytes_of(straight)
        backward(writers[0], 1, 0)
        weight_gradient = backward(writers[1], 1, 1, np.nan)
        assert np.isnan(weight_gradient).any()
        assert writers[0].refusal() is None
        assert isinstance(writers[1].refusal(), NonFiniteGradientError)
        for store in writers:
            store.skip_step()
        for store in writers:
            store.synchronise()
        assert bytes_of(hosts) == before
        assert {host._core.version for host in hosts} == {2}
        for writer, store in enumerate(writers):
            backward(store, 2, writer)
        step_all(writers)
    assert bytes_of(hosts) != before


def step_all(writers: Sequence[StoreClient]) -> None:
    for store in writers:
        store.step({"memory": RATE})
    for store in writers:
        store.synchronise()


def test_who_skips_a_step_alone_is_refused():
    hosts = in_process_hosts([SPEC], 2)
    before = bytes_of(hosts)
    with clients(hosts, 2, "fetch", "in_process") as (first, second):
        first.skip_step()
        second.step({"memory": RATE})
        with pytest.raises(StoreError, match="disagree on its learning rates, scale, clipping or discarding"):
            second.synchronise()
    assert bytes_of(hosts) == before


def test_finite_gradients_whose_sum_overflows_are_refused_by_clipping():
    hosts = in_process_hosts([SPEC], 2)
    before = bytes_of(hosts)
    with clients(hosts, 1, "fetch", "in_process") as (store,):
        for _ in range(2):
            found = store.table("memory").lookup(np.array([[3]]), np.ones((1, 1), np.float32), keep=True)
            found.backward(np.full((1, 4), 3e38, np.float32))
        with pytest.raises(NonFiniteGradientError, match="inf"):
            store.step({"memory": RATE}, {"memory": 1.0})
    assert bytes_of(hosts) == before


@pytest.mark.parametrize(
    ("rates", "clip"),
    [
        ({}, None),
        ({"other": 0.1}, None),
        ({"memory": 0.1, "other": 0.1}, None),
        ({"memory": 0.1}, {"other": 1.0}),
    ],
)
def test_every_table_and_no_other_needs_a_rate(rates: dict[str, float], clip: Clipping):
    store, _ = one_lookup()
    with pytest.raises(UsageError, match="the tables are memory"):
        store.step(rates, clip)
    assert store.step({"memory": 0.1}).version == 1


@pytest.mark.parametrize("lookup", KINDS)
def test_what_is_looked_up_must_make_sense(lookup: LookupKind):
    table = in_process_store([SPEC], 2, lookup=lookup).table("memory")
    ones = np.ones((2, 3), np.float32)
    for row in (-1, SPEC.rows):
        with pytest.raises(UsageError, match="rows 0"):
            table.lookup(np.array([[0, 1, row]] * 2), ones, keep=False)
    for rows, weights in [(np.zeros(3, np.int64), np.ones(3)), (np.zeros((2, 2), np.int64), ones)]:
        with pytest.raises(StoreError, match="one shape"):
            table.lookup(rows, weights, keep=False)
    with pytest.raises(StoreError, match="No table 'other'"):
        in_process_store([SPEC]).table("other")
