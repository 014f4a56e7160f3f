"""What a value table is: its size, its number type, its seed, and the optimizer that moves its rows.

A table has `K` rows of `D` values (`rows` and `dim` here), and one row optimizer whose state lies beside the
rows on the same shard. The state is float32 (float64 for a float64 table), also when the values are bfloat16.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from memory_store.errors import UsageError

ValueType = Literal["float32", "bfloat16", "float64"]
OptimizerKind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]

ACCESS_BYTES_PER_ROW = 12  # accesses (uint32), weight sum (float32), last touched step (uint32)
ROWS_MAX = 2**32 - 1024 * 1024  # addresses travel as uint32

_SMALLEST_EPS = 1e-30  # smaller ones are lost, or divide by zero, in float32
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class OptimizerSpec:
    """The row optimizer and its constants; the learning rate comes with every step, to follow a schedule.

    `betas` are used by the two Adam kinds, `eps` by all but SGD. See optimizers.py for the formulas. Raises
    UsageError for constants with which a row of zero gradient would become NaN.
    """

    kind: OptimizerKind = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"The betas {self.betas} are not allowed: each must be at least 0 and below 1.")
        if not _SMALLEST_EPS <= self.eps < math.inf:
            raise UsageError(f"eps {self.eps} is not allowed: it must be at least {_SMALLEST_EPS}.")

    def state_widths(self, dim: int) -> tuple[int, int]:
        """Numbers of optimizer state per row, as the widths of two arrays `[rows, width]` (0: no array)."""
        return {
            "sgd": (0, 0),
            "adagrad": (dim, 0),
            "rowwise_adagrad": (1, 0),
            "adam": (dim, dim),
            "rowwise_adam": (dim, 1),
        }[self.kind]


@dataclass(frozen=True)
class TableSpec:
    """One value table of `rows` (K) by `dim` (D), cut by rows over all shards.

    `seed` decides the first values, row by row, whatever the number of shards. They are normal with standard
    deviation `initial_std`, by default `dim ** -0.5` (Lample et al. 2019, as released). Type "float64" exists
    for gradient checks. Raises UsageError for a size or a name that no shard could hold.
    """

    name: str
    rows: int
    dim: int
    dtype: ValueType = "float32"
    seed: int = 0
    initial_std: float | None = None
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"Table name {self.name!r} is not allowed: use 1 to 63 of a-z, 0-9, '-' and '_', "
                "starting with a letter or digit."
            )
        if not 0 < self.rows <= ROWS_MAX:
            raise UsageError(f"Table {self.name!r} can't have {self.rows} rows: 1 to {ROWS_MAX} are allowed.")
        if not 0 < self.dim <= 65536:
            raise UsageError(f"Table {self.name!r} can't have dim {self.dim}: 1 to 65536 are allowed.")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"Table {self.name!r} can't have seed {self.seed}: 0 to 2**64 - 1 are allowed.")

    @property
    def storage_dtype(self) -> np.dtype[np.generic]:
        """NumPy type of the stored values; bfloat16 is kept as its upper 16 bits in uint16."""
        storage: dict[str, DTypeLike] = {"float32": np.float32, "bfloat16": np.uint16, "float64": np.float64}
        return np.dtype(storage[self.dtype])

    @property
    def compute_dtype(self) -> np.dtype[np.generic]:
        """NumPy type of weights, outputs, gradients and optimizer state."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def std(self) -> float:
        return self.dim**-0.5 if self.initial_std is None else self.initial_std

    @property
    def bytes_per_row(self) -> int:
        """Bytes a row takes on its shard: values, optimizer state and access statistics."""
        state = sum(self.optimizer.state_widths(self.dim)) * self.compute_dtype.itemsize
        return self.dim * self.storage_dtype.itemsize + state + ACCESS_BYTES_PER_ROW
