"""bfloat16: bit patterns as PyTorch has them, and rounding that is unbiased and repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store.grouping import group_by_address
from memory_store.optimizers import Contributions, RowState, update_rows
from memory_store.table_spec import OptimizerSpec
from memory_store.value_types import from_bfloat16, mix

ROWS, DIM = 4000, 16


def test_all_bit_patterns_widen_as_in_torch():
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    assert (
        from_bfloat16(bits).tobytes() == torch.from_numpy(bits).view(torch.bfloat16).float().numpy().tobytes()
    )


def test_mixing_is_one_to_one_and_flips_half_the_bits():
    numbers = np.arange(1 << 16, dtype=np.uint32)
    mixed = np.array([mix(number) for number in numbers], dtype=np.uint32)
    assert np.unique(mixed).size == numbers.size
    flipped = np.bitwise_count(mixed[:-1] ^ mixed[1:])
    assert abs(flipped.mean() - 16) < 0.1


def moved(
    start: float,
    gradient: float,
    *,
    first_address: int = 0,
    addresses: np.ndarray | None = None,
    step: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Bit patterns of bfloat16 rows at `start` after one SGD step of rate 1 with the same gradient everywhere."""
    addresses = np.arange(ROWS) + first_address if addresses is None else addresses
    bits = torch.full((ROWS, DIM), start).to(torch.bfloat16).view(torch.uint16).numpy().copy()
    empty = np.empty((ROWS, 0), dtype=np.float32)
    contributions = Contributions.grouped(
        group_by_address(addresses.astype(np.uint32)),
        np.arange(addresses.size, dtype=np.int32),
        np.ones(addresses.size, dtype=np.float32),
        np.full((addresses.size, DIM), gradient, dtype=np.float32),
    )
    state = RowState(bits, empty, empty, np.zeros(ROWS, dtype=np.uint32))
    update_rows(
        OptimizerSpec("sgd"),
        state,
        first_address,
        contributions,
        step=step,
        learning_rate=1.0,
        scale=1.0,
        seed=seed,
    )
    return bits


@given(
    start=st.sampled_from([1.0, -1.0, 0.0078125, -3.140625, 2.0**100]),
    share=st.floats(-3, 3).filter(lambda share: abs(share) > 0.01),
)
def test_stochastic_rounding_hits_a_neighbour_and_is_exact_in_the_mean(start: float, share: float):
    gap = 2.0 ** (np.floor(np.log2(abs(start))) - 7)  # between neighbouring bfloat16 numbers of this size
    target = float(np.float32(start) - np.float32(share * gap))
    numbers = from_bfloat16(moved(start, float(np.float32(share * gap)))).astype(np.float64)
    assert (abs(numbers - target) < gap).all()
    assert np.unique(numbers).size <= 2
    assert abs(numbers.mean() - target) < 5 * gap / 2 / np.sqrt(numbers.size) + 1e-7 * abs(start)


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 65])
def test_each_column_is_rounded_with_its_own_sixteen_bits_of_a_word(dim: int):
    """Spelled out a second time: the word of a column and of its fellow, half a row further."""
    step, seed, half = 3, 5, (dim + 1) // 2
    rows = 200
    scratch = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    bits = torch.ones(rows, dim).to(torch.bfloat16).view(torch.uint16).numpy().copy()
    contributions = Contributions.grouped(
        group_by_address(np.arange(rows, dtype=np.uint32)),
        np.arange(rows, dtype=np.int32),
        np.ones(rows, dtype=np.float32),
        1 - scratch,
    )
    empty = np.empty((rows, 0), dtype=np.float32)
    state = RowState(bits, empty, empty, np.zeros(rows, dtype=np.uint32))
    update_rows(
        OptimizerSpec("sgd"), state, 0, contributions, step=step, learning_rate=1.0, scale=1.0, seed=seed
    )
    exact = (np.float32(1) - (1 - scratch)).view(np.uint32)
    for row in range(rows):
        key = mix(np.uint32(row) ^ mix(np.uint32(seed + step)))
        for column in range(dim):
            word = int(mix(np.uint32((int(key) + column % half) % 2**32)))
            noise = word & 0xFFFF if column < half else word >> 16
            assert bits[row, column] == (int(exact[row, column]) + noise) % 2**32 >> 16, (row, column)


def test_a_number_that_fits_is_not_rounded():
    assert (from_bfloat16(moved(1.0, 0.25)) == 0.75).all()


def test_small_steps_are_not_lost():
    """Rounded to the nearest, 100 steps of a hundredth of a gap would leave 1 where it was."""
    bits = moved(1.0, 0.0)
    numbers = from_bfloat16(bits)
    for step in range(1, 101):
        drift = moved(1.0, 2.0**-7 / 100, step=step)
        numbers = numbers + (from_bfloat16(drift) - 1)
    # The neighbour below 1 is half a gap away.
    assert abs(numbers.mean() - (1 - 2.0**-7)) < 2.0**-7 * 0.05


def test_rounding_repeats_and_depends_on_step_seed_row_and_column():
    noisy = moved(1.0, 0.001)
    assert noisy.tobytes() == moved(1.0, 0.001).tobytes()
    assert noisy.tobytes() != moved(1.0, 0.001, step=2).tobytes()
    assert noisy.tobytes() != moved(1.0, 0.001, seed=1).tobytes()
    assert np.unique(noisy, axis=0).shape[0] > ROWS // 2
    assert np.unique(noisy, axis=1).shape[1] == DIM


@pytest.mark.parametrize("first", [1, 1024, 3000])
def test_rounding_does_not_depend_on_which_shard_holds_the_row(first: int):
    elsewhere = moved(1.0, 0.001, first_address=first)
    np.testing.assert_array_equal(elsewhere[: ROWS - first], moved(1.0, 0.001)[first:])


def test_rounding_does_not_depend_on_the_other_rows_of_the_step():
    some = np.array([5, 17, 1700])
    alone = moved(1.0, 0.001, addresses=some)
    np.testing.assert_array_equal(alone[some], moved(1.0, 0.001)[some])
    untouched = np.delete(alone, some, axis=0)
    assert (from_bfloat16(untouched) == 1).all()
