"""What a client needs of a way to reach one shard."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from memory_store import messages as m


class Carrier(Protocol):
    """The connection to one shard.

    `submit` returns at once; the future gives the reply, or raises a PkmError: what the shard refused, or
    that it did not answer within `timeout_s`.
    """

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]: ...

    def close(self) -> None: ...
