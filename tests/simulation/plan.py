"""What every writer does in every step, as a function of the seed; and what must come of it, from a plain table.

Weights and gradients are small integers, rates and scales powers of two: float32 sums are exact in any order, so that
what the shards answer must equal the plain table to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store.grouping import group_by_address
from memory_store.optimizers import Contributions
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.steps import token_of_entry
from memory_store.table_spec import OptimizerSpec, TableSpec

ROWS, DIM = 1024, 2
TOKENS, PER_TOKEN = 3, 4
RATE = 0.5


@dataclass(frozen=True)
class WriterPlan:
    """One writer's part of one step: rows uint32 `[T*M]`, their weights `[T*M]`, the output's gradient `[T, D]`."""

    rows: NDArray[np.uint32]
    weights: NDArray[np.float32]
    gradient: NDArray[np.float32]
    kind: str  # how the gradient travels: pool, rows, entries

    @property
    def offsets(self) -> NDArray[np.int32]:
        return np.arange(TOKENS + 1, dtype=np.int32) * np.int32(PER_TOKEN)


class Plan:
    """All steps of a run."""

    def __init__(self, seed: int, steps: int, writers: int, optimizer: str) -> None:
        random = np.random.default_rng(seed)
        self.steps, self.writers = steps, writers
        self.spec = TableSpec(
            "memory",
            ROWS,
            DIM,
            initial_std=0.0,
            optimizer=OptimizerSpec("adam" if optimizer == "adam" else "sgd"),
        )
        hot = random.choice(ROWS, 40, replace=False).astype(np.uint32)  # so that rows meet again
        self.parts = [
            [
                WriterPlan(
                    random.choice(hot, TOKENS * PER_TOKEN),
                    random.integers(1, 4, TOKENS * PER_TOKEN).astype(np.float32),
                    random.integers(-3, 4, (TOKENS, DIM)).astype(np.float32),
                    str(random.choice(["pool", "rows", "entries"])),
                )
                for _ in range(writers)
            ]
            for _ in range(steps)
        ]
        self.held = [bool(random.random() < 0.3) for _ in range(steps)]
        self.discarded = [not held and bool(random.random() < 0.15) for held in self.held]
        self.tables = self._tables() if optimizer == "sgd" else None

    def scale(self, step: int) -> float:
        """What the summed gradient of a step is multiplied with: the mean over writers, clipped or not."""
        return (0.5 if self.held[step] else 1.0) / self.writers

    def _tables(self) -> list[NDArray[np.float64]]:
        """The table at every version, `[K, D]`, by plain addition."""
        tables = [np.zeros((ROWS, DIM))]
        for step, parts in enumerate(self.parts):
            table = tables[-1].copy()
            for part in parts if not self.discarded[step] else ():
                for entry, row in enumerate(part.rows):
                    table[row] -= (
                        RATE * self.scale(step) * part.weights[entry] * part.gradient[entry // PER_TOKEN]
                    )
            tables.append(table)
        return tables

    def undisturbed(self, placement: Placement, shard: int) -> list[bytes]:
        """Everything that a shard holds after all steps, applied one after the other to a new shard."""
        core = ShardCore([self.spec], placement, shard)
        part = core.tables["memory"]
        low, high = part.first_address, part.first_address + part.address_count
        for step, writers in enumerate(self.parts):
            rows = np.concatenate([each.rows for each in writers])
            mine = (rows >= low) & (rows < high)
            if mine.any() and not self.discarded[step]:
                vectors = np.concatenate([each.gradient for each in writers])
                tokens = token_of_entry(
                    np.arange(TOKENS * len(writers) + 1, dtype=np.int32) * np.int32(PER_TOKEN)
                )
                weights = np.concatenate([each.weights for each in writers])
                grouped = Contributions.grouped(
                    group_by_address(rows[mine]), tokens[mine], weights[mine], vectors
                )
                part.update(grouped, step=step + 1, learning_rate=RATE, scale=self.scale(step))
        return content(arrays_of(core))


def arrays_of(core: ShardCore) -> list[NDArray[Any]]:
    """All that a shard's rows consist of: values, optimizer state, last steps."""
    part = core.tables["memory"]
    return [part.values, part.first_state, part.second_state, part.last_step]


def content(arrays: list[NDArray[Any]]) -> list[bytes]:
    """The bytes of `arrays_of`, a zero without its sign, which depends on the order of a sum."""
    return [(array + 0).tobytes() for array in arrays]
