"""A step that is complete and waits for its clipping scale, which depends on the gradients at all shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.messages import Commit
from memory_store.optimizers import Contributions, squared_norm_by_bucket
from memory_store.placement import BUCKETS
from memory_store.table import TablePart


@dataclass(frozen=True, eq=False)
class HeldStep:
    """A complete step whose gradients are grouped by row, and their squared norms, float64 `[tables, 1024]`."""

    step: int
    contributions: list[Contributions | None]
    squared_norms: NDArray[np.float64]


def held_step(
    step: int, settings: Commit, contributions: list[Contributions | None], tables: Mapping[str, TablePart]
) -> HeldStep:
    """Hold a step: what each of `tables` gets in it, in their order."""
    norms = np.zeros((len(tables), BUCKETS))
    for index, (part, gradients) in enumerate(zip(tables.values(), contributions, strict=True)):
        if gradients is not None:
            norms[index] = squared_norm_by_bucket(gradients, part.capacity) * settings.scale**2
    return HeldStep(step, contributions, norms)
