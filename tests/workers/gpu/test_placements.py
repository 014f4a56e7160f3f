"""Tables on the device, and copies of rows there, against the ordinary store over the same random histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from memory_store import NonFiniteGradientError, OptimizerSpec, StoreClient, TableSpec, in_process_store
from memory_store.bucket_files import spec_as_json
from memory_store.cuts import Manifest, begin_cut, cut_folder, finish_cut
from memory_store.statistics import access_report, clear_accesses, touched_share
from memory_store.table_handle import TableHandle
from tests.small_job import dense_weights, small_job, table_content
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.gpu.row_cache import RowCache
from workers.lookup import begin_lookup
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.training import Trainer

CPU = torch.device("cpu")
ROWS, DIM = 2500, 6


def spec(**changes: Any) -> TableSpec:
    return TableSpec("memory", ROWS, DIM, seed=3, **changes)


class History:
    """Random lookups and steps, the same for the same seed; most rows of a lookup come from a few hot ones."""

    def __init__(self, store: StoreClient, tables: list[TableHandle], seed: int) -> None:
        self.store, self.tables, self.random = store, tables, np.random.default_rng(seed)
        self.seen: list[Tensor] = []

    def step(self, clip: float | None = None, *, skip: bool = False) -> None:
        for table in self.tables * 2:  # two lookups a step, as two layers of one table make them
            tokens, per_token = int(self.random.integers(1, 8)), 4
            hot = self.random.integers(0, 40, (tokens, per_token))
            cold = self.random.integers(0, ROWS, (tokens, per_token))
            rows = torch.from_numpy(np.where(self.random.random((tokens, per_token)) < 0.7, hot, cold))
            weights = torch.from_numpy(self.random.random((tokens, per_token), dtype=np.float32))
            weights.requires_grad_()
            gradient = torch.from_numpy(self.random.standard_normal((tokens, DIM), dtype=np.float32))
            output = begin_lookup(table, rows, weights)()
            output.backward(gradient)
            assert weights.grad is not None
            self.seen += [output.detach().clone(), weights.grad.clone()]
        if skip:
            self.store.skip_step()
        else:
            clips = {} if clip is None else dict.fromkeys(self.store.specs, clip)
            self.store.step(dict.fromkeys(self.store.specs, 0.1), clips)

    def everything(self) -> Tensor:
        """All rows, by lookups."""
        rows = torch.arange(ROWS)[:, None]
        with torch.no_grad():
            return torch.cat([begin_lookup(table, rows, torch.ones(ROWS, 1))() for table in self.tables])


def ordinary(seed: int, **changes: Any) -> History:
    store = in_process_store([spec(**changes)], 2, lookup="fetch")
    return History(store, [store.table("memory")], seed)


def run(history: History) -> History:
    for step in range(50):
        history.step(clip=0.5 if step % 7 == 3 else None, skip=step % 11 == 5)
    return history


# ---- copies on the device ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("capacity", [1, 30, 300, 10**6])
def test_copies_change_no_byte(capacity: int, dtype: Any) -> None:
    expected = run(ordinary(1, dtype=dtype))
    store = in_process_store([spec(dtype=dtype)], 3)
    table = CachedTable(store, store.specs["memory"], capacity, CPU)
    found = run(History(store, [table], 1))
    assert all(torch.equal(*pair) for pair in zip(found.seen, expected.seen, strict=True))
    assert torch.equal(found.everything(), expected.everything())
    assert table.cache.hit_rate > (0.1 if capacity >= 30 else 0)


def test_copies_follow_what_other_writers_touch() -> None:
    def stores() -> tuple[StoreClient, StoreClient]:
        from memory_store.opening import attach, in_process_hosts

        hosts = in_process_hosts([spec()], 2)
        clients = attach(hosts, [spec()], lookup="fetch"), attach(hosts, [spec()], lookup="fetch")
        leader = clients[0].take_over(2)
        clients[1].join(type(leader)(leader.session, leader.epoch, 1), 2)
        return clients

    def run_two(histories: list[History]) -> None:
        for _ in range(30):
            steps = []
            for history in histories:
                history.step()
                steps.append(history)

    plain = [History(client, [client.table("memory")], seed) for seed, client in enumerate(stores())]
    run_two(plain)
    cached = []
    for seed, client in enumerate(stores()):
        cached.append(History(client, [CachedTable(client, client.specs["memory"], 50, CPU)], seed))
    run_two(cached)
    for found, expected in zip(cached, plain, strict=True):
        assert all(torch.equal(*pair) for pair in zip(found.seen, expected.seen, strict=True))


def test_copies_are_forgotten_when_tables_are_replaced() -> None:
    store = in_process_store([spec()], 2)
    history = run(History(store, [CachedTable(store, store.specs["memory"], 100, CPU)], 1))
    store.initialise()
    assert torch.equal(history.everything(), ordinary(1).everything())


def test_the_slots_go_to_what_was_looked_up_most() -> None:
    cache = RowCache(2, 10)
    for addresses in ([1, 5, 7], [1, 5], [1, 5], [7]):
        cache.find(np.array(addresses, dtype=np.uint32))
    cache.choose()
    assert cache.stale().tolist() == [1, 5]
    cache.filled(cache.slots(cache.stale()))
    assert (cache.find(np.array([1, 5, 7], dtype=np.uint32)) >= 0).tolist() == [True, True, False]
    cache.touched(np.array([5, 7], dtype=np.uint32))
    assert (cache.find(np.array([1, 5, 7], dtype=np.uint32)) >= 0).tolist() == [True, False, False]
    assert (cache.hits, cache.looked_up) == (3, 14)


# ---- the whole table on the device -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
def test_a_table_on_the_device_is_that_of_the_shards(kind: Any) -> None:
    expected = run(ordinary(2, optimizer=OptimizerSpec(kind)))
    store = DeviceStore([spec(optimizer=OptimizerSpec(kind))], CPU)
    found = run(History(store, [store.table("memory")], 2))
    for ours, theirs in zip(found.seen, expected.seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.everything(), expected.everything(), rtol=1e-3, atol=1e-4)
    assert touched_share(store, "memory", 10) == touched_share(expected.store, "memory", 10) > 0


def write_cut(store: StoreClient, folder: Path) -> Path:
    begin_cut(folder, store.version)
    cut = cut_folder(folder, store.version)
    files = store.begin_cut(str(cut))()
    tables = tuple(spec_as_json(table) for table in store.specs.values())
    finish_cut(cut, Manifest(step=store.version, tables=tables, state={}, files=tuple(files)))
    return cut


def test_cuts_go_from_the_device_to_shards_and_back(tmp_path: Path) -> None:
    device = DeviceStore([spec()], CPU)
    trained = History(device, [device.table("memory")], 4)
    trained.step()
    (tmp_path / "device").mkdir()
    write_cut(device, tmp_path / "device")  # the next one is what was touched since
    run(trained)
    cut = write_cut(device, tmp_path / "device")
    shards = in_process_store([spec()], 3)
    shards.load_cut(str(cut), device.version)
    rows = History(shards, [shards.table("memory")], 0).everything()
    torch.testing.assert_close(rows, trained.everything(), rtol=0, atol=0)
    (tmp_path / "shards").mkdir()
    again = write_cut(shards, tmp_path / "shards")
    assert table_content(again) == table_content(cut)
    fresh = DeviceStore([spec()], CPU)
    fresh.load_cut(str(again), shards.version)
    assert fresh.version == device.version
    trained.random, other = np.random.default_rng(9), History(fresh, [fresh.table("memory")], 9)
    trained.step()
    other.step()
    assert torch.equal(other.everything(), trained.everything())


def test_a_gradient_that_is_not_finite_touches_no_row() -> None:
    store = DeviceStore([spec()], CPU)
    history = History(store, [store.table("memory")], 5)
    before = history.everything().clone()
    weights = torch.ones(1, 1, requires_grad=True)
    begin_lookup(store.table("memory"), torch.tensor([[3]]), weights)().sum().mul(torch.inf).backward()
    with pytest.raises(NonFiniteGradientError):
        store.step({"memory": 0.1})
    store.skip_step()
    assert torch.equal(history.everything(), before)
    assert store.version == 1


def test_accesses_are_counted_as_shards_count_them() -> None:
    rows, weights = torch.tensor([[1, 2], [2, 2400]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    reports = []
    for store in (DeviceStore([spec()], CPU), in_process_store([spec()], 2)):
        clear_accesses(store, "memory")
        with torch.no_grad():
            begin_lookup(store.table("memory"), rows, weights, track=True)()
        reports.append(access_report(store, "memory"))
    assert reports[0] == reports[1]


# ---- whole jobs --------------------------------------------------------------------------------------------------


def trained(corpus: Path, folder: Path, **changes: Any) -> tuple[float, Path]:
    job = small_job(corpus, train__steps=12, train__cut_every=6, train__evaluate_every=6, **changes)
    run_folder = RunFolder(folder)
    run_folder.create(job)
    torch.manual_seed(job.seed)
    report = Trainer(job, run_folder, Ranks(), store_in_process(job, CPU)).train()
    assert report is not None
    return report.perplexity, cut_folder(run_folder.cuts_path, 12)


def test_a_job_with_copies_ends_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    store = {"store__lookup": "fetch"}
    expected, plain = trained(corpus, tmp_path / "host", **store)
    found, cached = trained(
        corpus, tmp_path / "cached", memory__placement="cached", memory__cached_rows=200, **store
    )
    assert found == expected
    assert table_content(cached) == table_content(plain)
    assert dense_weights(cached) == dense_weights(plain)


def test_a_job_with_its_table_on_the_device(corpus: Path, tmp_path: Path) -> None:
    expected, _ = trained(corpus, tmp_path / "host", store__shards=1)
    found, _ = trained(corpus, tmp_path / "gpu", memory__placement="gpu", store__shards=1)
    assert found == pytest.approx(expected, rel=2e-3)


def test_a_table_on_the_device_serves_one_trainer_alone(corpus: Path) -> None:
    with pytest.raises(ValidationError, match="carrier in_process"):
        small_job(corpus, memory__placement="gpu", store__carrier="auto")
