"""What a step of the tables is given, and what it gives: the same for every kind of store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from memory_store.errors import NonFiniteGradientError, UsageError


@dataclass(frozen=True)
class StepResult:
    """A finished step. `gradient_norms` by table, before clipping; empty when nothing was clipped."""

    version: int
    gradient_norms: Mapping[str, float]


def check_step(
    tables: Collection[str], learning_rates: Mapping[str, float], clip_norms: Mapping[str, float]
) -> None:
    """Raises UsageError unless every table, and no other, has a learning rate, and only tables are clipped."""
    if set(learning_rates) != set(tables) or not set(clip_norms) <= set(tables):
        raise UsageError(
            f"Learning rates {dict(learning_rates)} and clipping norms {dict(clip_norms)} came; "
            f"the tables are {', '.join(tables)}, and each needs a learning rate."
        )


def clip_scales(norms: Mapping[str, float], clip_norms: Mapping[str, float], version: int) -> list[float]:
    """By what each table's gradient is multiplied, in the order of `norms`. Raises NonFiniteGradientError."""
    if not np.isfinite(list(norms.values())).all():
        raise NonFiniteGradientError(
            f"The gradient norms of step {version} are {dict(norms)}; no row was touched. "
            "Lower the learning rate, or look for the layer that overflows."
        )
    return [min(1.0, clip_norms.get(name, np.inf) / (norm + 1e-6)) for name, norm in norms.items()]
