"""What a plan says of GPUs, against the tensors of a job's tables and lookups, and against the bytes that they move."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from memory_store import in_process_store
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.errors import UsageError
from tests.small_job import small_job
from tests.workers.gpu.peers_in_threads import at_once, shared_stores
from tests.workers.test_plan import CALIBRATION, N, T, job, part
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_peers import ProcessPeers
from workers.gpu.device_store import DeviceStore
from workers.gpu.transfers import Transfers
from workers.job_spec import JobSpec
from workers.lookup import begin_lookup
from workers.plan import PAYLOAD_SHARE, Network, Plan, check_network, make_plan
from workers.plan_costs import Calibration, DeviceCosts
from workers.plan_device import (
    DeviceMemory,
    Gpu,
    check_tables_fit,
    crossing,
    exchange,
    held_bytes,
    shortage,
    table_bytes_on_device,
)
from workers.plan_sample_device import kept_bytes
from workers.plan_sizes import Sizes

CPU = torch.device("cpu")
ROWS, D = 32 * 32, 32
CACHED = {"memory__placement": "cached", "memory__cached_rows": 256}
ON_DEVICE = {"memory__placement": "gpu", "store__carrier": "in_process", "store__shards": 1}
COSTS = Calibration(**{**vars(CALIBRATION), "device": DeviceCosts(4e-6, 1e-6, 2e-6, 3e-6)})
GPU = Gpu(memory_bytes=80 * 2**30, pcie_bytes_per_second=1e9)


def placed(placement: str, **changes: Any) -> JobSpec:
    settings = {"host": {}, "cached": CACHED, "gpu": ON_DEVICE}[placement]
    return job(**{**settings, **changes})


class Counted:
    """Streams that copy at once, and count bytes each way."""

    def __init__(self) -> None:
        self.out = self.into = 0

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        return np.empty(size, np.uint8)

    def is_page_locked(self, source: Tensor) -> bool:
        return True

    def to_host(self, source: Tensor, target: Tensor) -> Counted:
        self.out += source.nbytes
        target.copy_(source)
        return self

    def to_device(self, source: Tensor) -> tuple[Tensor, Counted]:
        self.into += source.nbytes
        return source, self


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    streams = Counted()
    copies = Transfers(streams)
    for module in ("workers.gpu.cached_table", "workers.lookup", "workers.tensor_tables"):
        monkeypatch.setattr(f"{module}.transfers", lambda device: copies)
    return streams


def ask(table: Any, seed: int) -> tuple[Tensor, int]:
    """The sums of a lookup as large as the job's, and how many different rows it reads."""
    random = np.random.default_rng(seed)
    rows = random.integers(ROWS, size=(T, N // T))
    weights = torch.rand(rows.shape, requires_grad=True)
    return begin_lookup(table, torch.from_numpy(rows), weights)(), np.unique(rows).size


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam", "rowwise_adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_take_what_their_tensors_take(optimizer: str, dtype: str) -> None:
    values = {"memory__values": {"optimizer": optimizer, "dtype": dtype}}
    on_device = placed("gpu", **values)
    store = DeviceStore(on_device.tables(), CPU)
    (rows,) = (store.rows(name) for name in store.specs)
    tensors = (rows.values, rows.first_state, rows.second_state, rows.last_step)
    assert table_bytes_on_device(on_device) == sum(tensor.nbytes for tensor in tensors)
    for cached_rows in (7, 256, 10**6):
        copied = placed("cached", memory__cached_rows=cached_rows, **values)
        (spec,) = copied.tables()
        table = CachedTable(in_process_store([spec], 1), spec, cached_rows, CPU)
        assert table_bytes_on_device(copied) == table._copies.nbytes
    assert table_bytes_on_device(placed("host", **values)) == 0


def bytes_of(*tensors: Tensor) -> int:
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_lookups_hold_what_a_plan_says() -> None:
    sizes = Sizes(placed("gpu"))
    store = DeviceStore(placed("gpu").tables(), CPU)
    (table,) = (store.table(name) for name in store.specs)
    rows, weights = torch.randint(ROWS, (T, N // T)), torch.rand(T, N // T)
    lookup: Any = table.begin_tensor_lookup(rows, weights, keep=True, track=False)()  # type: ignore[attr-defined]
    assert held_bytes(sizes, until_step=False) == bytes_of(
        lookup.output, lookup._entries.rows, lookup._entries.weights
    )
    lookup.begin_backward(torch.rand(T, D))
    (pending,) = store._pending[table.name]
    parts = pending.rows, pending.vector_numbers, pending.weights, pending.vectors
    assert held_bytes(sizes, until_step=True) == bytes_of(*parts)

    sizes = Sizes(placed("cached"))
    (spec,) = placed("cached").tables()
    cached = CachedTable(in_process_store([spec], 2, lookup="fetch"), spec, 256, CPU)
    lookup = cached.begin_tensor_lookup(rows, weights, keep=True, track=False)()
    sizes.U = rows.unique().numel()
    assert held_bytes(sizes, until_step=False) == bytes_of(lookup.output, lookup._values, lookup._inverse)
    assert held_bytes(Sizes(placed("host")), until_step=False) == 4 * T * D


def test_two_trainers_hold_what_a_plan_says() -> None:
    planned = placed(
        "gpu", train__trainers=2, train__batch_tokens=2 * T, memory__values={"optimizer": "adam"}
    )
    sizes, stores = Sizes(planned), shared_stores(planned.tables(), 2)
    (name,) = stores[0].specs
    rows = stores[0].rows(name)
    assert table_bytes_on_device(planned) == bytes_of(
        rows.values, rows.first_state, rows.second_state, rows.last_step
    )

    def look_up(rank: int) -> tuple[int, int]:
        table: Any = stores[rank].table(name)
        rows, weights = torch.randint(ROWS, (T, N // T)), torch.rand(T, N // T)
        lookup = table.begin_tensor_lookup(rows, weights, keep=True, track=False)()
        held = bytes_of(lookup.output, lookup._entries.rows, lookup._entries.weights, lookup._entries.here)
        lookup.begin_backward(torch.rand(T, D))
        (pending,) = stores[rank]._pending[name]
        return held, bytes_of(pending.rows, pending.vector_numbers, pending.weights, pending.vectors)

    expected = held_bytes(sizes, until_step=False), held_bytes(sizes, until_step=True)
    assert at_once(2, look_up) == [expected] * 2


def test_what_autograd_keeps_is_counted() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = torch.rand(32, 8)
    with kept_bytes(model.parameters()) as kept:
        model(x).sum().backward()
    # The inputs of both layers and of the activation; neither the weights nor the sum's input.
    assert kept() == 4 * 32 * (8 + 16 + 16)


# ---- PCIe --------------------------------------------------------------------------------------------------------


def test_a_lookup_in_shards_moves_what_a_plan_says(counted: Counted) -> None:
    (spec,) = placed("host").tables()
    store = in_process_store([spec], 2)
    output, _ = ask(store.table(spec.name), 0)
    crossed = crossing(Sizes(placed("host")))
    assert (counted.out, counted.into) == (crossed.asked, crossed.answered)
    output.sum().backward()
    assert counted.out == crossed.asked + crossed.gradient
    assert counted.into == crossed.answered + crossed.weight_gradient


def test_a_lookup_with_copies_moves_what_a_plan_says(counted: Counted) -> None:
    (spec,) = placed("cached").tables()
    store = in_process_store([spec], 2, lookup="fetch")
    table = CachedTable(store, spec, 256, CPU)
    output, touched = ask(table, 0)
    output.sum().backward()
    store.step({spec.name: 0.1})  # rows are chosen, and asked for
    table._arrive()
    for seed in range(1, 3):
        counted.out = counted.into = 0
        found = table.cache.found
        output, distinct = ask(table, seed)
        sizes = Sizes(placed("cached"))
        sizes.U, sizes.f = distinct, (table.cache.found - found) / distinct
        crossed = crossing(sizes)
        assert 0.1 < sizes.f < 0.9
        assert (counted.out, counted.into) == (
            crossed.asked + crossed.entries,
            pytest.approx(crossed.answered),
        )
        output.sum().backward()
        stale = table.cache.found - found  # that the lookup touched
        store.step({spec.name: 0.1})
        assert counted.out == crossed.asked + crossed.entries + crossed.gradient
        counted.into = 0
        table._arrive()
        assert counted.into == (4 * D + 4) * stale
    assert touched < ROWS


# ---- between devices ---------------------------------------------------------------------------------------------


def bytes_told(rank: int, meeting: str, told: Any) -> None:
    """What one of two trainers sends to the other's device for a lookup and its backward pass."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    sent = 0
    gather, scatter = dist.all_gather_into_tensor, dist.all_to_all_single

    def all_gather_into_tensor(found: Tensor, mine: Tensor, **group: Any) -> Any:
        nonlocal sent
        sent += mine.nbytes
        return gather(found, mine, **group)

    def all_to_all_single(found: Tensor, parts: Tensor, **group: Any) -> Any:
        nonlocal sent
        sent += parts.chunk(2)[1 - rank].nbytes
        return scatter(found, parts, **group)

    planned = placed("gpu", train__trainers=2, train__batch_tokens=2 * T)
    store = DeviceStore(
        planned.tables(), CPU, None, ProcessPeers(), lambda host: [InProcessCarrier(host)] * 2
    )
    dist.all_gather_into_tensor = all_gather_into_tensor
    dist.all_to_all_single = all_to_all_single
    (name,) = store.specs
    output, _ = ask(store.table(name), rank)
    forward = sent
    output.sum().backward()
    told.put((forward, sent - forward))
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_trainers_exchange_what_a_plan_says(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    told = processes.Queue()
    trainers = [
        processes.Process(target=bytes_told, args=(rank, str(tmp_path / "meeting"), told))
        for rank in range(2)
    ]
    for trainer in trainers:
        trainer.start()
    found = [told.get(timeout=100) for _ in trainers]
    for trainer in trainers:
        trainer.join()
    exchanged = exchange(Sizes(placed("gpu", train__trainers=2, train__batch_tokens=2 * T)))
    assert found == [(exchanged.forward, exchanged.backward)] * 2


# ---- the plan ----------------------------------------------------------------------------------------------------


def planned(placement: str, gpu: Gpu | None = GPU, **changes: Any) -> Plan:
    return make_plan(placed(placement, **changes), COSTS, Network(), gpu)


def test_a_step_with_the_table_on_the_device() -> None:
    plan = planned("gpu")
    assert plan.lookup == "on the device"
    assert part(plan, "lookup: kernel").step_seconds == pytest.approx(1e-6 * N)
    assert part(plan, "backward: kernel").step_seconds == pytest.approx(2e-6 * N)
    assert part(plan, "row update").step_seconds == pytest.approx(3e-6 * N)
    pcie = {found.name: found.bytes for found in plan.parts if "PCIe" in found.name}
    assert pcie == {"batch: PCIe": 16 * T}
    assert plan.pending_bytes == 0
    held = 4 * T * D + 12 * N + 4 * T * D + 20 * N
    assert plan.device == DeviceMemory(table_bytes_on_device(placed("gpu")), 16 * 1_000_000, 7e6, held)


def test_a_step_with_parts_of_the_table_on_several_devices() -> None:
    trainers = {"train__trainers": 4, "train__batch_tokens": 4 * T}
    plan = planned("gpu", **trainers)
    assert (plan.trainers, plan.shards) == (4, 4)
    # Each device does its part of the entries of all; one may have as many as come.
    assert part(plan, "lookup: kernel").step_seconds == pytest.approx(1e-6 * 4 * N)
    forward, backward = 3 * (12 * N + 4 * T * D), 3 * (4 * T * D + 4 * N)
    for gpu, rate in ((GPU, 1e9), (Gpu(link_bytes_per_second=5e9), 5e9)):
        plan = planned("gpu", gpu, **trainers)
        for name, size in ("lookup: other GPUs", forward), ("backward: other GPUs", backward):
            assert part(plan, name).bytes == 2 * size
            assert part(plan, name).step_seconds == pytest.approx(size / rate)
        reduced = 4 * 1_000_000 * 2 * 3 / 4
        assert part(plan, "dense all-reduce").seconds == pytest.approx(reduced / rate)
    network = Network(1e8, hosts_apart=True)
    with pytest.raises(UsageError, match=r"leave --network out, or use several train\.trainers"):
        check_network(placed("gpu"), network)
    check_network(placed("gpu", **trainers), network)
    apart = make_plan(placed("gpu", **trainers), COSTS, network, GPU)
    assert part(apart, "lookup: other GPUs").seconds == pytest.approx(forward / (1e8 * PAYLOAD_SHARE))
    assert not any("other GPUs" in found.name for found in planned("cached", **trainers).parts)


def test_a_step_with_copies() -> None:
    plan = planned("cached")
    distinct = plan.distinct_rows
    missing = 0.75 * distinct  # 256 of 1024 rows have copies
    assert plan.lookup == "cached"
    assert part(plan, "lookup: kernel").seconds == pytest.approx(4e-6 * N + 1e-6 * missing + 1e-6 * N)
    assert part(plan, "backward: kernel").step_seconds == pytest.approx(2e-6 * N)
    summed = part(plan, "backward: row sums")
    assert summed.seconds == pytest.approx(1e-6 * N)
    assert summed.step_seconds == 0  # behind the layer below, as the copy
    assert part(planned("cached", None), "backward: row sums").step_seconds == summed.seconds
    assert part(plan, "lookup: wire").bytes == pytest.approx((4 + 4 * D) * missing)
    assert part(plan, "backward: wire").bytes == pytest.approx((4 + 4 * D) * distinct)
    assert part(plan, "copies: wire").bytes == pytest.approx((4 + 4 * D) * 0.25 * distinct)
    assert part(plan, "copies: PCIe").bytes == pytest.approx((4 + 4 * D) * 0.25 * distinct)
    behind = 8 * N + 4 * (distinct + 1)
    # Behind the layer below the memory: a tenth of a second of its forward pass, two of its backward pass.
    assert part(plan, "copies: PCIe").step_seconds == 0
    slow = planned("cached", Gpu(pcie_bytes_per_second=1e5))
    assert part(slow, "backward: PCIe").seconds == pytest.approx((behind + 4 * T * D) / 1e5)
    assert part(slow, "backward: PCIe").step_seconds == pytest.approx((behind + 4 * T * D) / 1e5 - 0.2)
    assert slow.limit.name == "lookup: PCIe"
    two = planned("cached", train__trainers=2, train__batch_tokens=2 * T)
    assert part(two, "copies: PCIe").bytes == pytest.approx((4 + 4 * D) * 256)  # all, whatever was touched
    assert part(two, "dense forward and backward").seconds == 0.6  # each on a GPU of its own


def test_a_step_with_rows_in_place_and_a_gpu() -> None:
    plan = planned("host")
    sums = 4 * T * D
    assert part(plan, "lookup: PCIe").bytes == 12 * N + sums
    assert part(plan, "backward: PCIe").step_seconds == pytest.approx((sums + 4 * N) / 1e9)
    without = planned("host", None)
    assert without.device is None
    assert {found.name for found in plan.parts} - {found.name for found in without.parts} == {
        "batch: PCIe",
        "lookup: PCIe",
        "backward: PCIe",
    }


def test_what_does_not_fit_is_said_with_numbers() -> None:
    on_device = placed("gpu")
    needed = table_bytes_on_device(on_device)
    check_tables_fit(on_device, Gpu(needed))
    check_tables_fit(on_device, Gpu())
    check_tables_fit(small_job(Path("none"), memory=None), Gpu(1))
    with pytest.raises(UsageError, match=r"placement gpu puts .* GiB on a GPU of .* GiB; use placement host"):
        check_tables_fit(on_device, Gpu(needed - 1))
    memory = DeviceMemory(tables=2**30, dense=2 * 2**30, activations=3 * 2**30, lookups=2**29)
    assert memory.total == 6.5 * 2**30
    assert shortage(memory, Gpu(6.5 * 2**30)) is None
    assert shortage(memory, Gpu()) is None
    assert "about 6.5 GiB of a GPU of 6 GiB: tables 1, dense part 2, activations 3, lookups 0.5" in str(
        shortage(memory, Gpu(6 * 2**30))
    )
