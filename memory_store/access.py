"""Which slots are used: counts and weight sums per row, kept at the shard and summed there.

With z the normalised sum of access weights per row (Lample et al. 2019, section 4.3):
  memory usage   = share of rows with any access
  KL to uniform  = ln K + sum z ln z   (natural log; 0 for uniform access, ln K for a single row)
  top-1 % share  = share of all access weight that falls on the 1 % of rows with the most weight
  dead slots     = rows without any access
Every shard reduces its own rows to a few numbers that add up; per-row data never leaves it. The top-1 % share
needs the weight of the ceil(K/100)-th row over all shards: it is found by two rounds of histograms over the
bit patterns of the float32 weights, whose order is that of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.kernels import FloatArray
from memory_store.placement import rows_of

HISTOGRAM_BINS = 1 << 16


@compiled()
def count_entries(
    addresses: NDArray[np.uint32],
    weights: FloatArray,
    first: int,
    accesses: NDArray[np.uint32],
    weight_sums: NDArray[np.float32],
) -> None:
    """Add one access and its weight for every entry. addresses uint32 `[N]`, weights `[N]`."""
    for entry in range(addresses.size):
        row = np.int64(addresses[entry]) - first
        accesses[row] += np.uint32(1)
        weight_sums[row] += np.float32(weights[entry])


@compiled()
def add_counts(
    addresses: NDArray[np.uint32],
    counts: NDArray[np.uint32],
    weights: FloatArray,
    first: int,
    accesses: NDArray[np.uint32],
    weight_sums: NDArray[np.float32],
) -> None:
    """Add counted accesses of distinct rows.

    addresses, counts uint32 `[U]`, weights `[U]` (already summed).
    """
    for entry in range(addresses.size):
        row = np.int64(addresses[entry]) - first
        accesses[row] += counts[entry]
        weight_sums[row] += np.float32(weights[entry])


@dataclass(frozen=True)
class AccessSums:
    """What one shard knows of the accesses to its rows.

    All fields but the histogram simply add up over shards.
    """

    rows_used: int
    accesses: int
    weight: float
    weight_log_weight: float
    histogram_counts: NDArray[np.int64]
    histogram_weights: NDArray[np.float64]


def sum_accesses(
    accesses: NDArray[np.uint32], weight_sums: NDArray[np.float32], histogram_prefix: int
) -> AccessSums:
    """Reduce a shard's rows.

    With `histogram_prefix` -1 the histogram is over the upper 16 bits of the weight sums' bit patterns;
    otherwise it is over the lower 16 bits of those rows whose upper 16 bits equal the prefix.
    """
    used = accesses > 0
    weights = weight_sums[used].astype(np.float64)
    positive = weights[weights > 0]
    bits = weight_sums[used].view(np.uint32)
    if histogram_prefix < 0:
        bins, chosen = (bits >> np.uint32(16)).astype(np.int64), weights
    else:
        inside = (bits >> np.uint32(16)) == np.uint32(histogram_prefix)
        bins, chosen = (bits[inside] & np.uint32(0xFFFF)).astype(np.int64), weights[inside]
    return AccessSums(
        rows_used=int(used.sum()),
        accesses=int(accesses.sum(dtype=np.uint64)),
        weight=float(weights.sum()),
        weight_log_weight=float((positive * np.log(positive)).sum()),
        histogram_counts=np.bincount(bins, minlength=HISTOGRAM_BINS).astype(np.int64),
        histogram_weights=np.bincount(bins, weights=chosen, minlength=HISTOGRAM_BINS).astype(np.float64),
    )


def add_sums(parts: Sequence[AccessSums]) -> AccessSums:
    """The sums of all shards together, added in shard order."""
    return AccessSums(
        rows_used=sum(part.rows_used for part in parts),
        accesses=sum(part.accesses for part in parts),
        weight=math.fsum(part.weight for part in parts),
        weight_log_weight=math.fsum(part.weight_log_weight for part in parts),
        histogram_counts=np.sum([part.histogram_counts for part in parts], axis=0),
        histogram_weights=np.sum([part.histogram_weights for part in parts], axis=0),
    )


@dataclass(frozen=True)
class AccessReport:
    """How a table's slots were used since the counters were last cleared.

    See the module for the definitions.
    """

    rows: int
    rows_used: int
    accesses: int
    usage: float
    kl_to_uniform: float
    top1_share: float

    @property
    def dead_slots(self) -> int:
        return self.rows - self.rows_used


def boundary_bin(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted` largest rows end, counted from the top, and how many of them it holds."""
    above = 0
    for value in range(counts.size - 1, -1, -1):
        if above + counts[value] >= wanted:
            return value, wanted - above
        above += int(counts[value])
    return 0, int(counts[0])


_DIGITS = 9


def report(rows: int, coarse: AccessSums, fine: AccessSums, prefix: int, wanted: int) -> AccessReport:
    """Put the metrics together, to nine decimals: further ones depend on how many shards have added up their rows.

    `coarse` and `fine` are the two rounds; `wanted` rows of bin `prefix` belong to the top.
    """
    if coarse.weight <= 0:
        return AccessReport(rows, coarse.rows_used, coarse.accesses, coarse.rows_used / rows, 0.0, 0.0)
    top = float(coarse.histogram_weights[prefix + 1 :].sum())
    value, rest = boundary_bin(fine.histogram_counts, wanted)
    top += float(fine.histogram_weights[value + 1 :].sum())
    if fine.histogram_counts[value]:
        # All rows of one fine bin have the same weight.
        top += rest * float(fine.histogram_weights[value]) / int(fine.histogram_counts[value])
    entropy_part = coarse.weight_log_weight / coarse.weight - math.log(coarse.weight)
    return AccessReport(
        rows=rows,
        rows_used=coarse.rows_used,
        accesses=coarse.accesses,
        usage=coarse.rows_used / rows,
        kl_to_uniform=max(0.0, round(math.log(rows) + entropy_part, _DIGITS)),
        top1_share=round(top / coarse.weight, _DIGITS),
    )


def access_map(
    weight_sums: NDArray[np.float32], first: int, table_rows: int, sub_keys: int, side: int
) -> NDArray[np.float64]:
    """Access weight by sub-key pair, coarsened to `side x side`: float64 `[side, side]`, this shard's part.

    Row `i * n + j` of the table adds to pixel `(i * side // n, j * side // n)`; the parts of shards add up.
    """
    used = np.nonzero(weight_sums)[0]
    rows = rows_of((used + first).astype(np.uint32), table_rows)
    first_key, second_key = rows // sub_keys, rows % sub_keys
    pixels = (first_key * side // sub_keys) * side + second_key * side // sub_keys
    flat = np.bincount(pixels, weights=weight_sums[used].astype(np.float64), minlength=side * side)
    return flat.astype(np.float64, copy=False).reshape(side, side)
