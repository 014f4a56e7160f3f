"""Copies of the hottest rows against the store without them, over the same random histories: not a byte may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_store import StoreClient, StoreError, TableSpec, UsageError, in_process_store
from memory_store import messages as m
from memory_store.opening import attach, in_process_hosts
from memory_store.placement import Placement
from tests.held_carrier import HeldCarrier
from tests.logged_shards import SHARDS, SPEC, Shards
from tests.memory_store.written_cuts import write_cut
from tests.workers.gpu.held_streams import HeldStreams
from tests.workers.gpu.histories import CPU, History, ordinary, small_table
from workers.gpu.cached_table import CachedTable
from workers.gpu.transfers import Transfers
from workers.lookup import begin_lookup


def cached(seed: int, capacity: int, store: StoreClient | None = None, **changes: Any) -> History:
    store = store or in_process_store([small_table(**changes)], 3, lookup="fetch")
    return History(store, CachedTable(store, store.specs["memory"], capacity, CPU), seed)


def hit_rate(history: History) -> float:
    assert isinstance(history.table, CachedTable)
    return history.table.cache.found / history.table.cache.looked_up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("capacity", [1, 30, 300, 10**6])
def test_copies_change_no_byte(capacity: int, dtype: Any) -> None:
    found = cached(1, capacity, dtype=dtype).run()
    assert hit_rate(found) > (0.1 if capacity >= 30 else 0)
    assert found.equals(ordinary(1, dtype=dtype).run())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_look_up_is_no_special_case(shape: tuple[int, int]) -> None:
    histories = cached(1, 30), ordinary(1, 3)
    for history in histories:
        history.run(3)
        weights = torch.rand(shape, requires_grad=True)
        output = begin_lookup(history.table, torch.zeros(shape, dtype=torch.int64), weights)()
        assert output.tolist() == [[0.0] * 6] * shape[0]
        output.sum().backward()
        assert weights.grad is not None
        assert weights.grad.shape == shape
        history.run(3)
    assert histories[0].equals(histories[1])


def two_writers(hosts: list[Any], table: TableSpec) -> list[StoreClient]:
    first, second = attach(hosts, [table], lookup="fetch"), attach(hosts, [table], lookup="fetch")
    leader = first.take_over(2)
    second.join(m.Sender(leader.session, leader.epoch, 1), 2)
    return [first, second]


def test_copies_follow_what_another_trainer_has_touched() -> None:
    plain = [
        History(client, client.table("memory"), seed)
        for seed, client in enumerate(two_writers(in_process_hosts([small_table()], 2), small_table()))
    ]
    clients = two_writers(in_process_hosts([small_table()], 2), small_table())
    found = [cached(seed, 50, client) for seed, client in enumerate(clients)]
    for step in range(30):
        for history in (*plain, *found):
            history.step(clip=None, skip=step % 11 == 5)
    for ours, theirs in zip(found, plain, strict=True):
        assert hit_rate(ours) > 0.1
        assert ours.equals(theirs)


@pytest.mark.parametrize("replacing", ["first values", "cut", "new group"])
def test_copies_are_forgotten_when_tables_are_replaced(replacing: str, tmp_path: Path) -> None:
    histories = cached(1, 100), ordinary(1, 3)
    for number, history in enumerate(histories):
        history.run(20)
        cut = write_cut(history.store, tmp_path / str(number))
        history.run(20)
        match replacing:
            case "first values":
                history.store.initialise()
            case "cut":
                history.store.load_cut(str(cut), 20)
            case _:
                history.store.take_over()
        history.run(20)
    assert histories[0].equals(histories[1])


def test_lookups_that_count_accesses_make_copies_stale_too() -> None:
    histories = cached(1, 10**6), ordinary(1, 3)
    for history in histories:
        history.run(10)
        for _ in range(5):
            history.look_up(track=True)
            history.store.step({"memory": 0.1})
    assert histories[0].equals(histories[1])


def test_copies_that_nobody_has_waited_for_are_not_used_a_step_later() -> None:
    """Their answers are let through only after rows have changed again: they are of an older version."""
    table = small_table()
    (host,) = in_process_hosts([table], 1)
    carrier = HeldCarrier(host, m.Fetch)
    store = StoreClient([carrier], [table], Placement.even(1), lookup="fetch")
    store.take_over()
    copies = CachedTable(store, table, 10, CPU)
    rows, weights = torch.tensor([[7]]), torch.ones(1, 1)

    def ask() -> torch.Tensor:
        waiting = begin_lookup(copies, rows, weights)
        carrier.release()
        output = waiting()
        output.sum().backward()
        return output.detach()

    plain = ordinary(0, 1)
    first = ask()
    store.step({"memory": 0.1})  # row 7 gets a slot, and is asked for
    store.step({"memory": 0.1})  # with nothing contributed
    second = ask()
    store.step({"memory": 0.1})
    third = ask()
    expected = []
    for steps in (1 + 1, 1, 0):
        output = begin_lookup(plain.table, rows, weights)()
        output.sum().backward()
        expected.append(output.detach())
        for _ in range(steps):
            plain.store.step({"memory": 0.1})
    assert all(torch.equal(*pair) for pair in zip([first, second, third], expected, strict=True))


def test_copies_that_do_not_come_are_not_read() -> None:
    history = cached(1, 10**6).run(5)
    store = history.store

    def begin_fetch(spec: TableSpec, addresses: np.ndarray) -> Any:
        def fail() -> None:
            raise StoreError("The shard is gone.")

        return fail

    history.look_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "begin_fetch", begin_fetch)
        store.step({"memory": 0.1})
    for _ in range(2):
        with pytest.raises(StoreError, match="gone"):
            history.everything()


def test_of_float64_tables_there_are_no_copies() -> None:
    with pytest.raises(UsageError, match="'memory' is float64"):
        cached(1, 10, dtype="float64")


# ---- shards in other processes -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("in_place", "beside"), [(True, False), (False, False), (False, True)])
def test_copies_of_two_trainers_outlive_killed_shards(
    tmp_path: Path, in_place: bool, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if beside:  # gradients are sent by a thread
        copies = Transfers(HeldStreams())
        for module in ("workers.gpu.cached_table", "workers.tensor_tables"):
            monkeypatch.setattr(f"{module}.transfers", lambda device: copies)

    def run(clients: list[StoreClient], shards: Shards | None) -> list[History]:
        histories = []
        for seed, client in enumerate(clients):
            table = client.table("memory") if shards is None else CachedTable(client, SPEC, 50, CPU)
            histories.append(History(client, table, seed))
        for step in range(24):
            for history in histories:
                history.step()
                if shards is not None and step % 8 == 4 and history is histories[step // 8 % 2]:
                    shards.kill(step // 8 % SHARDS)
        return histories

    plain = run(two_writers(in_process_hosts([SPEC], SHARDS), SPEC), None)
    shards = Shards(tmp_path / "logs")
    try:
        clients = [shards.connect(in_place=in_place, lookup="auto") for _ in range(2)]
        leader = clients[0].take_over(2)
        clients[1].join(m.Sender(leader.session, leader.epoch, 1), 2)
        assert [client.reads_in_place for client in clients] == [in_place] * 2
        found = run(clients, shards)
        assert min(hit_rate(history) for history in found) > 0.1
        assert all(ours.equals(theirs) for ours, theirs in zip(found, plain, strict=True))
        for client in clients:
            client.close()
    finally:
        shards.close()
