"""Memory that is used again: never while somebody looks at it, and no more kept than allowed."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from memory_store.reused_memory import SMALL_BYTES, ReusedMemory

MIB = 1 << 20


def begin_of(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_comes_back_once_its_last_view_is_gone():
    memory = ReusedMemory()
    array = memory.empty((3, MIB), np.float32)
    view, place = array[1:2, 5:], begin_of(array)
    del array
    gc.collect()
    assert begin_of(memory.empty((3, MIB), np.float32)) != place  # the view still looks at it
    view[:] = 7
    del view
    gc.collect()
    held = [memory.empty((3, MIB), np.float32) for _ in range(2)]
    assert place in [begin_of(array) for array in held]


@pytest.mark.parametrize("shape", [(0, 4), (3,), (SMALL_BYTES // 4,), (5, 7, 33_333), (1_250_001, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float64])
def test_an_array_is_what_was_asked_for(shape: tuple[int, ...], dtype: type):
    array = ReusedMemory().empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert begin_of(array) % 16 == 0


def test_arrays_that_live_at_once_never_overlap():
    """Threads take arrays, fill them with their own number and find it there, whatever the others do."""
    memory = ReusedMemory()
    wrong: list[int] = []

    def fill(number: int) -> None:
        chance = np.random.default_rng(number)
        held = []
        for _ in range(60):
            array = memory.empty((int(chance.integers(1, 4)) * MIB,), np.uint8)
            array[::4096] = number
            held = [*held[-2:], array]
            wrong.extend(number for other in held if (other[::4096] != number).any())

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_more_is_kept_than_allowed():
    memory = ReusedMemory(kept_bytes_max=4 * MIB)
    held = [memory.empty((2 * MIB,), np.uint8) for _ in range(5)]
    places = {begin_of(array) for array in held}
    held.clear()
    gc.collect()
    assert sum(block.size for block in memory._free) == 4 * MIB
    again = [memory.empty((2 * MIB,), np.uint8) for _ in range(2)]
    assert {begin_of(array) for array in again} <= places


def test_a_block_above_what_may_be_kept_pushes_no_other_out():
    memory = ReusedMemory(kept_bytes_max=4 * MIB)
    small, large = memory.empty((2 * MIB,), np.uint8), memory.empty((5 * MIB,), np.uint8)
    place = begin_of(small)
    del small
    gc.collect()
    del large
    gc.collect()
    assert [block.size for block in memory._free] == [2 * MIB]
    assert begin_of(memory.empty((2 * MIB,), np.uint8)) == place


@pytest.mark.parametrize(("per_octave", "expected"), [(1, 4 * MIB), (4, 2 * MIB + MIB // 2)])
def test_blocks_have_as_many_sizes_as_allowed(per_octave: int, expected: int):
    asked: list[int] = []

    def allocate(size: int) -> np.ndarray:
        asked.append(size)
        return np.empty(size, np.uint8)

    ReusedMemory(allocate=allocate, sizes_per_octave=per_octave).empty((2 * MIB + 5,), np.uint8)
    assert asked == [expected]
