"""Questions about a whole table, answered by all shards together without moving per-row data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.access import AccessReport, AccessSums, add_sums, boundary_bin, report
from memory_store.client import StoreClient


def access_report(client: StoreClient, table: str) -> AccessReport:
    """Usage, KL to uniform and top-1 % share of the accesses counted since the last `clear_accesses`."""
    rows = client.specs[table].rows
    coarse = _sums(client, table, -1)
    prefix, wanted = boundary_bin(coarse.histogram_counts, min(-(-rows // 100), coarse.rows_used))
    return report(rows, coarse, _sums(client, table, prefix), prefix, wanted)


def _sums(client: StoreClient, table: str, prefix: int) -> AccessSums:
    counted = client.ask(m.CountAccesses(table, prefix), m.AccessCounted)
    return add_sums([AccessSums(**vars(part)) for part in counted])


def clear_accesses(client: StoreClient, table: str) -> None:
    client.ask(m.ClearAccesses(table), m.Done)


def access_map(client: StoreClient, table: str, sub_keys: int, side: int) -> NDArray[np.float64]:
    """Access weight by sub-key pair, float64 `[side, side]`; pixel (0, 0) belongs to the first sub-keys of
    both halves.
    """
    parts = client.ask(m.DrawAccesses(table, sub_keys, side), m.AccessDrawn)
    return np.asarray(np.sum([part.pixels for part in parts], axis=0))


@dataclass(frozen=True)
class AgeRange:
    """How many `rows` an update has last touched at most `steps` steps ago, and longer ago than the range before.

    `steps` None: never.
    """

    steps: int | None
    rows: int


def slot_ages(client: StoreClient, table: str) -> list[AgeRange]:
    """The table's rows by the steps since an update touched them, at its present version: up to 1, 10, 100 ..., never."""
    found, counted, steps = [], 0, 1
    while True:
        # All that were ever touched are younger than the table itself.
        since = max(0, client.version - steps)
        touched = sum(part.rows for part in client.ask(m.CountTouched(table, since), m.Touched))
        found.append(AgeRange(min(steps, client.version), touched - counted))
        counted = touched
        if since == 0:
            return [*found, AgeRange(None, client.specs[table].rows - counted)]
        steps *= 10


def touched_share(client: StoreClient, table: str, since: int) -> float:
    """Share of the table's rows that an update has touched after version `since`."""
    touched = sum(part.rows for part in client.ask(m.CountTouched(table, since), m.Touched))
    return touched / client.specs[table].rows
