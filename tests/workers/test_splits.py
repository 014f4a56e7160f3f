"""Splits against a plain walk over the documents from the end."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memory_store.errors import UsageError
from workers.splits import SPLITS, split_documents, split_ranges

# Multiples of 1/64 times whole characters are exact, so the plain walk has no rounding of its own.
shares = st.integers(0, 31).map(lambda share: share / 64)


def plain_counts(lengths: list[int], validation_share: float, test_share: float) -> list[int]:
    """Documents of (train, validation, test): from the end, take until the share is held."""
    left = list(lengths)

    def take(share: float, leave: int) -> int:
        taken = [left.pop()]
        while sum(taken) < share * sum(lengths) and len(left) > leave:
            taken.append(left.pop())
        return len(taken)

    test = take(test_share, 2)
    validation = take(validation_share, 1)
    return [len(left), validation, test]


@given(st.lists(st.integers(1, 64), min_size=3, max_size=40), shares, shares)
@example([16, 16, 16, 16], 0.25, 0.25)
def test_whole_documents_are_held_out_from_the_end(
    lengths: list[int], validation: float, test: float
) -> None:
    split_by, ranges = split_ranges(lengths, validation, test)
    assert split_by == "documents"
    texts = [chr(97 + number % 26) * length for number, length in enumerate(lengths)]
    parts = list(split_documents(texts, ranges))
    assert [text for _, text in parts] == texts
    names = [split for split, _ in parts]
    assert [names.count(split) for split in SPLITS] == plain_counts(lengths, validation, test)
    assert names == sorted(names, key=SPLITS.index)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=2), shares, shares)
def test_fewer_than_three_documents_are_cut_by_position(
    lengths: list[int], validation: float, test: float
) -> None:
    split_by, ranges = split_ranges(lengths, validation, test)
    total = sum(lengths)
    assert split_by == "position"
    texts = [
        "".join(chr(256 + end - length + place) for place in range(length))
        for length, end in zip(lengths, accumulate(lengths), strict=True)
    ]
    parts = list(split_documents(texts, ranges))
    assert "".join(text for _, text in parts) == "".join(texts)
    if total >= 3:
        held = {split: sum(len(text) for name, text in parts if name == split) for split in SPLITS}
        assert abs(held["test"] - test * total) <= 1
        assert abs(held["validation"] - validation * total) <= 2
        assert held["test"] > 0
        assert held["validation"] > 0


def test_files_that_change_meanwhile_are_noticed() -> None:
    _, ranges = split_ranges([5, 5, 5], 0.1, 0.1)
    for texts in (["aaaaa", "bbbbb", "cccc"], ["aaaaa", "bbbbb", "ccccc", "d"]):
        with pytest.raises(UsageError, match="changed while they were being read"):
            list(split_documents(texts, ranges))
