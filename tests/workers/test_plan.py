"""The formula of `pkm plan` against cases worked out by hand, and its bytes against counted ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.bags import Bags
from benchmarks.wire_bytes import CountedStore
from memory_store.errors import UsageError
from memory_store.lookups import Entries, cheaper
from memory_store.placement import Placement, addresses_of
from memory_store.table import part_bytes
from tests.small_job import small_job
from workers.job_spec import JobSpec
from workers.plan import (
    PAYLOAD_SHARE,
    Network,
    Part,
    Plan,
    check_network,
    chosen_lookup,
    make_plan,
)
from workers.plan_costs import Calibration, ClientCosts, Cost, DenseCosts, ShardCosts, WireCosts
from workers.plan_sizes import expected_distinct, shard_bytes

CORES = 4
SERIAL, PARALLEL = Cost.on_one_core(1e-6), Cost.on_all_cores(1e-6, CORES)
NOTHING = Cost(0.0, 0.0)
CALIBRATION = Calibration(
    cores=CORES,
    dense=DenseCosts(forward_backward_s=0.6, selection_s=0.1, optimizer_s=0.05, parameters=1_000_000, activation_bytes=7e6),
    client=ClientCosts(
        choose=SERIAL, split=SERIAL, read=PARALLEL, weigh=PARALLEL, group=SERIAL,
        pool_fetched=PARALLEL, sum_fetched=PARALLEL, weigh_fetched=PARALLEL,
    ),
    shard=ShardCosts(
        pool=PARALLEL, pool_gradient=PARALLEL, take=SERIAL, update=PARALLEL,
        fetch_row=PARALLEL, take_row=SERIAL, update_row=PARALLEL,
    ),
    wire=WireCosts(sent=Cost.on_two_cores(1e-9, CORES), received=Cost.on_two_cores(1e-9, CORES), message_s=1e-3),
)  # fmt: skip
T, H, K_CHOSEN, D, S = 256, 2, 8, 32, 2  # of the small job: one trainer, no accumulation
M = H * K_CHOSEN
N = T * M


def job(**changes: Any) -> JobSpec:
    return small_job(Path("none"), **{"store__carrier": "auto", "memory__layers": [2], **changes})


def part(plan: Plan, name: str) -> Part:
    (found,) = [part for part in plan.parts if part.name == name]
    return found


def test_a_cost_takes_its_serial_part_on_one_core_of_each_process():
    cost = Cost(serial_s=6.0, parallel_s=8.0)
    assert cost.seconds(1, cores=4) == 6 + 8 / 4
    assert cost.seconds(1, cores=4, processes=2) == 6 / 2 + 8 / 4
    assert cost.seconds(1, cores=4, processes=100) == 6 / 4 + 8 / 4
    assert cost.core_seconds(2) == 28
    two = Cost.on_two_cores(3.0, 4)
    assert two.seconds(1, 4) == pytest.approx(3)
    assert two.core_seconds(1) == pytest.approx(6)
    assert Cost.on_two_cores(3.0, 1) == Cost(3.0, 0.0)


def test_memory_per_shard_is_that_of_the_fullest_shard():
    for sub_keys, shards in ((32, 1), (32, 3), (100, 7), (31_623, 1000)):
        tables = job(memory__sub_keys=sub_keys, store__shards=shards, store__shard_memory_gib=1e6).tables()
        placement = Placement.even(shards)
        sizes = [sum(sum(part_bytes(table, placement, shard)) for table in tables) for shard in range(shards)]
        assert shard_bytes(tables, shards) == max(sizes)


def test_expected_distinct_rows_are_those_of_a_draw():
    assert expected_distinct(1, 5) == 1
    assert expected_distinct(2, 2) == 1.5
    assert expected_distinct(10**9, 1) == pytest.approx(1)
    drawn = np.random.default_rng(0).integers(1000, size=1500)
    assert expected_distinct(1000, 1500) == pytest.approx(np.unique(drawn).size, rel=0.03)


@pytest.mark.parametrize("shards", [1, 2, 7, 16])
@pytest.mark.parametrize("rows", [50, 1024, 100_000])
def test_the_lookup_is_the_one_that_the_client_takes(rows: int, shards: int):
    bags = Bags.drawn(rows, 4, 100, 8)
    addresses = addresses_of(bags.rows, rows).reshape(-1)
    bounds = Placement.even(shards).address_bounds(rows)
    entries = Entries(100, 8, addresses, bags.weights.reshape(-1), bounds)
    distinct = np.unique(addresses).size
    assert chosen_lookup(100, shards, 800, distinct) == cheaper(entries)


@pytest.mark.parametrize(("lookup", "sub_keys"), [("pool", 32), ("fetch", 32), ("fetch", 128)])
def test_bytes_are_those_that_a_lookup_puts_on_the_wire(lookup: str, sub_keys: int):
    changes = {"store__lookup": lookup, "memory__sub_keys": sub_keys, "store__shards": 4}
    planned = job(**changes)
    spec = planned.tables()[0]
    counted = CountedStore(spec, 4).bytes_of(lookup, Bags.drawn(spec.rows, D, T, M))  # type: ignore[arg-type]
    found = make_plan(planned, CALIBRATION, Network(1e9, hosts_apart=True))
    assert sum(part.bytes for part in found.parts) == pytest.approx(counted, rel=0.03)


def test_a_step_with_rows_in_place():
    plan = make_plan(job(), CALIBRATION, Network())
    assert plan.lookup == "in place"
    assert part(plan, "dense forward and backward").step_seconds == 0.6
    assert part(plan, "selection").step_seconds == 0.1
    assert part(plan, "lookup: kernel").step_seconds == pytest.approx(1e-6 * N)
    assert part(plan, "backward: kernel").step_seconds == pytest.approx(2e-6 * N)  # split and weigh
    wire = part(plan, "backward: wire")
    assert wire.bytes == 4 * S * (T + 1) + 8 * N + 4 * S * T * D
    assert wire.seconds == pytest.approx(S * 1e-3 + 1e-9 * wire.bytes)
    # It hides behind the layer below the memory (1 of 2) and the optimizer, but shares the cores with them.
    assert wire.step_seconds == pytest.approx(2e-9 * wire.bytes / CORES)
    update = part(plan, "row update")
    assert update.seconds == pytest.approx(1e-6 * N / S + 1e-6 * N)  # take on one core of each, update on all
    assert update.step_seconds == pytest.approx((1e-6 * N + 4e-6 * N) / CORES)
    assert part(plan, "dense all-reduce").step_seconds == 0
    assert plan.step_seconds == pytest.approx(sum(part.step_seconds for part in plan.parts))
    assert plan.tokens_per_second == pytest.approx(T / plan.step_seconds)
    assert plan.limit.name == "dense forward and backward"


def test_a_pooled_step_over_links():
    rate = 1e6
    changes = {"store__lookup": "pool", "train__trainers": 2, "train__batch_tokens": 2 * T}
    plan = make_plan(job(**changes), CALIBRATION, Network(rate, hosts_apart=True))
    vectors, entries = 4 * S * T * D, 4 * S * (T + 1) + 8 * N
    lookup = part(plan, "lookup: wire")
    assert lookup.bytes == entries + vectors
    assert lookup.seconds == pytest.approx(S * 1e-3 + (entries + vectors) / (rate * PAYLOAD_SHARE))
    assert part(plan, "backward: wire").bytes == vectors + 4 * N
    # Two trainers, two shards: each shard does what one shard would for one trainer.
    assert part(plan, "backward: kernel").seconds == pytest.approx(1e-6 * N)
    assert part(plan, "row update").step_seconds == 0  # behind the forward pass of the layer below
    dense_bytes = 4 * 1_000_000
    assert part(plan, "dense all-reduce").bytes == 2 * dense_bytes
    assert part(plan, "dense all-reduce").seconds == pytest.approx(dense_bytes / (rate * PAYLOAD_SHARE))
    assert plan.limit.name == "dense all-reduce"
    assert plan.pending_bytes == 2 * (12 * N / S + 4 * T * D)


def test_shards_fewer_than_trainers_are_the_narrow_end():
    one, four = (
        make_plan(
            job(
                store__lookup="fetch",
                store__shards=1,
                train__trainers=trainers,
                train__batch_tokens=trainers * T,
            ),
            CALIBRATION,
            Network(1e6, hosts_apart=True),
        )
        for trainers in (1, 4)
    )
    assert part(four, "lookup: wire").bytes == part(one, "lookup: wire").bytes
    by_link = part(one, "lookup: wire").seconds - 1e-3
    assert part(four, "lookup: wire").seconds == pytest.approx(4 * by_link + 1e-3)


def test_clipping_waits_for_the_row_update():
    clipped = make_plan(job(memory__values={"clip_norm": 1.0}), CALIBRATION, Network(1e9, hosts_apart=True))
    update = part(clipped, "row update")
    assert update.step_seconds == update.seconds > 0


def test_a_dense_job_and_shards_in_process():
    dense = make_plan(
        job(memory=None), replace(CALIBRATION, client=None, shard=None), Network(1e9, hosts_apart=True)
    )
    assert (dense.lookup, dense.shards, dense.shard_bytes) == ("none", 0, 0)
    here = job(store__carrier="in_process")
    assert sum(part.bytes for part in make_plan(here, CALIBRATION, Network()).parts) == 0
    with pytest.raises(UsageError, match=r"leave --network out, or set store\.carrier=auto"):
        check_network(here, Network(1e9, hosts_apart=True))
