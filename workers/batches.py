"""Which tokens a step reads: a pure function of the seed and the step, without any state.

The text is cut into windows of L + 1 tokens every L tokens, so every token after the first is predicted by
exactly one window. Each epoch takes all windows once, in an order of its own; the epochs form one endless
row, of which step s takes the s-th run of `sequences` windows. A run may straddle two epochs. How the run is
dealt out to trainers and micro-batches changes nothing about what it holds: to resume in the middle of an
epoch, or with another number of trainers, the step is all one needs to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import UsageError

Tokens = NDArray[np.integer[Any]]
Batch = NDArray[np.int64]


class TrainingBatches:
    """The training batches of a text of `tokens` [T]. Raises UsageError if it is shorter than a sequence."""

    def __init__(self, tokens: Tokens, sequence_length: int, seed: int) -> None:
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.seed = seed
        self.windows = (tokens.size - 1) // sequence_length
        """Windows in an epoch; what is left at the end of the text, less than a sequence, is not used."""
        if self.windows < 1:
            raise UsageError(
                f"The training text has {tokens.size} tokens, and one sequence needs {sequence_length} + 1; "
                "give more text or a smaller data.sequence_length."
            )

    def batch(
        self, step: int, rank: int, world: int, micro: int, accumulation: int, sequences: int
    ) -> tuple[Batch, Batch]:
        """Inputs and targets, each [sequences / (world * accumulation), L], of one trainer's micro-batch.

        Steps, ranks and micro-batches count from 0; `sequences` is the size of the whole step. The parts in
        order of (rank, micro) are the whole step in order. Raises UsageError if the text has fewer windows
        than a step, or the parts are not equal.
        """
        if sequences > self.windows:
            raise UsageError(
                f"A step needs {sequences} sequences of {self.sequence_length} tokens, and the training text "
                f"has {self.windows}; give more text or a smaller train.batch_tokens."
            )
        part, rest = divmod(sequences, world * accumulation)
        if rest:
            raise UsageError(
                f"A step of {sequences} sequences can't be dealt out equally to {world} trainers with "
                f"{accumulation} micro-batches each; change train.batch_tokens."
            )
        first = step * sequences + (rank * accumulation + micro) * part
        windows = [self._window(position) for position in range(first, first + part)]
        return _cut(self.tokens, np.array(windows), self.sequence_length)

    def _window(self, position: int) -> int:
        """The window at a position of the endless row of epochs."""
        epoch, place = divmod(position, self.windows)
        return int(_epoch_order(self.seed, epoch, self.windows)[place])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, windows: int) -> NDArray[np.intp]:
    """The permutation of an epoch: the order of a random number per window, keyed by (seed, epoch).

    NumPy promises that Philox's raw numbers stay the same for ever, which it does not for `permutation`.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(windows), kind="stable")


def evaluation_batches(
    tokens: Tokens,
    sequence_length: int,
    sequences: int,
    limit_tokens: int | None = None,
    rank: int = 0,
    world: int = 1,
    in_lockstep: bool = False,
) -> Iterator[tuple[Batch, Batch, NDArray[np.bool_]]]:
    """Yield (inputs, targets, mask), each [B, L] with B <= `sequences`, in order of the text.

    Over all ranks each of the first `limit_tokens` tokens but the very first, which nothing comes before, is
    a target with mask True exactly once. The mask is False only where the last window is padded, with zeros.
    Rank r takes every `world`-th batch from the r-th on: what a batch holds does not depend on `world`, and a
    rank may get none. With `in_lockstep` all ranks get equally many: one with nothing left gets padding alone. Raises
    UsageError if there is nothing to predict.
    """
    tokens = tokens[:limit_tokens]
    if tokens.size < 2:
        raise UsageError(f"A text of {tokens.size} tokens has nothing to predict; give at least 2.")
    windows = -(-(tokens.size - 1) // sequence_length)
    rounds = range(0, windows, world * sequences)
    for first in (begin + rank * sequences for begin in rounds):
        if first >= windows and not in_lockstep:
            return
        batch = np.arange(first, max(first + 1, min(first + sequences, windows)))
        inputs, targets = _cut(tokens, batch, sequence_length)
        yield inputs, targets, _positions(batch, sequence_length)[:, 1:] < tokens.size


def _cut(tokens: Tokens, windows: NDArray[np.intp], sequence_length: int) -> tuple[Batch, Batch]:
    """Inputs and targets [B, L] of windows [B]; beyond the end of the text both are 0."""
    positions = _positions(windows, sequence_length)
    cut = np.where(positions < tokens.size, tokens[np.minimum(positions, tokens.size - 1)], 0).astype(
        np.int64
    )
    return np.ascontiguousarray(cut[:, :-1]), np.ascontiguousarray(cut[:, 1:])


def _positions(windows: NDArray[np.intp], sequence_length: int) -> NDArray[np.intp]:
    """Positions in the text [B, L + 1] of the tokens of windows [B]."""
    return windows[:, None] * sequence_length + np.arange(sequence_length + 1)
