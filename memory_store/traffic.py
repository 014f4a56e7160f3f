"""How much a request moves, as metrics and traces tell it."""

from __future__ import annotations

from memory_store import messages as m
from memory_store.errors import PkmError


def rows_and_bytes(request: m.Request, reply: m.Reply | PkmError) -> tuple[int, int]:
    """Of a lookup or an update that was answered: its rows, and the bytes of its vectors before the wire's type.

    Rows are distinct ones of a Fetch, a RowGradient or a ReplaceRows, one for each use of the others. Else nothing moves.
    """
    match request, reply:
        case ((m.Fetch() | m.Pool()), m.Rows()):
            return request.addresses.size, reply.values.nbytes
        case m.RowGradient(), m.Done():
            return request.addresses.size, request.gradients.nbytes
        case m.ReplaceRows(), m.Done():
            return request.addresses.size, request.values.nbytes
        case m.EntryGradient(), m.Done():
            return request.addresses.size, request.output_gradient.nbytes
        case m.PoolGradient(), m.WeightGradient():
            return reply.gradient.size, request.output_gradient.nbytes
        case _:
            return 0, 0
