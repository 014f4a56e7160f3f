"""Batches against brute force: every window once an epoch, every token evaluated once, however dealt."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory_store.errors import UsageError
from workers.batches import TrainingBatches, evaluation_batches


def text(size: int) -> NDArray[np.uint16]:
    """Tokens that tell their place: token i is i + 1, so that padding (0) is no token."""
    return np.arange(1, size + 1, dtype=np.uint16)


def whole_step(batches: TrainingBatches, step: int, sequences: int) -> NDArray[np.int64]:
    inputs, targets = batches.batch(step, 0, 1, 0, 1, sequences)
    assert inputs.shape == targets.shape == (sequences, batches.sequence_length)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)
    return inputs


def windows_of_steps(batches: TrainingBatches, steps: range, sequences: int) -> list[int]:
    return [int(row[0]) for step in steps for row in whole_step(batches, step, sequences)]


@given(
    windows=st.integers(1, 40),
    length=st.integers(1, 9),
    rest=st.integers(0, 8),
    sequences=st.integers(1, 40),
    seed=st.integers(0, 2**63),
    epochs=st.integers(1, 3),
)
def test_every_epoch_has_all_windows_once(
    windows: int, length: int, rest: int, sequences: int, seed: int, epochs: int
) -> None:
    sequences = min(sequences, windows)
    batches = TrainingBatches(text(windows * length + 1 + rest % length), length, seed)
    steps = range(-(-epochs * windows // sequences))
    taken = windows_of_steps(batches, steps, sequences)
    for epoch in range(epochs):
        assert sorted(taken[epoch * windows : (epoch + 1) * windows]) == [
            1 + length * window for window in range(windows)
        ]


@given(
    world=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    part=st.integers(1, 3),
    step=st.integers(0, 10**6),
    seed=st.integers(0, 2**32),
)
def test_a_step_is_the_same_however_it_is_dealt_out(
    world: int, accumulation: int, part: int, step: int, seed: int
) -> None:
    sequences = world * accumulation * part
    batches = TrainingBatches(text(50 * 7 + 1), 7, seed)
    whole = whole_step(batches, step, sequences)
    parts = [
        batches.batch(step, rank, world, micro, accumulation, sequences)
        for rank in range(world)
        for micro in range(accumulation)
    ]
    assert all(inputs.shape == (part, 7) for inputs, _ in parts)
    assert np.array_equal(np.concatenate([inputs for inputs, _ in parts]), whole)
    assert np.array_equal(np.concatenate([targets for _, targets in parts]), whole + 1)


def test_a_step_needs_nothing_of_the_steps_before() -> None:
    tokens = text(1000)
    running = TrainingBatches(tokens, 8, seed=3)
    steps = [whole_step(running, step, 12) for step in range(40)]
    for step in (39, 0, 17, 10, 11):
        assert np.array_equal(whole_step(TrainingBatches(tokens, 8, seed=3), step, 12), steps[step])


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {
        (seed, epoch): tuple(
            windows_of_steps(TrainingBatches(text(801), 8, seed), range(epoch, epoch + 1), 100)
        )
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(set(orders.values())) == 25
    # No window prefers a place: over many epochs the mean place of each is near the middle.
    batches = TrainingBatches(text(81), 8, seed=0)
    places = np.array(
        [np.argsort(windows_of_steps(batches, range(epoch, epoch + 1), 10)) for epoch in range(2000)]
    )
    assert np.abs(places.mean(axis=0) - 4.5).max() < 5 * places.std() / np.sqrt(2000)


def test_the_order_stays_what_it_was() -> None:
    """A run that is resumed on a later version must go on with the same text."""
    assert windows_of_steps(TrainingBatches(text(9), 1, seed=7), range(3), 4) == [
        5,
        2,
        7,
        4,
        3,
        8,
        6,
        1,
        4,
        2,
        7,
        3,
    ]


def test_a_text_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(UsageError, match="has 8 tokens, and one sequence needs 8 \\+ 1"):
        TrainingBatches(text(8), 8, seed=0)
    batches = TrainingBatches(text(8 * 3 + 1), 8, seed=0)
    whole_step(batches, 0, 3)
    with pytest.raises(UsageError, match="needs 4 sequences of 8 tokens, and the training text has 3"):
        batches.batch(0, 0, 1, 0, 1, 4)
    with pytest.raises(
        UsageError, match="3 sequences can't be dealt out equally to 2 trainers with 1 micro-batches"
    ):
        batches.batch(0, 0, 2, 0, 1, 3)


def test_long_texts_are_not_read_whole() -> None:
    tokens = np.lib.stride_tricks.as_strided(text(1), (1 << 40,), (0,))  # two terabytes, were they there
    evaluated = next(evaluation_batches(tokens, 16, 4, limit_tokens=1 << 39, rank=3, world=5))
    assert evaluated[0].shape == (4, 16)


@given(
    size=st.integers(2, 60),
    length=st.integers(1, 9),
    sequences=st.integers(1, 5),
    world=st.integers(1, 4),
    limit=st.none() | st.integers(2, 70),
)
def test_every_token_but_the_first_is_evaluated_once(
    size: int, length: int, sequences: int, world: int, limit: int | None
) -> None:
    evaluated: Counter[int] = Counter()
    contexts: dict[int, list[int]] = {}
    padded = []
    for rank in range(world):
        for inputs, targets, mask in evaluation_batches(text(size), length, sequences, limit, rank, world):
            assert inputs.shape == targets.shape == mask.shape
            assert 1 <= inputs.shape[0] <= sequences
            assert inputs.dtype == targets.dtype == np.int64
            assert mask.dtype == np.bool_
            assert not targets[~mask].any()
            for row_inputs, row_targets, row_mask in zip(inputs, targets, mask, strict=True):
                real = int(row_mask.sum())
                assert real > 0  # no window without a token
                assert row_mask[:real].all()  # the padding is at the end
                padded.append(length - real)
                for place in range(real):
                    evaluated[int(row_targets[place])] += 1
                    contexts[int(row_targets[place])] = row_inputs[: place + 1].tolist()
    last = min(size, limit or size)
    assert evaluated == {token: 1 for token in range(2, last + 1)}
    assert sum(map(bool, padded)) <= 1
    for token, context in contexts.items():
        begin = (token - 2) // length * length + 1
        assert context == list(range(begin, token))


def test_what_a_batch_holds_does_not_depend_on_the_number_of_ranks() -> None:
    alone = list(evaluation_batches(text(100), 7, 3))
    dealt = [list(evaluation_batches(text(100), 7, 3, rank=rank, world=2)) for rank in range(2)]
    for number, expected in enumerate(alone):
        for array, other in zip(expected, dealt[number % 2][number // 2], strict=True):
            assert np.array_equal(array, other)


def test_nothing_to_predict_is_refused() -> None:
    for size, limit in ((0, None), (1, None), (50, 1)):
        with pytest.raises(UsageError, match="nothing to predict"):
            next(evaluation_batches(text(size), 8, 2, limit))
