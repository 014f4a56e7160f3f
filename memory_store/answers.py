"""What leaves a shard: a reply with the ticket of its request, and with what must be on the disk before it may be sent."""

from __future__ import annotations

from dataclasses import dataclass

from memory_store import messages as m
from memory_store.errors import PkmError


@dataclass(frozen=True)
class Answer:
    """The reply to the request that came with `ticket`, to be sent once the first `after` records are durable."""

    ticket: int
    reply: m.Reply | PkmError
    after: int = 0


def acknowledges(request: m.Request, reply: m.Reply) -> bool:
    """Whether the client relies on `reply` after a crash of the shard."""
    return isinstance(request, m.OpenGroup | m.Initialise) or (
        isinstance(reply, m.Committed) and reply.applied
    )
