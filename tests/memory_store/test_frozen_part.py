"""A part frozen at a version is read as it was then, whatever steps come between."""

from __future__ import annotations

import threading
from random import Random

import numpy as np
import pytest

from memory_store.errors import CutError
from memory_store.frozen_part import FrozenPart
from memory_store.grouping import group_by_address
from memory_store.optimizers import Contributions
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.table import TablePart
from memory_store.table_spec import OptimizerSpec, TableSpec, ValueType


def part_of(dtype: ValueType) -> TablePart:
    spec = TableSpec("memory", 2600, 4, dtype, optimizer=OptimizerSpec("adam"))
    return ShardCore([spec], Placement.even(2), 1).tables["memory"]


def update(part: TablePart, step: int, rows: int, chance: Random) -> None:
    existing = [
        part.first_address + place
        for bucket in part.buckets
        for place in range(part.bucket_slice(bucket).start, part.bucket_slice(bucket).stop)
    ]
    addresses = np.array(sorted(chance.sample(existing, rows)), np.uint32)
    weights = np.ones(rows, part.spec.compute_dtype)
    vectors = np.full((rows, part.spec.dim), chance.uniform(-1, 1), part.spec.compute_dtype)
    groups = group_by_address(addresses)
    part.update(
        Contributions.grouped(groups, np.arange(rows, dtype=np.int32), weights, vectors),
        step=step,
        learning_rate=0.1,
        scale=1.0,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("since", [None, 0, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_read_as_it_was(dtype: ValueType, since: int | None, seed: int) -> None:
    part, chance = part_of(dtype), Random(seed)
    for step in range(1, 5):
        update(part, step, 300, chance)
    before = [array.copy() for _, array in part.columns()]
    frozen = FrozenPart(part, 4, threading.Lock(), since=since)
    step = 4
    for bucket in part.buckets:
        if chance.random() < 0.02:
            step += 1
            update(part, step, chance.choice([1, 40, 1000]), chance)
        where = part.bucket_slice(bucket)
        last_step = before[-1][where]
        expected = (
            np.arange(last_step.size) if since is None else np.flatnonzero(last_step.astype(int) > since)
        )
        positions, columns = frozen.read(bucket)
        assert positions.tolist() == expected.tolist()
        for found, array in zip(columns, before, strict=True):
            assert found.tobytes() == array[where][expected].tobytes()
    assert step > 6
    frozen.end()
    assert part.before_update is None


def test_what_was_given_up_is_not_read_any_more() -> None:
    part = part_of("float32")
    older = FrozenPart(part, 0, threading.Lock())
    older.end()
    newer = FrozenPart(part, 0, threading.Lock())
    older.end()
    assert part.before_update is not None
    newer.read(part.buckets[0])
    with pytest.raises(CutError, match="given up"):
        older.read(part.buckets[0])
