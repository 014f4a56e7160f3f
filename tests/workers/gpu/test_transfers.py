"""Copies beside the work: in order, in memory that nobody uses again too early, and without a wait that nobody needs."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memory_store import StoreClient, StoreError, in_process_store
from memory_store.lookups import added_sums, joined_rows
from memory_store.reused_memory import SMALL_BYTES, ReusedMemory
from tests.workers.gpu.held_streams import HeldEvent, HeldStreams
from tests.workers.gpu.histories import CPU, History, ordinary, small_table
from workers.gpu.cached_table import CachedTable
from workers.gpu.transfers import Transfers, transfers
from workers.learning_rows import LearningRows
from workers.lookup import begin_lookup


def place(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_on_a_cpu_nothing_is_copied() -> None:
    copies, tensor, array = transfers(CPU), torch.rand(3, 4), np.ones(5)
    (found,) = copies.to_host(tensor)()
    assert place(found) == tensor.data_ptr()
    assert copies.to_device(array).data_ptr() == place(array)
    turned = tensor.mT.requires_grad_()
    (found,) = copies.to_host(turned)()
    assert found.flags.c_contiguous
    assert found.tolist() == turned.tolist()


def test_numbers_are_those_of_the_time_when_they_were_asked_for_and_waited_for() -> None:
    streams = HeldStreams()
    copies = Transfers(streams)
    tensors = [torch.arange(7), torch.rand(3, 4).mT, torch.rand(2, 1).expand(2, 5), torch.empty(0, 3)]
    waiting = copies.to_host(*tensors)
    later = copies.to_host(torch.ones(1))
    assert not streams.waits
    for found, tensor in zip(waiting(), tensors, strict=True):
        assert found.flags.c_contiguous
        assert str(found.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(torch.from_numpy(found), tensor)
    assert sum(streams.waits.values()) == len(tensors)
    assert len(streams.pending) == 1  # nobody has waited for the later one
    assert later()[0] == 1


def test_memory_is_not_used_again_before_its_copy_has_ended() -> None:
    streams = HeldStreams()
    copies = Transfers(streams)
    copies.to_host(torch.ones(1000))  # for nobody
    memory = ReusedMemory(allocate=streams.page_locked, small_bytes=0)
    sent = memory.empty((1000,), np.float32)
    sent[:] = 3
    first = place(sent)
    tensor = copies.to_device(sent)
    del sent
    other = memory.empty((1000,), np.float32)
    other[:] = 4
    assert place(other) != first
    (found,) = copies.to_host(torch.full((1000,), 2.0))()  # ends all before it
    assert (found == 2).all()
    assert (tensor == 3).all()
    assert len(streams.blocks) == 4
    del found
    copies.to_device(other)  # forgets what has ended
    assert place(memory.empty((1000,), np.float32)) == first


def test_a_gradient_on_its_way_is_held_so_that_autograd_does_not_add_to_it_in_place() -> None:
    streams = HeldStreams()
    copies = Transfers(streams)
    told = []

    class Copied(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            told.append(copies.to_host(gradient))
            return gradient

    x = torch.rand(50, requires_grad=True)
    y = x * 2
    # Both branches hand one tensor on to y, where autograd adds them up.
    (y * 3 + Copied.apply(y) + y).sum().backward()  # type: ignore[no-untyped-call]
    assert (told[0]()[0] == 1).all()


def test_what_was_copied_is_let_go_of_when_it_is_read() -> None:
    streams = HeldStreams()
    copies = Transfers(streams)
    memory = np.ones(1000, np.float32)
    source = weakref.ref(memory)
    waiting = copies.to_host(torch.from_numpy(memory))
    del memory
    assert source() is not None
    (found,) = waiting()
    assert source() is None
    tensor = copies.to_device(found)
    target = weakref.ref(tensor)
    del tensor
    assert streams.pending  # the host's memory must stay, but not the device's
    assert target() is None


def test_the_same_blocks_serve_step_after_step_and_larger_ones_when_more_comes() -> None:
    streams = HeldStreams()
    copies = Transfers(streams)

    def step(rows: int) -> int:
        for _ in range(3):
            (found,) = copies.to_host(torch.rand(rows, 8))()
            copies.to_device(found)
        return len(streams.blocks)

    assert step(1000) <= 3
    for rows in (1000, 990, 970) * 5:  # the blocks of a size have some room
        blocks = step(rows)
        assert blocks <= 4
    assert step(5000) > blocks


@pytest.mark.parametrize("shape", [(1000, 16), (1000,), (3, 16), (0, 16), (10, 0), (1, 4000)])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("device", ["slow", "cpu"])
def test_large_arrays_cross_in_pieces(
    shape: tuple[int, ...], dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.gpu.transfers._PIECE_BYTES", 10_000)
    streams = HeldStreams()
    copies = Transfers(streams if device == "slow" else None)
    numbers = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    array, tensor = numbers.copy(), torch.full(shape, 101, dtype=getattr(torch, dtype))
    copies.fill_tensor(tensor, array)
    assert torch.equal(tensor, torch.from_numpy(numbers))
    array.fill(0)  # which was read already
    assert len(streams.pending) <= 2
    copies.fill_tensor(tensor.clone(), array)  # in memory that is not on its way
    streams.catch_up()
    copies.fill_array(array, tensor)
    assert (array == numbers).all()
    assert not streams.pending
    assert len(streams.blocks) <= 5  # of a piece that is copied and those on their way, each way


def test_of_large_arrays_one_piece_is_on_its_way_while_the_other_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.gpu.transfers._PIECE_BYTES", 4000)
    streams = HeldStreams()
    under_way: list[int] = []
    catch_up = streams.catch_up

    def counted(last: HeldEvent | None = None) -> None:
        under_way.append(len(streams.pending))
        catch_up(last)

    monkeypatch.setattr(streams, "catch_up", counted)
    copies, array, tensor = Transfers(streams), np.zeros(5000, np.float32), torch.ones(5000)
    copies.fill_array(array, tensor)
    assert under_way == [2, 2, 2, 2, 1]
    under_way.clear()
    copies.fill_tensor(tensor, array)
    assert under_way == [2, 2, 2, 2]


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> HeldStreams:
    """Of a device that looks like the CPU."""
    held = HeldStreams()
    copies = Transfers(held)
    for module in ("workers.gpu.cached_table", "workers.lookup", "workers.tensor_tables"):
        monkeypatch.setattr(f"{module}.transfers", lambda device: copies)
    return held


def table(store: StoreClient, kind: str) -> Any:
    return store.table("memory") if kind == "host" else CachedTable(store, store.specs["memory"], 300, CPU)


@pytest.mark.parametrize("kind", ["host", "cached"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_beside_the_work_change_no_byte(
    kind: str, dtype: Any, streams: HeldStreams, monkeypatch: Any
) -> None:
    store = in_process_store([small_table(dtype=dtype)], 2, lookup="fetch")
    found = History(store, table(store, kind), 1).run()
    with torch.no_grad():
        answers = [found.everything(), *found.seen]
    monkeypatch.undo()
    expected = ordinary(1, dtype=dtype).run()
    assert all(map(torch.equal, answers, [expected.everything(), *expected.seen]))


def test_the_backward_pass_of_a_cached_table_waits_for_nothing(streams: HeldStreams) -> None:
    store = in_process_store([small_table()], 2, lookup="fetch")
    cached = table(store, "cached")
    for step in range(3):
        weights = torch.rand(5, 4, requires_grad=True)
        output = begin_lookup(cached, torch.arange(20).view(5, 4) * (step + 1), weights)()
        output.sum().backward()
        assert weights.grad is not None
        store.step({"memory": 0.1})
        # For the different rows and their number; all else in the thread that sends.
        assert streams.waits[threading.get_ident()] == 2 * (step + 1)
        assert sum(streams.waits.values()) == 6 * (step + 1)


def test_with_rows_in_shards_autograd_waits_where_it_needs_the_gradient_of_weights(
    streams: HeldStreams,
) -> None:
    store = in_process_store([small_table()], 2)
    waits: list[int] = []

    class Between(torch.autograd.Function):
        """What is computed while the shards look up."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            waits.append(sum(streams.waits.values()))
            return gradient

    weights, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 6, requires_grad=True)
    answer = begin_lookup(store.table("memory"), torch.tensor([[7]]), weights)
    between = Between.apply(x)  # type: ignore[no-untyped-call]
    (answer() + between).sum().backward()
    assert weights.grad is not None
    assert waits == [2]
    assert sum(streams.waits.values()) == 3


