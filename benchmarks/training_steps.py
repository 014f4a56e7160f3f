"""The same model trained in several ways: its table in a store, in plain PyTorch, or without a memory.

All start from the same weights and values and see the same batches; the dense part has the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.plain_memory import PlainMemory
from memory_store.client import StoreClient
from memory_store.table_handle import TableHandle
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.gpu.transfers import numbers_of, transfers
from workers.job_spec import ModelSpec
from workers.memory_layer import MemoryLayer
from workers.memory_spec import MemorySpec
from workers.transformer import Transformer

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.98)
CLIP_NORM = 1.0
VALUES = OptimizerSpec("adam", betas=(0.9, 0.999), eps=1e-8)


Part = Callable[[str], AbstractContextManager[object]]


def untimed(name: str) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class Batch:
    """Token numbers and the tokens that follow them, int64 `[B, L]` each."""

    tokens: Tensor
    targets: Tensor

    def on(self, device: torch.device) -> Batch:
        """This batch on its way to `device`, as a trainer sends it."""
        copies = transfers(device)
        return Batch(copies.to_device(self.tokens.numpy()), copies.to_device(self.targets.numpy()))

    @staticmethod
    def drawn(sequences: int, length: int, vocabulary_size: int, seed: int) -> Batch:
        """Tokens as frequent as words are: the r-th has a share proportional to 1 / r (Zipf)."""
        shares = 1 / np.arange(1, vocabulary_size + 1)
        text = np.random.default_rng(seed).choice(
            vocabulary_size, size=(sequences, length + 1), p=shares / shares.sum()
        )
        return Batch(torch.from_numpy(text[:, :-1].copy()), torch.from_numpy(text[:, 1:].copy()))


class TrainedModel:
    """A model with what its step needs. `apply` moves what is not in the dense optimizer; `settle` waits for it.

    With `keeps_gradients` they are set to zero instead of being given up, as compiled blocks need it. `precision` makes what
    the forward pass runs in, for example torch.autocast.
    """

    def __init__(
        self,
        model: Transformer,
        dense: list[nn.Parameter],
        apply: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        *,
        keeps_gradients: bool = False,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._keeps_gradients, self._precision = keeps_gradients, precision
        self._model, self._dense, self._apply, self.settle = model, dense, apply, settle
        self._optimizer = torch.optim.AdamW(dense, LEARNING_RATE, betas=BETAS, weight_decay=0.0)

    def step(self, batch: Batch, part: Part = untimed) -> float:
        """One training step, as workers/training.py makes it; returns the loss. `part` is entered round each of its parts."""
        self._model.train()
        self._optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        with part("forward"), self._precision():
            loss = self._model.loss(batch.tokens, batch.targets)
        with part("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with part("dense optimizer"):
            norm = nn.utils.clip_grad_norm_(self._dense, CLIP_NORM)
            told = numbers_of(norm, loss)
            self._optimizer.step()
        with part("tables"):
            self._apply()
        return told()[1]

    @torch.no_grad()
    def infer(self, batch: Batch) -> Tensor:
        """The logits `[B, L, V]`."""
        self._model.eval()
        logits: Tensor = self._model(batch.tokens)
        return logits


@dataclass(frozen=True)
class ModelKind:
    """The model that all ways train."""

    model: ModelSpec
    memory: MemorySpec
    vocabulary_size: int
    seed: int = 0

    def table(self) -> TableSpec:
        rows = self.memory.sub_keys**2
        return TableSpec("memory", rows, self.model.dim, seed=self.seed, optimizer=VALUES)

    def looking_ahead(self, layers: int) -> ModelKind:
        """The same with queries taken `layers` earlier."""
        memory = MemorySpec.model_validate({**self.memory.model_dump(), "look_ahead": layers})
        return replace(self, memory=memory)

    def with_store(self, store: StoreClient, table: str = "memory") -> TrainedModel:
        """The values in `table` of `store`, which nobody writes while this model is trained."""
        store.take_over()
        model = self._built(store.table(table))

        def apply() -> None:
            store.step(dict.fromkeys(store.specs, LEARNING_RATE))

        return TrainedModel(model, list(model.parameters()), apply, store.synchronise)

    def in_plain_pytorch(self, store: StoreClient, values: Tensor, *, sparse: bool) -> TrainedModel:
        """The table as a parameter with SparseAdam, or with dense Adam. `store` only lends its shape."""
        model = self._built(store.table("memory"))
        dense = list(model.parameters())
        (place,) = (name for name, module in model.named_modules() if isinstance(module, MemoryLayer))
        plain = PlainMemory(cast(MemoryLayer, model.get_submodule(place)), values, sparse=sparse)
        model.set_submodule(place, plain)
        kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
        optimizer = kind([plain.values], LEARNING_RATE, betas=VALUES.betas, eps=VALUES.eps)

        def apply() -> None:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()

        return TrainedModel(model, dense, apply)

    def _built(self, table: TableHandle) -> Transformer:
        return Transformer(self.model, self.memory, self.vocabulary_size, {"memory": table}, self.seed)


def dense_model(model: ModelSpec, vocabulary_size: int, seed: int = 0) -> TrainedModel:
    """A model without a memory."""
    transformer = Transformer(model, None, vocabulary_size, {}, seed)
    return TrainedModel(transformer, list(transformer.parameters()))
