"""Exact top-k of product keys on the CPU, from the scores of the two halves; and the gradient of the scores.

Per query: the k best sub-keys of each half, then the k best sums of pairs. Both are a *partial selection*:
find a lower bound of the k-th largest number, keep what reaches it (little more than k numbers), and sort
that. Numbers are compared many at a time (comparisons.py), and hardly a branch hangs on one.

- A bound for a half: split its scores into 2k interleaved groups; at least k scores reach whatever k of the groups'
  maxima reach. The largest such number is come close to by halving an interval.
- A bound for the pairs: with both halves sorted, at least (i+1)(j+1) pairs reach a[i] + b[j].
- Only pairs with (i+1)(j+1) <= k can win (119 of 1024 for k = 32): every other has k pairs at least as good
  before it.
- The sort counts for every number how many are larger: that is its place. Equal numbers take the places
  from there on.

A query with a NaN among its scores gets k scores NaN, so that it reaches the loss.
Letters: T tokens, H heads, n sub-keys, k selected, C = query_dim / 2. Numbers are float32.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.row_code import LANES
from memory_store.row_sums import add_scaled_row, sum_weighted_rows
from workers.comparisons import (
    WORD_BITS,
    add_to_each,
    bits_set,
    count_larger,
    greatest_of_groups,
    lowest_bit,
    reaching,
)

Floats = NDArray[np.float32]
Places = NDArray[np.int32]

# Of the interval that holds the k-th largest of 2k numbers: after them few numbers are left in it.
_HALVINGS = 7
_CHUNKS = 64  # parallel pieces of a selection; each takes its scratch memory once


@compiled()
def _bound_of_half(halves: Floats, half: int, k: int, maxima: Floats) -> np.float32:
    """A number that at least k of row `half` of `halves` `[.., n]` reach, and few more.

    maxima `[1, ..]`: 2k places and minus infinity in those up to the next multiple of WORD_BITS.
    """
    groups = 2 * k
    if halves.shape[1] < groups:
        return np.float32(-np.inf)
    bound, beyond = greatest_of_groups(halves, half, groups, maxima)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (bound + beyond)
        found = 0
        for begin in range(0, groups, WORD_BITS):
            found += bits_set(reaching(maxima, 0, begin, middle))
        # Chosen, not branched on: which it is can't be predicted.
        bound, beyond = (middle if found >= k else bound), (beyond if found >= k else middle)
    return np.float32(bound)


@compiled()
def keep(rows: Floats, row: int, size: int, bound: np.float32, kept: Floats, names: Places) -> int | np.int64:
    """Pack those of rows[row, :size] that are not below `bound` into kept[0], their places into `names`; how many."""
    count = 0
    if size < WORD_BITS:
        for place in range(size):
            kept[0, count] = rows[row, place]
            names[count] = place
            count += not (rows[row, place] < bound)
        return count
    for begin in range(0, size, WORD_BITS):
        # The last numbers come with those before them, which have been seen.
        at = min(begin, size - WORD_BITS)
        word = reaching(rows, row, at, bound) & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(begin - at))
        while word != np.uint64(0):
            place = at + lowest_bit(word)
            kept[0, count] = rows[row, place]
            names[count] = place
            count += 1
            word &= word - np.uint64(1)
    return count


@compiled()
def _has_nan(numbers: Floats, count: int | np.int64) -> bool:
    found = 0
    for place in range(count):
        found += numbers[0, place] != numbers[0, place]
    return found > 0


@compiled()
def _sort(numbers: Floats, count: int | np.int64, places: Places, order: Places) -> None:
    """order[p] = place of the p-th largest of numbers[0, :count], the first of equal ones first; `places` is scratch."""
    count_larger(numbers, 0, count, places)
    for place in range(count):
        order[place] = -1
    for index in range(count):
        place = places[index]
        while order[place] >= 0:
            place += 1
        order[place] = index


@compiled()
def _find_best(
    rows: Floats,
    row: int,
    size: int,
    bound: np.float32,
    kept: Floats,
    names: Places,
    places: Places,
    order: Places,
    best: Floats,
    found: Places,
) -> bool:
    """Put the k best of rows[row, :size], k or more of which reach `bound`, into `best`, their places into `found` `[k]`.

    False, and nothing is put, if one that is not below `bound` is NaN, as every NaN is: no order would hold.
    """
    count = keep(rows, row, size, bound, kept, names)
    if _has_nan(kept, count):
        return False
    _sort(kept, count, places, order)
    for place in range(found.size):
        best[place] = kept[0, order[place]]
        found[place] = names[order[place]]
    return True


@compiled()
def pairs_that_can_win(k: int) -> tuple[Places, Places, Places, Places]:
    """The pairs (i, j) of sorted places that can be among the k best, for i after i: their i and j `[pairs]`.

    And for each i where its pairs begin `[k + 1]`; and which pairs are such that k pairs reach them: (i+1)(j+1) = k.
    """
    begins = np.zeros(k + 1, dtype=np.int32)
    for i in range(k):
        begins[i + 1] = begins[i] + k // (i + 1)
    first, second = np.empty(begins[k], dtype=np.int32), np.empty(begins[k], dtype=np.int32)
    corners, count = np.empty(k, dtype=np.int32), 0
    for i in range(k):
        first[begins[i] : begins[i + 1]] = i
        second[begins[i] : begins[i + 1]] = np.arange(begins[i + 1] - begins[i])
        if k % (i + 1) == 0:
            corners[count] = begins[i + 1] - 1
            count += 1
    return first, second, begins, corners[:count]


@compiled(parallel=True)
def select_pairs(scores: Floats, out_rows: NDArray[np.int64], out_scores: Floats) -> None:
    """The k best pairs of every query, best first.

    scores `[H, 2, T, n]`, contiguous; out_rows int64 and out_scores `[T, H, k]`: row i*n + j and its score
    scores[h, 0, t, i] + scores[h, 1, t, j].
    """
    tokens, heads, k = out_rows.shape
    queries, n = tokens * heads, scores.shape[3]
    halves = scores.reshape(-1, n)
    first, second, begins, corners = pairs_that_can_win(k)
    room = max(n, 2 * k, first.size) + WORD_BITS
    for chunk in prange(_CHUNKS):
        kept = np.zeros((1, room), dtype=np.float32)
        sums = np.zeros((1, room), dtype=np.float32)
        maxima = np.full((1, 2 * k + WORD_BITS), -np.inf, dtype=np.float32)
        names = np.empty(room, dtype=np.int32)
        places = np.empty(room, dtype=np.int32)
        order = np.empty(room, dtype=np.int32)
        best = np.zeros((3, k + LANES), dtype=np.float32)  # of both halves, and of the pairs
        found = np.empty((3, k), dtype=np.int32)
        for query in range(chunk * queries // _CHUNKS, (chunk + 1) * queries // _CHUNKS):
            token, head = query // heads, query % heads
            for place in range(k):  # so it stays where a number is NaN
                out_rows[token, head, place], out_scores[token, head, place] = place, np.nan
            are_numbers = True
            for half in range(2):
                row = (2 * head + half) * tokens + token
                bound = _bound_of_half(halves, row, k, maxima)
                are_numbers = are_numbers and _find_best(
                    halves, row, n, bound, kept, names, places, order, best[half], found[half]
                )
            if not are_numbers:
                continue
            bound = np.float32(-np.inf)
            for corner in corners:
                bound = max(best[0, first[corner]] + best[1, second[corner]], bound)
            for i in range(k):
                add_to_each(sums, begins[i], best, 1, begins[i + 1] - begins[i], best[0, i])
            if _find_best(sums, 0, first.size, bound, kept, names, places, order, best[2], found[2]):
                for place in range(k):
                    pair = found[2, place]
                    out_scores[token, head, place] = best[2, place]
                    out_rows[token, head, place] = (
                        np.int64(found[0, first[pair]]) * n + found[1, second[pair]]
                    )


@compiled(parallel=True)
def selection_gradient(
    queries: Floats,
    sub_keys: Floats,
    rows: NDArray[np.int64],
    score_gradient: Floats,
    query_gradient: Floats,
    sub_key_gradient: Floats,
) -> None:
    """Gradient of the chosen scores. A query touches at most k sub-keys per half, so no product of matrices
    is needed.

    queries and query_gradient `[T, H, 2, C]`, sub_keys and sub_key_gradient `[H, 2, n, C]`, rows and
    score_gradient `[T, H, k]`. Tokens are added in their order, whatever the number of threads.
    """
    tokens, heads, k = rows.shape
    n, width = sub_keys.shape[2], sub_keys.shape[3]
    # The half h of head j of token t is row (t * heads + j) * 2 + h.
    halves, halves_gradient = queries.reshape(-1, width), query_gradient.reshape(-1, width)
    for unit in prange(2 * heads):
        head, half = unit // 2, unit % 2
        keys, keys_gradient = sub_keys[head, half], sub_key_gradient[head, half]
        sums = np.empty(n, dtype=np.float32)  # gradient of this token's score of each sub-key it touches
        touched = np.zeros(k, dtype=np.int64)
        factors = np.empty(k, dtype=np.float32)  # the sums of those touched
        last_token = np.full(n, -1, dtype=np.int64)
        keys_gradient[:] = 0
        for token in range(tokens):
            count = 0
            for place in range(k):
                row = np.uint32(rows[token, head, place])
                index = np.int64(row % np.uint32(n) if half else row // np.uint32(n))
                if last_token[index] != token:
                    last_token[index] = token
                    sums[index] = 0
                    touched[count] = index
                    count += 1
                sums[index] += score_gradient[token, head, place]
            own = token * 2 * heads + unit
            for place in range(count):
                factors[place] = sums[touched[place]]
                add_scaled_row(keys_gradient, touched[place], halves, own, factors[place])
            sum_weighted_rows(halves_gradient, own, keys, 0, touched, factors, 0, count)
