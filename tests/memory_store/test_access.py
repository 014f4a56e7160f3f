"""Usage, KL to uniform, top-1 % share and the access map: by hand, and against counting every access."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import AccessReport, StoreClient, TableSpec, in_process_store
from memory_store.errors import StoreError
from memory_store.lookups import LookupKind
from memory_store.statistics import access_map, access_report, clear_accesses, touched_share

KINDS: list[LookupKind] = ["fetch", "pool"]


def store(rows: int, shards: int = 3, lookup: LookupKind = "fetch") -> StoreClient:
    return in_process_store([TableSpec("memory", rows=rows, dim=2)], shards, lookup=lookup)


def report_after(client: StoreClient, rows: np.ndarray, weights: np.ndarray) -> AccessReport:
    client.table("memory").lookup(rows, weights, keep=False, track=True)
    return access_report(client, "memory")


@pytest.mark.parametrize("lookup", KINDS)
def test_uniform_access(lookup: LookupKind):
    everything = np.arange(1600).reshape(100, 16)
    report = report_after(store(1600, lookup=lookup), everything, np.full((100, 16), 0.25, np.float32))
    assert (report.usage, report.dead_slots, report.accesses, report.rows) == (1.0, 0, 1600, 1600)
    assert report.kl_to_uniform == pytest.approx(0, abs=1e-12)
    assert report.top1_share == pytest.approx(0.01)


@pytest.mark.parametrize("lookup", KINDS)
def test_a_single_slot(lookup: LookupKind):
    report = report_after(
        store(1600, lookup=lookup), np.full((5, 4), 1234), np.full((5, 4), 0.25, np.float32)
    )
    assert (report.usage, report.rows_used, report.accesses) == (1 / 1600, 1, 20)
    assert report.kl_to_uniform == pytest.approx(math.log(1600))
    assert report.top1_share == 1.0


@pytest.mark.parametrize("lookup", KINDS)
def test_half_of_the_slots_with_two_weights(lookup: LookupKind):
    """z is 1/2 for one row and 1/6 for three of eight rows."""
    rows, weights = np.array([[0, 2], [4, 6]]), np.array([[0.5, 1.5], [0.5, 0.5]], np.float32)
    report = report_after(store(8, lookup=lookup), rows, weights)
    assert report.usage == 0.5
    assert report.kl_to_uniform == pytest.approx(math.log(8) - math.log(2) / 2 - math.log(6) / 2)
    assert report.top1_share == pytest.approx(0.5)


def test_before_any_access_all_is_zero():
    report = access_report(store(100), "memory")
    assert (report.usage, report.kl_to_uniform, report.top1_share, report.dead_slots) == (0, 0, 0, 100)


@given(
    seed=st.integers(0, 10_000),
    table_rows=st.integers(1, 3000),
    shards=st.sampled_from([1, 2, 5]),
    lookup=st.sampled_from(KINDS),
    ties=st.booleans(),
)
@settings(max_examples=60)
def test_counting_at_the_shards_is_counting_every_access(
    seed: int, table_rows: int, shards: int, lookup: LookupKind, ties: bool
):
    rng = np.random.default_rng(seed)
    client = store(table_rows, shards, lookup)
    counts, sums = np.zeros(table_rows), np.zeros(table_rows)
    for _ in range(3):
        rows = np.minimum(rng.zipf(1.3, size=(20, 6)), table_rows) - 1
        # Eighths add without rounding in any order, and make ties; powers of ten spread over many bins.
        weights = (
            rng.integers(0, 9, size=rows.shape) / 8 if ties else 10 ** rng.uniform(-6, 2, size=rows.shape)
        )
        weights = weights.astype(np.float32)
        client.table("memory").lookup(rows, weights, keep=False, track=True)
        np.add.at(counts, rows, 1)
        np.add.at(sums, rows, weights.astype(np.float64))
    report = access_report(client, "memory")
    assert report.rows_used == np.count_nonzero(counts)
    assert report.accesses == counts.sum()
    if sums.sum() > 0:
        z = sums[sums > 0] / sums.sum()
        assert report.kl_to_uniform == pytest.approx(math.log(table_rows) + (z * np.log(z)).sum(), abs=1e-5)
        top = np.sort(sums)[::-1][: math.ceil(table_rows / 100)].sum()
        assert report.top1_share == pytest.approx(top / sums.sum(), rel=1e-6)


def test_untracked_lookups_are_not_counted_and_counts_can_be_cleared():
    client = store(50)
    ones = np.ones((2, 3), np.float32)
    client.table("memory").lookup(np.array([[1, 2, 3]] * 2), ones, keep=False)
    assert access_report(client, "memory").accesses == 0
    assert report_after(client, np.array([[1, 2, 3]] * 2), ones).accesses == 6
    clear_accesses(client, "memory")
    assert access_report(client, "memory").accesses == 0
    assert report_after(client, np.array([[4, 4, 5]] * 2), ones).rows_used == 2


@pytest.mark.parametrize("lookup", KINDS)
@pytest.mark.parametrize("side", [1, 7, 16, 40, 64])
def test_the_map_is_that_of_every_access(side: int, lookup: LookupKind):
    sub_keys = 40
    client = store(sub_keys**2, 3, lookup)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, sub_keys**2, size=(50, 8))
    weights = (rng.integers(1, 9, size=rows.shape) / 8).astype(np.float32)
    client.table("memory").lookup(rows, weights, keep=False, track=True)
    expected = np.zeros((side, side))
    for row, weight in zip(rows.flat, weights.flat, strict=True):
        first, second = divmod(int(row), sub_keys)
        expected[first * side // sub_keys, second * side // sub_keys] += weight
    np.testing.assert_array_equal(access_map(client, "memory", sub_keys, side), expected)


@pytest.mark.parametrize(("sub_keys", "side"), [(39, 8), (40, 0), (40, 1025)])
def test_an_impossible_map_is_refused(sub_keys: int, side: int):
    with pytest.raises(StoreError, match="map"):
        access_map(store(1600), "memory", sub_keys, side)


@pytest.mark.parametrize("lookup", KINDS)
def test_touched_rows_are_those_with_a_gradient_since(lookup: LookupKind):
    client = store(200, 3, lookup)
    for rows in ([[3, 5]], [[5, 7]], [[9, 9]]):
        found = client.table("memory").lookup(np.array(rows), np.ones((1, 2), np.float32), keep=True)
        found.backward(np.ones_like(found.output))
        client.step({"memory": 0.1})
    assert [touched_share(client, "memory", since) * 200 for since in range(4)] == [4, 3, 1, 0]
