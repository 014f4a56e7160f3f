"""What a shard says about the use of its rows: the answers to requests that only look at one part of a table."""

from __future__ import annotations

from memory_store import messages as m
from memory_store.access import access_map, sum_accesses
from memory_store.request_checks import check_map
from memory_store.table import TablePart


def answered(
    part: TablePart, request: m.CountAccesses | m.DrawAccesses | m.ClearAccesses | m.CountTouched
) -> m.AccessCounted | m.AccessDrawn | m.Done | m.Touched:
    """The reply for this shard's part of the table. Raises StoreError for a picture that can't be drawn."""
    match request:
        case m.CountAccesses():
            sums = sum_accesses(part.accesses, part.weight_sums, request.histogram_prefix)
            return m.AccessCounted(**vars(sums))
        case m.DrawAccesses():
            check_map(part, request.sub_keys, request.side)
            first, rows, side = part.first_address, part.spec.rows, request.side
            return m.AccessDrawn(access_map(part.weight_sums, first, rows, request.sub_keys, side))
        case m.ClearAccesses():
            part.clear_accesses()
            return m.Done(duplicate=False)
        case m.CountTouched():
            return m.Touched(part.rows_touched_since(request.since))
