"""Lookup, backward pass and row update of one large table: ours, and the peers that people use for it.

Every table is started from the same values and does the same step: bags of rows are summed with weights, the
gradient of the sums comes back, the weights get their gradient, the touched rows one optimizer step. Nothing
is timed before `agree` has found the results of one step equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.local_store import LocalStore

LEARNING_RATE = 1e-2
EPS = 1e-4  # large enough that a rounding error in a gradient near zero can't turn the sign of a step
BETAS = (0.9, 0.999)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Bags:
    """rows int64 `[T, M]`, weights `[T, M]`, and the gradient of the bags' sums `[T, D]`."""

    rows: NDArray[np.int64]
    weights: Floats
    output_gradient: Floats

    @staticmethod
    def drawn(table_rows: int, dim: int, bags: int, per_bag: int, seed: int = 0) -> Bags:
        """Rows drawn uniformly, which spares no cache, and normal gradients."""
        random = np.random.default_rng(seed)
        return Bags(
            random.integers(table_rows, size=(bags, per_bag)),
            random.random((bags, per_bag), dtype=np.float32),
            random.standard_normal((bags, dim), dtype=np.float32),
        )


class Found(NamedTuple):
    """What a step gives back: the sums `[T, D]` and the gradient of the weights `[T, M]`."""

    output: Floats
    weight_gradient: Floats


class BagTable(Protocol):
    """A table that can do the step."""

    def step(self) -> Found: ...

    def read(self, rows: NDArray[np.int64]) -> Floats: ...


class OurTable:
    """A store inside this process, pooling at its one shard."""

    def __init__(self, store: LocalStore, bags: Bags) -> None:
        self._store, self._bags = store, bags

    def step(self) -> Found:
        bags = self._bags
        found = self._store.table.lookup(bags.rows, bags.weights, keep=True)
        weight_gradient = found.backward(bags.output_gradient)
        self._store.step(LEARNING_RATE)
        return Found(found.output, weight_gradient)

    def read(self, rows: NDArray[np.int64]) -> Floats:
        return self._store.read(rows)


class TorchSparseAdam:
    """`torch.nn.EmbeddingBag(sparse=True)` with `torch.optim.SparseAdam`."""

    def __init__(self, values: Floats, bags: Bags) -> None:
        self._bag = torch.nn.EmbeddingBag.from_pretrained(
            torch.from_numpy(values), freeze=False, mode="sum", sparse=True
        )
        self._optimizer = torch.optim.SparseAdam(self._bag.parameters(), LEARNING_RATE, betas=BETAS, eps=EPS)
        self._rows = torch.from_numpy(bags.rows)
        self._weights = torch.from_numpy(bags.weights).requires_grad_()
        self._output_gradient = torch.from_numpy(bags.output_gradient)

    def step(self) -> Found:
        self._optimizer.zero_grad()
        self._weights.grad = None
        output = self._bag(self._rows, per_sample_weights=self._weights)
        output.backward(self._output_gradient)
        self._optimizer.step()  # type: ignore[no-untyped-call]
        return _found(output, self._weights)

    def read(self, rows: NDArray[np.int64]) -> Floats:
        return self._bag.weight.detach().numpy()[rows]


def fbgemm_bag(rows: int, dim: int, device: torch.device) -> Any:
    """FBGEMM's table of `rows` x `dim`, with exact row-wise Adagrad fused into its backward pass."""
    # An extra, which need not be installed, and without types.
    settings = import_module("fbgemm_gpu.split_embedding_configs")
    tables = import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    on_gpu = device.type == "cuda"
    place = tables.EmbeddingLocation.DEVICE if on_gpu else tables.EmbeddingLocation.HOST
    computes = tables.ComputeDevice.CUDA if on_gpu else tables.ComputeDevice.CPU
    return tables.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, place, computes)],
        optimizer=settings.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LEARNING_RATE,
        eps=EPS,
        device=device,
    )


class FbgemmRowwiseAdagrad:
    """FBGEMM's table-batched embedding on the CPU, with exact row-wise Adagrad fused into its backward pass."""

    def __init__(self, values: Floats, bags: Bags) -> None:
        self._bag = fbgemm_bag(*values.shape, torch.device("cpu"))
        self._values: Tensor = self._bag.split_embedding_weights()[0]
        self._values.copy_(torch.from_numpy(values))
        count, per_bag = bags.rows.shape
        self._shape = bags.rows.shape
        self._rows = torch.from_numpy(bags.rows).flatten()
        self._offsets = torch.arange(0, count * per_bag + 1, per_bag)
        self._weights = torch.from_numpy(bags.weights).flatten().requires_grad_()
        self._output_gradient = torch.from_numpy(bags.output_gradient)

    @staticmethod
    def installed() -> bool:
        return find_spec("fbgemm_gpu") is not None

    def step(self) -> Found:
        self._weights.grad = None
        output = self._bag(self._rows, self._offsets, per_sample_weights=self._weights)
        output.backward(self._output_gradient)
        found = _found(output, self._weights)
        return Found(found.output, found.weight_gradient.reshape(self._shape))

    def read(self, rows: NDArray[np.int64]) -> Floats:
        return self._values.numpy()[rows]


def _found(output: Tensor, weights: Tensor) -> Found:
    assert weights.grad is not None
    return Found(output.detach().numpy(), weights.grad.numpy())


def agree(ours: BagTable, peer: BagTable, bags: Bags) -> None:
    """Do one step on both; raises AssertionError unless outputs, weight gradients and all rows are equal."""
    found, expected = ours.step(), peer.step()
    np.testing.assert_allclose(found.output, expected.output, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.weight_gradient, expected.weight_gradient, rtol=1e-4, atol=1e-4)
    touched = np.unique(bags.rows)
    np.testing.assert_allclose(ours.read(touched), peer.read(touched), rtol=1e-4, atol=1e-5)
    others = np.setdiff1d(np.arange(touched[-1]), touched)[:100_000]
    np.testing.assert_array_equal(ours.read(others), peer.read(others))
