"""What a writer does not wait for: answers to its gradients, and the commit of its step."""

from __future__ import annotations

import numpy as np
import pytest

from memory_store import messages as m
from memory_store.client import StoreClient
from memory_store.errors import StoreError
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_hosts
from memory_store.placement import Placement
from memory_store.table_spec import TableSpec
from tests.held_carrier import HeldCarrier

SPEC = TableSpec("memory", 1100, 4)
ROWS, WEIGHTS = np.arange(12).reshape(4, 3), np.ones((4, 3), np.float32)


def open_store(lookup: LookupKind, *held: type) -> tuple[StoreClient, HeldCarrier]:
    carrier = HeldCarrier(in_process_hosts([SPEC], 1)[0], *held)
    store = StoreClient([carrier], [SPEC], Placement.even(1), lookup=lookup)
    store.take_over()
    return store, carrier


@pytest.mark.parametrize("lookup", ["fetch", "pool"])
def test_a_step_does_not_wait_for_its_commit_and_the_next_lookup_does(lookup: LookupKind):
    store, carrier = open_store(lookup, m.Commit)
    table = store.table("memory")
    before = table.lookup(ROWS, WEIGHTS, keep=True)
    before.backward(np.ones_like(before.output))
    assert store.step({"memory": 0.1}).version == 1
    sums = table.begin_lookup(ROWS, WEIGHTS, keep=False)
    with pytest.raises(AssertionError, match=r"waits for the answer to (Fetch|Pool)"):
        sums()
    carrier.release()
    assert (sums().output != before.output).all()


def test_row_gradients_are_awaited_by_the_step_alone():
    store, carrier = open_store("fetch", m.RowGradient)
    found = store.table("memory").lookup(ROWS, WEIGHTS, keep=True)
    found.backward(np.ones_like(found.output))
    assert "RowGradient" in carrier.log
    with pytest.raises(AssertionError, match="waits for the answer to RowGradient"):
        store.step({"memory": 0.1})


@pytest.mark.parametrize("lookup", ["fetch", "pool"])
def test_a_lookup_is_finished_before_its_step_is_over(lookup: LookupKind):
    """Else its gradient would go into the next step, with rows of the last."""
    store, _ = open_store(lookup)
    sums = store.table("memory").begin_lookup(ROWS, WEIGHTS, keep=True)
    store.step({"memory": 0.1})
    late = sums()
    with pytest.raises(StoreError, match="made at version 0, the tables are at 1"):
        late.backward(late.output)
