"""The limit of a row update: the same cache lines in the same order, asked for ahead, read and written, and nothing computed.

Rows and their state lie at random in memory, gradients at random in the caches. What reading and writing them one line
after the other takes, no optimizer can save.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.kernels import PARTS
from memory_store.optimizers import Contributions, RowState
from memory_store.row_code import AHEAD, LINE_BYTES, prefetch

Lines = NDArray[np.uint32]
_LINE = LINE_BYTES // 4


def touching(rows: RowState, contributions: Contributions) -> Callable[[], None]:
    """What touches the lines that an update of `rows` would; nothing but `last_step` is another after it."""
    arrays = [_lines(array) for array in (rows.values, rows.first_state, rows.second_state)]
    return partial(
        _touch,
        *(part for array in arrays for part in array),
        rows.last_step,
        contributions.addresses,
        contributions.starts,
        contributions.vector_numbers,
        *_lines(contributions.vectors),
        np.zeros(PARTS, dtype=np.uint32),
    )


def _lines(rows: NDArray[Any]) -> tuple[Lines, int]:
    """Rows `[R, D]` by cache lines `[R * lines, numbers of a line]`, and how many lines a row has; one for narrow rows."""
    words = rows.view(np.uint32) if rows.shape[1] else np.empty((0, 1), dtype=np.uint32)
    width = min(_LINE, words.shape[1])
    return words.reshape(-1, width), words.shape[1] // width if rows.shape[1] else 0


@compiled(parallel=True)
def _touch(
    values: Lines,
    of_values: int,
    first_state: Lines,
    of_first: int,
    second_state: Lines,
    of_second: int,
    last_step: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    starts: NDArray[np.int32],
    vector_numbers: NDArray[np.int32],
    vectors: Lines,
    of_vectors: int,
    nothing: NDArray[np.uint32],
) -> None:
    last = rows.size - 1
    for part in prange(PARTS):
        read = nothing[part]
        for group in range(rows.size * part // PARTS, rows.size * (part + 1) // PARTS):
            following = min(group + AHEAD, last)
            row, later = np.int64(rows[group]), np.int64(rows[following])
            vector = np.int64(vector_numbers[starts[following]])
            prefetch(last_step, later)
            for line in range(of_values):
                prefetch(values, later * of_values + line)
                values[row * of_values + line, 0] ^= nothing[part]
            for line in range(of_first):
                prefetch(first_state, later * of_first + line)
                first_state[row * of_first + line, 0] ^= nothing[part]
            for line in range(of_second):
                prefetch(second_state, later * of_second + line)
                second_state[row * of_second + line, 0] ^= nothing[part]
            for line in range(of_vectors):
                prefetch(vectors, vector * of_vectors + line)
            for entry in range(starts[group], starts[group + 1]):
                for line in range(of_vectors):
                    read |= vectors[np.int64(vector_numbers[entry]) * of_vectors + line, 0]
            last_step[row] = read
