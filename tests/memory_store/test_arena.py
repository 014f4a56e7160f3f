"""The arena: arrays that don't overlap, zeros at first, and a refusal when it is full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.arena import Arena, padded
from memory_store.placement import Placement
from memory_store.table import TablePart, part_bytes
from memory_store.table_spec import OptimizerSpec, TableSpec

shapes = st.lists(
    st.tuples(st.tuples(st.integers(0, 50), st.integers(0, 50)), st.sampled_from([np.uint16, np.float64])),
    max_size=8,
)


@given(shapes)
def test_arrays_do_not_overlap(wanted: list[tuple[tuple[int, int], type]]):
    arena = Arena(sum(padded(int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in wanted))
    arrays = [arena.allocate(shape, kind) for shape, kind in wanted]
    for number, array in enumerate(arrays):
        assert not array.any()
        array.fill(number + 1)
    for number, (array, (shape, kind)) in enumerate(zip(arrays, wanted, strict=True)):
        assert (array.shape, array.dtype) == (shape, kind)
        assert (array == number + 1).all()
        assert array.ctypes.data % 4096 == 0


def test_a_full_arena_refuses():
    arena = Arena(8192)
    arena.allocate((1024,), np.float32)
    arena.allocate((1024,), np.float32)
    with pytest.raises(MemoryError, match="8192"):
        arena.allocate((1,), np.float32)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_bytes_of_a_part_are_known_before_it_is_made(kind: str, dtype: str):
    spec = TableSpec("memory", rows=3000, dim=7, dtype=dtype, optimizer=OptimizerSpec(kind))  # type: ignore[arg-type]
    placement = Placement.even(3)
    sizes = part_bytes(spec, placement, 1)
    values_arena, state_arena = Arena(sizes.values), Arena(sizes.state)
    part = TablePart(spec, placement, 1, values_arena, state_arena)
    assert values_arena.used == values_arena.capacity
    assert state_arena.used == state_arena.capacity
    arrays = [
        part.values,
        part.first_state,
        part.second_state,
        part.last_step,
        part.accesses,
        part.weight_sums,
    ]
    assert sum(array.nbytes for array in arrays) == part.address_count * spec.bytes_per_row
