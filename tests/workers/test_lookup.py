"""Autograd through the store, against a dense table with autograd."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_store import OptimizerSpec, StoreClient, TableSpec, UsageError, in_process_store
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.lookup import begin_lookup

ROWS, DIM = 30, 5
EVERY_ROW = np.arange(ROWS)[:, None]


def open_table(dtype: str = "float64", lookup_kind: str = "auto", shards: int = 2) -> StoreClient:
    """A table whose values lose exactly their gradient at a step with learning rate 1."""
    spec = TableSpec("memory", ROWS, DIM, dtype=dtype, seed=3, optimizer=OptimizerSpec(kind="sgd"))  # type: ignore[arg-type]
    return in_process_store([spec], shards, lookup=lookup_kind)  # type: ignore[arg-type]


def values(store: StoreClient) -> Tensor:
    """The whole table `[K, D]`."""
    table = store.table("memory")
    ones = np.ones(EVERY_ROW.shape, dtype=table.spec.compute_dtype)
    return torch.from_numpy(table.lookup(EVERY_ROW, ones, keep=False).output)


def entries(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(ROWS, (7, 6), generator=generator)
    return rows, torch.rand(7, 6, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("lookup_kind", ["fetch", "pool"])
def test_output_and_gradients_equal_a_dense_table(lookup_kind: str) -> None:
    store = open_table(lookup_kind=lookup_kind)
    rows, weights = entries()
    before = values(store)
    output = begin_lookup(store.table("memory"), rows, weights)()
    output.square().sum().backward()
    store.step({"memory": 1.0})

    dense, plain = before.clone().requires_grad_(), weights.detach().clone().requires_grad_()
    expected = (plain[..., None] * dense[rows]).sum(1)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights.grad, plain.grad)
    torch.testing.assert_close(before - values(store), dense.grad)


def test_output_takes_the_type_of_the_weights() -> None:
    rows, weights = entries(torch.float32)
    output = begin_lookup(open_table("bfloat16").table("memory"), rows, weights)()
    assert output.dtype == torch.float32
    output.sum().backward()
    assert weights.grad is not None
    assert weights.grad.dtype == torch.float32


def test_rows_learn_where_the_weights_are_frozen() -> None:
    store = open_table()
    rows, weights = entries()
    before = values(store)
    begin_lookup(store.table("memory"), rows, weights.detach())().sum().backward()
    store.step({"memory": 1.0})
    untouched = np.setdiff1d(EVERY_ROW, rows.numpy())
    assert torch.equal(before[untouched], values(store)[untouched])
    assert (before[rows.flatten()] != values(store)[rows.flatten()]).all()


def test_without_gradients_nothing_is_kept() -> None:
    store = open_table()
    rows, weights = entries()
    before = values(store)
    with torch.no_grad():
        output = begin_lookup(store.table("memory"), rows, weights)()
    assert not output.requires_grad
    store.step({"memory": 1.0})
    assert torch.equal(before, values(store))


@pytest.mark.parametrize("count", [0, 7])
def test_a_second_backward_pass_is_refused(count: int) -> None:
    store = open_table()
    rows, weights = entries()
    output = begin_lookup(store.table("memory"), rows[:count], weights[:count])().sum()
    output.backward(retain_graph=True)
    with pytest.raises(UsageError, match="twice"):
        output.backward()


def test_no_tokens() -> None:
    store = open_table()
    rows, weights = entries()
    output = begin_lookup(store.table("memory"), rows[:0], weights[:0])()
    assert output.shape == (0, DIM)
    output.sum().backward()
    assert torch.equal(weights.grad, torch.zeros_like(weights))  # type: ignore[arg-type]


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("kind", ["fetch", "pool", "cached", "gpu"])
def test_nothing_of_a_lookup_lives_on_after_its_backward_pass(kind: str) -> None:
    spec, device = TableSpec("memory", ROWS, DIM), torch.device("cpu")
    store = (
        DeviceStore([spec], device)
        if kind == "gpu"
        else open_table("float32", kind if kind == "pool" else "fetch")
    )
    table = store.table("memory")
    if kind == "cached":
        table = CachedTable(store, table.spec, 10, device)

    def one_step() -> None:
        begin_lookup(table, *entries(torch.float32))().sum().backward()
        store.step({"memory": 1.0})

    one_step()
    alive = tensors_alive()
    for _ in range(3):
        one_step()
    assert tensors_alive() == alive