def test_gradients_are_sent_while_the_backward_pass_goes_on(streams: HeldStreams) -> None:
    store = in_process_store([small_table()], 2, lookup="fetch")
    cached, sent = table(store, "cached"), threading.Event()
    contribute = store.contribute

    def told(*args: Any, **parts: Any) -> Any:
        try:
            return contribute(*args, **parts)
        finally:
            sent.set()

    store.contribute = told  # type: ignore[method-assign]
    x = torch.ones(1, 1, requires_grad=True)

    class AfterIt(torch.autograd.Function):
        """What autograd goes on to: it ends only when the gradient has been sent."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            assert sent.wait(60)
            return gradient

    weights = AfterIt.apply(x)  # type: ignore[no-untyped-call]
    begin_lookup(cached, torch.tensor([[7]]), weights)().sum().backward()
    assert x.grad is not None


def test_a_gradient_that_can_not_be_sent_is_said_by_the_commit(streams: HeldStreams) -> None:
    store = in_process_store([small_table()], 2, lookup="fetch")
    cached = table(store, "cached")
    with pytest.MonkeyPatch.context() as patch:

        def contribute(*args: Any, **parts: Any) -> None:
            raise StoreError("The shard is gone.")

        patch.setattr(store, "contribute", contribute)
        begin_lookup(cached, torch.tensor([[7]]), torch.ones(1, 1))().sum().backward()
        with pytest.raises(StoreError, match="gone"):
            store.step({"memory": 0.1})
    store.initialise()
    store.step({"memory": 0.1})


def test_gradients_under_way_are_forgotten_when_tables_are_replaced(streams: HeldStreams) -> None:
    store = in_process_store([small_table()], 2, lookup="fetch")
    cached = table(store, "cached")
    before = store.table("memory").lookup(np.array([[7]]), np.ones((1, 1), np.float32), keep=False).output
    begin_lookup(cached, torch.tensor([[7]]), torch.ones(1, 1))().sum().backward()
    store.initialise()
    store.step({"memory": 0.1})
    after = store.table("memory").lookup(np.array([[7]]), np.ones((1, 1), np.float32), keep=False).output
    assert before.tobytes() == after.tobytes()


def test_large_answers_lie_in_the_memory_that_a_device_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = HeldStreams()
    monkeypatch.setattr("memory_store.reused_memory._MEMORY.allocate", streams.page_locked)
    monkeypatch.setattr("memory_store.reused_memory._MEMORY._free", [])
    rows = SMALL_BYTES // 4 // 6 + 1
    whole = joined_rows([np.ones((rows, 6), np.float32), np.full((3, 6), 2, np.float32)])
    assert (whole == np.repeat([1, 2], [rows, 3])[:, None]).all()
    assert place(whole) == place(streams.blocks[0])
    store = in_process_store([small_table()], 2, lookup="fetch")
    asked = torch.arange(rows)[:, None] % 2500
    begin_lookup(store.table("memory"), asked, torch.ones(rows, 1))()
    assert len(streams.blocks) >= 2


@pytest.mark.parametrize("shards", [2, 3])
def test_what_is_put_together_of_several_shards_lies_in_such_memory_too(
    shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # blocks of other tests
    streams = HeldStreams()
    monkeypatch.setattr("memory_store.reused_memory._MEMORY.allocate", streams.page_locked)
    monkeypatch.setattr("memory_store.reused_memory._MEMORY._free", [])

    def is_of_a_block(array: np.ndarray) -> bool:
        return any(0 <= place(array) - place(block) < block.size for block in streams.blocks)

    random = np.random.default_rng(shards)
    bags = SMALL_BYTES // 4 // 6 + 1
    table = in_process_store([small_table()], shards, lookup="pool").table("memory")
    rows, weights = random.integers(0, 2500, (bags, 7)), random.random((bags, 7), np.float32)
    lookup = table.lookup(rows, weights, keep=True)
    assert is_of_a_block(lookup.output)
    assert is_of_a_block(lookup.backward(np.ones((bags, 6), np.float32)))
    parts = [random.standard_normal((bags, 6), np.float32) for _ in range(shards)]
    whole = added_sums(parts)
    assert is_of_a_block(whole)
    one_after_the_other = parts[0].copy()
    for part in parts[1:]:
        one_after_the_other = one_after_the_other + part
    assert whole.tobytes() == one_after_the_other.tobytes()


class NoNumberAsked(TorchDispatchMode):
    """Refuses what would wait for all that a device was given: numbers, and shapes that depend on numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["host", "cached"])
