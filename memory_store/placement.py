"""Rows -> buckets -> shards.

A row belongs to bucket `row mod 1024`; `row // 1024` is its place inside. The bucket is the fixed unit of
placement, of checkpoints and of migration: a shard owns a contiguous range of buckets, and moving a table to
another number of shards moves whole buckets.

An *address* numbers the rows in bucket-major order: `address = bucket * capacity + row // 1024`, where
`capacity` is the number of rows of the largest bucket. So a bucket is one contiguous piece of its shard's
memory, a shard owns one contiguous range of addresses, and rows sorted by address are already sorted by
shard. Addresses depend on the number of rows only, never on the number of shards. All messages carry
addresses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.errors import UsageError

BUCKETS = 1024


def bucket_capacity(rows: int) -> int:
    """Rows of the largest bucket of a table with `rows` rows."""
    return -(-rows // BUCKETS)


def bucket_rows(rows: int, bucket: int) -> int:
    """Rows of `bucket`; 0 when the table has fewer rows than there are buckets before it."""
    return max(0, -(-(rows - bucket) // BUCKETS))


@compiled(parallel=False)
def _addresses(rows: NDArray[np.int64], capacity: int, count: int, out: NDArray[np.uint32]) -> bool:
    valid = True
    for index in range(rows.size):
        row = rows[index]
        valid &= (row >= 0) & (row < count)
        out[index] = np.uint32((row & 1023) * capacity + (row >> 10))
    return valid


def addresses_of(rows: NDArray[np.int64], table_rows: int) -> NDArray[np.uint32]:
    """Addresses of row numbers (any shape), same shape.

    Raises UsageError if a row is outside 0..table_rows-1.
    """
    flat = np.ascontiguousarray(rows, dtype=np.int64).reshape(-1)
    out = np.empty(flat.size, dtype=np.uint32)
    if not _addresses(flat, bucket_capacity(table_rows), table_rows, out):
        raise UsageError(
            f"Row numbers {flat.min()}..{flat.max()} were asked for; the table has rows 0..{table_rows - 1}."
        )
    return out.reshape(rows.shape)


def rows_of(addresses: NDArray[np.uint32], table_rows: int) -> NDArray[np.int64]:
    """Row numbers of addresses: the inverse of `addresses_of`."""
    bucket, position = np.divmod(addresses.astype(np.int64), bucket_capacity(table_rows))
    return position * BUCKETS + bucket


@dataclass(frozen=True)
class Placement:
    """Which shard owns which buckets: shard `s` owns buckets `bounds[s] .. bounds[s+1] - 1`.

    Logical only; where a shard answers is its binding, kept elsewhere. `version` counts the moves of a table.
    """

    bounds: tuple[int, ...]
    version: int = 0

    @staticmethod
    def even(shards: int) -> Placement:
        """Buckets spread evenly over `shards` shards. Raises UsageError outside 1..1024."""
        if not 1 <= shards <= BUCKETS:
            raise UsageError(f"A table can't be cut into {shards} shards: 1 to {BUCKETS} are allowed.")
        return Placement(tuple(BUCKETS * shard // shards for shard in range(shards + 1)))

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1

    def buckets(self, shard: int) -> range:
        return range(self.bounds[shard], self.bounds[shard + 1])

    def address_bounds(self, table_rows: int) -> NDArray[np.int64]:
        """First address of every shard, and the end: int64 `[S + 1]`."""
        return np.asarray(self.bounds, dtype=np.int64) * bucket_capacity(table_rows)

    @property
    def digest(self) -> str:
        """Short hash that two processes compare to know that they mean the same placement."""
        return hashlib.sha256(repr((self.version, self.bounds)).encode()).hexdigest()[:16]
