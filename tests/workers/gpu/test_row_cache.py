"""The bookkeeping of the rows on the device, against sets and dictionaries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workers.gpu import row_cache
from workers.gpu.row_cache import NO_SLOT, RowCache


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


def test_the_slots_go_to_what_was_looked_up_most() -> None:
    cache = RowCache(2, 10)
    for addresses in ([1, 5, 7], [1, 5], [1, 5], [7]):
        cache.find(rows(*addresses))
    cache.begin_choice()()
    assert cache.stale().tolist() == [1, 5]
    cache.filled(cache.slots(cache.stale()))
    assert cache.find(rows(1, 5, 7)).missing.tolist() == [2]
    cache.touched(rows(5, 7))
    assert cache.find(rows(1, 5, 7)).missing.tolist() == [1, 2]
    assert (cache.found, cache.looked_up) == (3, 14)


def test_rows_that_were_hot_long_ago_give_way() -> None:
    cache = RowCache(1, 10)
    for _ in range(100):
        cache.find(rows(3))
    for _ in range(8):
        cache.find(rows(4))
        cache.begin_choice()()
    assert cache.stale().tolist() == [4]


@pytest.mark.parametrize("capacity", [1, 3, 8, 100])
def test_random_histories_are_those_of_a_dictionary(capacity: int) -> None:
    random = np.random.default_rng(capacity)
    cache = RowCache(capacity, 30)
    counts: Counter[int] = Counter()
    fresh: set[int] = set()
    for _ in range(200):
        asked = np.unique(random.integers(0, 30, random.integers(0, 12)).astype(np.uint32))
        found = cache.find(asked)
        assert set(asked[found.missing].tolist()) == set(asked.tolist()) - fresh
        expected = cache.slots(asked)
        expected[found.missing] = NO_SLOT
        assert found.slots.tolist() == expected.tolist()
        counts.update(asked.tolist())
        if random.random() < 0.2:
            cache.begin_choice()()
            held = {row for row in range(30) if cache.slots(rows(row))[0] != NO_SLOT}
            known = sorted(counts.values(), reverse=True)
            assert sorted((counts[row] for row in held), reverse=True) == known[:capacity]
            counts = Counter({row: count // 2 for row, count in counts.items() if count > 1})
            fresh &= held
        changed = random.integers(0, 30, 3).astype(np.uint32)
        cache.touched(changed)
        fresh -= set(changed.tolist())
        if random.random() < 0.5:
            stale = cache.stale()
            assert not fresh & set(stale.tolist())
            used = cache.slots(stale)
            assert len(set(used.tolist())) == stale.size
            cache.filled(used)
            fresh |= set(stale.tolist())
        if random.random() < 0.05:
            cache.all_touched()
            fresh.clear()


def test_a_choice_is_of_what_was_looked_up_before_it_began() -> None:
    cache = RowCache(1, 10)
    cache.find(rows(3))
    choose = cache.begin_choice()
    for _ in range(5):
        cache.find(rows(4))
    assert not cache.stale().size  # nobody has a slot until it is waited for
    choose()
    assert cache.stale().tolist() == [3]
    cache.begin_choice()()
    assert cache.stale().tolist() == [4]


def test_a_lookup_that_could_not_be_counted_is_said_by_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RowCache(4, 10)
    cache.find(rows(1, 2))
    cache.begin_choice()()

    def fail(*parts: object) -> int:
        raise MemoryError("no room to count")

    monkeypatch.setattr(row_cache, "_count", fail)
    cache.find(rows(3))
    with pytest.raises(MemoryError, match="no room to count"):
        cache.begin_choice()()
