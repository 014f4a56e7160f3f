"""Tables that lie on the devices of several trainers, against the same tables on one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_store import NonFiniteGradientError, OptimizerSpec, StoreClient, UsageError, in_process_store
from memory_store.statistics import access_report, clear_accesses, touched_share
from tests.memory_store.written_cuts import write_cut
from tests.small_job import table_content
from tests.workers.gpu.histories import small_table
from tests.workers.gpu.peers_in_threads import at_once, shared_stores
from workers.gpu.device_store import DeviceStore
from workers.lookup import begin_lookup

CPU = torch.device("cpu")
TOKENS, PER_TOKEN = 12, 5

pytestmark = pytest.mark.timeout(120)


@dataclass
class Batch:
    """A lookup of a step and its gradient, of all tokens of all trainers."""

    rows: Tensor
    weights: Tensor
    gradient: Tensor

    @classmethod
    def drawn(cls, seed: int, table_rows: int, dim: int) -> Batch:
        random = np.random.default_rng(seed)
        shape = TOKENS, PER_TOKEN
        hot, cold = random.integers(0, 40, shape), random.integers(0, table_rows, shape)
        return cls(
            torch.from_numpy(np.where(random.random(shape) < 0.7, hot, cold)),
            torch.from_numpy(random.random(shape, dtype=np.float32)),
            torch.from_numpy(random.standard_normal((TOKENS, dim), dtype=np.float32)),
        )

    def part(self, rank: int, world: int) -> Batch:
        return Batch(*(whole.chunk(world)[rank] for whole in (self.rows, self.weights, self.gradient)))


def look_up(store: StoreClient, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sums and the gradient of the weights."""
    weights = batch.weights.clone().requires_grad_()
    output = begin_lookup(store.table("memory"), batch.rows, weights)()
    output.backward(batch.gradient)
    assert weights.grad is not None
    return output.detach(), weights.grad


def run(store: StoreClient, rank: int, world: int, steps: int, clip: float | None = None) -> list[Tensor]:
    """Steps of two lookups each, of this rank's part of them; what it was answered."""
    seen: list[Tensor] = []
    spec = store.specs["memory"]
    for step in range(steps):
        for layer in range(2):
            batch = Batch.drawn(2 * step + layer, spec.rows, spec.dim).part(rank, world)
            seen += look_up(store, batch)
        if step % 5 == 3:
            store.skip_step()
        else:
            store.step({"memory": 0.1}, {} if clip is None else {"memory": clip})
    return seen


def alone(
    steps: int, world: int, clip: float | None = None, **changes: Any
) -> tuple[DeviceStore, list[Tensor]]:
    """The same on one device. Gradients are the mean of the trainers': one that has all of them divides them."""
    store = DeviceStore([small_table(**changes)], CPU)
    seen: list[Tensor] = []
    spec = store.specs["memory"]
    for step in range(steps):
        for layer in range(2):
            batch = Batch.drawn(2 * step + layer, spec.rows, spec.dim)
            output, weight_gradient = look_up(store, Batch(batch.rows, batch.weights, batch.gradient / world))
            seen += [output, weight_gradient * world]
        if step % 5 == 3:
            store.skip_step()
        else:
            store.step({"memory": 0.1}, {} if clip is None else {"memory": clip})
    return store, seen


