"""Sparse memory finetuning (Lin et al. 2025): new text updates only the rows most specific to it.

Each step ranks the rows that a memory layer reads for its batch by TF-IDF and updates the `train.only_rows` first; every
other row, and every dense weight, stays as it is, bit for bit:

    tf-idf(r) = accesses of r / accesses in all  *  log((B + 1) / (B_r + 1))

with B batches of the run's old training text, of which B_r read row r: the *background*, counted once before the first
step (finetuning.py) and kept in the run's folder. Rows that the old text reads often serve what the model knows; those
rank last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memory_store.errors import UsageError
from workers.gpu.transfers import transfers
from workers.memory_layer import MemoryLayer
from workers.run_folder import RunFolder


@dataclass(frozen=True)
class LearningRows:
    """Which entries of a batch learn: those of the `count` rows with the highest TF-IDF; idf float32 `[K]`."""

    idf: NDArray[np.float32]
    count: int

    def __call__(self, rows: Tensor) -> Tensor:
        """rows int64 `[T, M]` -> bool `[T, M]`. Rows with equal TF-IDF rank by their number."""
        copies = transfers(rows.device)
        (rows_here,) = copies.to_host(rows)()
        read, place, accesses = np.unique(rows_here, return_inverse=True, return_counts=True)
        score = accesses / max(1, rows.numel()) * self.idf[read]
        learns = np.zeros(read.size, dtype=bool)
        learns[np.argsort(-score, kind="stable")[: self.count]] = True
        return copies.to_device(learns[place].reshape(rows.shape))


class BatchCount:
    """Counts in how many batches each of `rows` (K) rows is read."""

    def __init__(self, rows: int) -> None:
        self.batches = 0
        self.of_row = np.zeros(rows, dtype=np.uint32)

    def __call__(self, rows: Tensor) -> Tensor:
        self.batches += 1
        self.of_row[np.unique(rows.cpu().numpy())] += 1
        return torch.ones_like(rows, dtype=torch.bool)

    def idf(self) -> NDArray[np.float32]:
        """Inverse document frequency `[K]`, a batch being a document."""
        return np.log((self.batches + 1) / (self.of_row + 1.0)).astype(np.float32)


def freeze_all_but_rows(
    model: nn.Module, memories: dict[int, MemoryLayer], run: RunFolder, count: int
) -> None:
    """Let a model learn nothing but the `count` rows of each batch and memory layer that are most specific to it.

    Raises UsageError if the run has no background.
    """
    model.requires_grad_(False)
    for number, layer in memories.items():
        file = idf_file(run, number)
        if not file.is_file():
            raise UsageError(
                f"{run.path} has no background to tell which rows are specific to its text; train.only_rows is for runs "
                "that `pkm finetune` makes."
            )
        layer.choose_learning = LearningRows(np.load(file, mmap_mode="r", allow_pickle=False), count)


def idf_file(run: RunFolder, layer: int) -> Path:
    """Where a run keeps the inverse document frequencies of a memory layer's rows, float32 `[K]`."""
    return run.background_path / f"layer-{layer}.npy"
