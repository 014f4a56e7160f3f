"""Exact top-k of product keys on the CPU, from the scores of the two halves; and the gradient of the scores.

Per query: the k best sub-keys of each half, then the k best sums of pairs. Both are a *partial selection*:
find a lower bound of the k-th largest number, keep what reaches it (little more than k numbers), and sort
that. Hardly a loop branches on a number, so compilers make vector instructions of them and the processor
mispredicts little.

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
from memory_store.row_sums import add_scaled_row, sum_weighted_rows

Floats = NDArray[np.float32]
Places = NDArray[np.int32]

# Of the interval that holds the k-th largest of 2k numbers: after them few numbers are left in it.
_HALVINGS = 7
_CHUNKS = 64  # parallel pieces of a selection; each takes its scratch memory once


@compiled()
def _sort(numbers: Floats, count: int, places: Places, order: Places) -> None:
    """order[p] = index of the p-th largest of numbers[:count]; `places` is scratch."""
    for index in range(count):
        places[index] = 0
        order[index] = -1
    for other in range(count):
        number = numbers[other]
        for index in range(count):
            places[index] += np.int32(number > numbers[index])
    for index in range(count):
        place = places[index]
        while order[place] >= 0:
            place += 1
        order[place] = index


@compiled()
def _has_nan(scores: Floats) -> bool:
    found = 0
    for index in range(scores.size):
        found += scores[index] != scores[index]
    return found > 0


@compiled()
def _bound_of_half(scores: Floats, k: int, maxima: Floats) -> np.float32:
    """A number that at least k of `scores` `[n]` reach, and few more."""
    groups = 2 * k
    if scores.size < groups:
        return np.float32(-np.inf)
    maxima[:groups] = scores[:groups]
    for begin in range(groups, scores.size - groups + 1, groups):
        part = scores[begin : begin + groups]
        for group in range(groups):
            maxima[group] = max(part[group], maxima[group])
    bound = beyond = maxima[0]
    for group in range(1, groups):
        bound, beyond = min(maxima[group], bound), max(maxima[group], beyond)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (bound + beyond)
        reaching = 0
        for group in range(groups):
            reaching += not (maxima[group] < middle)
        if reaching >= k:
            bound = middle
        else:
            beyond = middle
    return np.float32(bound)


@compiled()
def _keep(scores: Floats, bound: np.float32, kept: Floats, names: Places) -> int:
    """Pack the scores that reach `bound` into `kept`, their indices into `names`; returns how many."""
    count = 0
    for index in range(scores.size):
        kept[count] = scores[index]
        names[count] = index
        count += not (scores[index] < bound)
    return count


@compiled()
def bound_of_pairs(first: Floats, second: Floats, k: int) -> np.float32:
    """A number that at least k sums first[i] + second[j] reach; both `[k]`, sorted."""
    bound = np.float32(-np.inf)
    for i in range(k):
        if k % (i + 1) == 0:
            bound = max(first[i] + second[k // (i + 1) - 1], bound)
    return bound


@compiled()
def keep_pairs(first: Floats, second: Floats, k: int, bound: np.float32, kept: Floats, names: Places) -> int:
    """Pack the sums first[i] + second[j] that can win and reach `bound`, named i*k + j; returns how many."""
    count = 0
    for i in range(k):
        for j in range(k // (i + 1)):
            score = first[i] + second[j]
            kept[count] = score
            names[count] = i * k + j
            count += not (score < bound)
    return count


@compiled(parallel=True)
def select_pairs(scores: Floats, out_rows: NDArray[np.int64], out_scores: Floats) -> None:
    """The k best pairs of every query, best first.

    scores `[H, 2, T, n]`; out_rows int64 and out_scores `[T, H, k]`: row i*n + j and its score
    scores[h, 0, t, i] + scores[h, 1, t, j].
    """
    tokens, heads, k = out_rows.shape
    queries, n = tokens * heads, scores.shape[3]
    pairs = 0
    for i in range(k):
        pairs += k // (i + 1)
    room = max(n, 2 * k, pairs)
    for chunk in prange(_CHUNKS):
        kept = np.empty(room, dtype=np.float32)
        names = np.empty(room, dtype=np.int32)
        places = np.empty(room, dtype=np.int32)
        order = np.empty(room, dtype=np.int32)
        best = np.empty((2, k), dtype=np.float32)
        sub_keys = np.empty((2, k), dtype=np.int64)
        for query in range(chunk * queries // _CHUNKS, (chunk + 1) * queries // _CHUNKS):
            token, head = query // heads, query % heads
            if _has_nan(scores[head, 0, token]) or _has_nan(scores[head, 1, token]):
                # No order would hold, and places beyond the scratch memory would be read.
                for place in range(k):
                    out_rows[token, head, place], out_scores[token, head, place] = place, np.nan
                continue
            for half in range(2):
                of_half = scores[head, half, token]
                bound = _bound_of_half(of_half, k, kept)
                _sort(kept, _keep(of_half, bound, kept, names), places, order)
                for place in range(k):
                    best[half, place] = kept[order[place]]
                    sub_keys[half, place] = names[order[place]]
            bound = bound_of_pairs(best[0], best[1], k)
            _sort(kept, keep_pairs(best[0], best[1], k, bound, kept, names), places, order)
            for place in range(k):
                pair = names[order[place]]
                out_scores[token, head, place] = kept[order[place]]
                out_rows[token, head, place] = sub_keys[0, pair // k] * n + sub_keys[1, pair % k]


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
