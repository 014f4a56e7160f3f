"""The first values: the published generator, the right distribution, and no trace of the sharding."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from memory_store.initialization import fill_normal, normal_pair, philox
from memory_store.placement import Placement, addresses_of
from memory_store.shard import ShardCore
from memory_store.table_spec import TableSpec, ValueType

# From the file of known answers that the authors of Philox publish (Random123, kat_vectors, philox4x32-10).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
):
    assert tuple(map(int, philox(*map(np.uint32, counter + key)))) == answer


def test_pairs_are_those_of_the_box_muller_transform():
    chance, last = np.random.default_rng(0), 2**32 - 1
    edges = [0, 1, 2**29 - 1, 2**29, 2**30, 3 * 2**29, 2**31 - 1, 2**31, 3 * 2**30, 7 * 2**29, last - 1, last]
    for a, b in [*product(edges, edges), *chance.integers(2**32, size=(2000, 2)).tolist()]:
        radius, angle = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * b / 2**32
        found = normal_pair(np.uint32(a), np.uint32(b))
        assert found == pytest.approx((radius * math.cos(angle), radius * math.sin(angle)), rel=0, abs=1e-12)


def filled(rows: int, dim: int, seed: int = 0, std: float = 1.0) -> np.ndarray:
    values = np.empty((rows, dim), dtype=np.float64)
    fill_normal(values, np.arange(rows), seed, std)
    return values


def test_values_are_normal():
    numbers = filled(50_000, 8).reshape(-1)
    error = numbers.size**-0.5  # standard error of a mean of unit variance
    assert abs(numbers.mean()) < 5 * error
    assert abs(numbers.std() - 1) < 5 * error
    assert abs((numbers**3).mean()) < 5 * error * 15**0.5
    assert abs((numbers**4).mean() - 3) < 5 * error * 96**0.5
    for bound, share in [(0.5, 0.382925), (1, 0.682689), (2, 0.954500), (3, 0.997300)]:
        assert abs((abs(numbers) < bound).mean() - share) < 5 * error


@pytest.mark.parametrize("axis", ["columns", "rows", "seeds"])
def test_neighbours_are_independent(axis: str):
    values = filled(20_000, 8)
    other = {"columns": values[:, 1:], "rows": values[1:], "seeds": filled(20_000, 8, seed=1)}[axis]
    one = {"columns": values[:, :-1], "rows": values[:-1], "seeds": values}[axis]
    assert abs((one * other).mean()) < 5 * one.size**-0.5
    assert abs((one**2 * other**2).mean() - 1) < 5 * (8 / one.size) ** 0.5


def test_a_row_depends_on_its_seed_and_number_only():
    some = np.array([7, 3, 2**33 + 7, 7])
    values = np.empty((4, 5))
    fill_normal(values, some, 11, 2.0)
    np.testing.assert_array_equal(values[:2], 2 * filled(8, 5, seed=11)[[7, 3]])
    np.testing.assert_array_equal(values[0], values[3])
    assert (values[0] != values[2]).all()
    assert (values[0] != 2 * filled(8, 5, seed=11 + 2**32)[7]).all()


def test_seeds_differ_everywhere():
    one, other = filled(100, 8, seed=1), filled(100, 8, seed=2)
    assert (one != other).all()


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_the_first_columns_do_not_depend_on_the_width(dim: int):
    np.testing.assert_array_equal(filled(10, dim), filled(10, 8)[:, :dim])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("shards", [2, 3, 8])
def test_the_table_does_not_depend_on_its_sharding(dtype: ValueType, shards: int):
    spec = TableSpec("memory", rows=2500, dim=6, dtype=dtype, seed=5)

    def table(count: int) -> np.ndarray:
        placement = Placement.even(count)
        cores = [ShardCore([spec], placement, shard) for shard in range(count)]
        by_address = np.concatenate([core.tables["memory"].values for core in cores])
        return by_address[addresses_of(np.arange(spec.rows), spec.rows)]

    whole = table(1)
    assert np.unique(whole).size > 1000
    assert table(shards).tobytes() == whole.tobytes()


def test_the_default_spread_is_one_over_the_square_root_of_the_width():
    spec = TableSpec("memory", rows=4096, dim=64)
    values = ShardCore([spec], Placement.even(1), 0).tables["memory"].values
    assert values.std() == pytest.approx(1 / 8, rel=0.01)
    assert values.mean() == pytest.approx(0, abs=0.001)