def test_only_some_rows_learn_without_a_wait_but_for_copies(
    kind: str, streams: HeldStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Transfers(streams)
    monkeypatch.setattr("workers.learning_rows.transfers", lambda device: copies)
    store = in_process_store([small_table()], 2, lookup="fetch")
    rows = torch.tensor([[5, 6, 7], [6, 7, 8], [5, 6, 8]])
    choose = LearningRows(np.ones(2500, np.float32), 1)  # the row with the most accesses: 6
    before = store.table("memory").lookup(rows.numpy(), np.ones((3, 3), np.float32), keep=False).output
    weights = torch.ones(3, 3, requires_grad=True)
    with NoNumberAsked():
        output = begin_lookup(table(store, kind), rows, weights, learning=choose(rows))()
        output.sum().backward()
    assert torch.equal(output.detach(), torch.from_numpy(before))
    assert weights.grad is not None
    assert (weights.grad != 0).tolist() == (rows == 6).tolist()
    asked = np.array([[5], [6], [7], [8]])
    old = store.table("memory").lookup(asked, np.ones((4, 1), np.float32), keep=False).output
    store.step({"memory": 0.1})
    new = store.table("memory").lookup(asked, np.ones((4, 1), np.float32), keep=False).output
    assert (old != new).any(1).tolist() == [False, True, False, False]
