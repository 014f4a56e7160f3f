"""Which part of the text is learned from and which is held out: train, validation and test, in this order.

The last documents are held out, whole: test is the shortest run of documents at the end that has its share of
the characters, validation likewise before it, and every split has at least one document. Fewer than three
documents are cut by position instead. A split is a range of characters, counted through all documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from memory_store.errors import UsageError

HELD_OUT = ("validation", "test")
SPLITS = ("train", *HELD_OUT)
SplitBy = Literal["documents", "position"]


def split_ranges(
    lengths: Sequence[int], validation_share: float, test_share: float
) -> tuple[SplitBy, dict[str, range]]:
    """The range of each split, given the characters of every document in order, and what it was cut by."""
    total = sum(lengths)
    if len(lengths) < 3:
        test = min(int(total * (1 - test_share)), total - 1)
        validation = min(int(test - total * validation_share), test - 1)
        return "position", _ranges(validation, test, total)
    begins = np.cumsum(lengths) - lengths

    def last_begin(until: float, first: int, last: int) -> int:
        """The last document, of those from `first` to `last`, that begins at character `until` or before."""
        return int(np.clip(np.searchsorted(begins, until, side="right") - 1, first, last))

    test = last_begin(total * (1 - test_share), 2, len(lengths) - 1)
    validation = last_begin(begins[test] - total * validation_share, 1, test - 1)
    return "documents", _ranges(int(begins[validation]), int(begins[test]), total)


def _ranges(validation: int, test: int, total: int) -> dict[str, range]:
    return dict(zip(SPLITS, (range(validation), range(validation, test), range(test, total)), strict=True))


def split_documents(documents: Iterable[str], ranges: Mapping[str, range]) -> Iterator[tuple[str, str]]:
    """Yield each document with the name of its split; one that the end of a split cuts, part by part.

    Raises UsageError if the documents have more or fewer characters than the ranges were made for.
    """
    begin = 0
    for text in documents:
        for split, characters in ranges.items():
            part = text[max(characters.start - begin, 0) : max(characters.stop - begin, 0)]
            if part:
                yield split, part
        begin += len(text)
    if begin != ranges["test"].stop:
        raise UsageError("The files changed while they were being read; prepare the corpus again.")