def everything(stores: list[DeviceStore]) -> Tensor:
    """All rows, looked up by all trainers, of whom each asks for its own share: not equally many."""
    rows = torch.arange(stores[0].specs["memory"].rows)[:, None]
    shares = (
        rows.split([100, *([(len(rows) - 100) // max(1, len(stores) - 1)] * (len(stores) - 1))])
        if len(stores) > 1
        else (rows,)
    )

    def ask(rank: int) -> Tensor:
        mine = shares[rank]
        with torch.no_grad():
            return begin_lookup(stores[rank].table("memory"), mine, torch.ones(len(mine), 1))()

    return torch.cat(at_once(len(stores), ask))


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_devices_hold_what_one_would(kind: Any, dtype: Any) -> None:
    changes = {"optimizer": OptimizerSpec(kind), "dtype": dtype}
    stores = shared_stores([small_table(**changes)], 2)
    seen = at_once(2, lambda rank: run(stores[rank], rank, 2, 12))
    one, expected = alone(12, 2, **changes)
    for index, whole in enumerate(expected):
        torch.testing.assert_close(torch.cat([seen[0][index], seen[1][index]]), whole, rtol=1e-5, atol=1e-5)
    # Updates depend on no sum that devices have added up: they are the same bytes, bfloat16 rounded alike.
    assert torch.equal(everything(stores), everything([one]))
    assert {store.version for store in stores} == {one.version}
    for since in (0, 8):
        assert touched_share(stores[0], "memory", since) == touched_share(one, "memory", since)


def test_three_devices_have_parts_that_differ_in_size() -> None:
    stores = shared_stores([small_table()], 3)
    at_once(3, lambda rank: run(stores[rank], rank, 3, 7))
    one, _ = alone(7, 3)
    torch.testing.assert_close(everything(stores), everything([one]), rtol=1e-5, atol=1e-6)
    assert len({store.rows("memory").values.shape[0] for store in stores}) > 1


def test_the_norm_is_that_of_all_parts() -> None:
    stores = shared_stores([small_table()], 2)
    at_once(2, lambda rank: run(stores[rank], rank, 2, 6, clip=0.05))
    one, _ = alone(6, 2, clip=0.05)
    torch.testing.assert_close(everything(stores), everything([one]), rtol=1e-5, atol=1e-6)
    batch = Batch.drawn(99, 2500, 6)

    def norm(rank: int) -> float:
        look_up(stores[rank], batch.part(rank, 2))
        return stores[rank].step({"memory": 0.1}, {"memory": 1.0}).gradient_norms["memory"]

    look_up(one, Batch(batch.rows, batch.weights, batch.gradient / 2))
    expected = one.step({"memory": 0.1}, {"memory": 1.0}).gradient_norms["memory"]
    assert at_once(2, norm) == pytest.approx([expected] * 2)


def test_what_one_gives_that_is_not_finite_is_refused_by_all() -> None:
    stores = shared_stores([small_table()], 2)
    before = everything(stores)

    def spoil(rank: int) -> None:
        batch = Batch.drawn(1, 2500, 6).part(rank, 2)
        if rank:
            batch.gradient[0, 0] = torch.inf
        look_up(stores[rank], batch)
        with pytest.raises(NonFiniteGradientError, match="no row was touched"):
            stores[rank].step({"memory": 0.1})
        stores[rank].skip_step()

    at_once(2, spoil)
    assert torch.equal(everything(stores), before)


def test_accesses_are_counted_once_whoever_has_the_row() -> None:
    stores, one = shared_stores([small_table()], 2), DeviceStore([small_table()], CPU)
    for store in (stores[0], one):
        clear_accesses(store, "memory")
    batch = Batch.drawn(5, 2500, 6)
    shares = [(batch.rows[:9], batch.weights[:9]), (batch.rows[9:], batch.weights[9:])]

    def ask(rank: int) -> None:
        with torch.no_grad():
            begin_lookup(stores[rank].table("memory"), *shares[rank], track=True)()
            nothing = torch.empty(0, PER_TOKEN)  # as a trainer does for whom no text is left
            begin_lookup(
                stores[rank].table("memory"),
                *((nothing.long(), nothing) if rank else shares[0]),
                track=True,
            )()

    at_once(2, ask)
    with torch.no_grad():
        for rows, weights in ((batch.rows, batch.weights), shares[0]):
            begin_lookup(one.table("memory"), rows, weights, track=True)()
    for store in stores:
        assert access_report(store, "memory") == access_report(one, "memory")


def test_cuts_go_from_shared_devices_to_shards_and_back(tmp_path: Path) -> None:
    stores = shared_stores([small_table()], 2)
    for steps in (3, 4):  # of all rows, then of what was touched since
        at_once(2, lambda rank, steps=steps: run(stores[rank], rank, 2, steps))
        cut = write_cut(stores[0], tmp_path / "devices")
    shards = in_process_store([small_table()], 3, lookup="fetch")
    shards.load_cut(str(cut), stores[0].version)
    rows = torch.arange(2500)[:, None]
    with torch.no_grad():
        of_shards = begin_lookup(shards.table("memory"), rows, torch.ones(2500, 1))()
    assert torch.equal(of_shards, everything(stores))
    again = write_cut(shards, tmp_path / "shards")
    assert table_content(again) == table_content(cut)
    fresh = shared_stores([small_table()], 2)
    fresh[0].load_cut(str(again), shards.version)
    fresh[1].version = fresh[0].version
    for group in (stores, fresh):
        at_once(2, lambda rank, group=group: run(group[rank], rank, 2, 3))
    assert torch.equal(everything(fresh), everything(stores))
    stores[0].initialise()
    assert torch.equal(everything(stores), everything([DeviceStore([small_table()], CPU)]))


def test_others_than_those_who_hold_the_tables_can_not_train_on_them() -> None:
    with pytest.raises(
        UsageError, match="lie on 1 devices, one for each trainer; 2 trainers can't share them"
    ):
        DeviceStore([small_table()], CPU).take_over(2)
