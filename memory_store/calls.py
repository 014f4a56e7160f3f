"""Calls under way: how their outcome is waited for, and what it must be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from memory_store import messages as m
from memory_store.errors import StoreError

T = TypeVar("T")

Waiting = Callable[[], T]
"""The rest of something that was begun: call it once to wait for the outcome."""

ReplyType = TypeVar("ReplyType", bound=m.Reply)


def expect(future: Future[m.Reply], reply: type[ReplyType]) -> ReplyType:
    """The reply of a call, which must be a `reply`. Raises what the call raised, or StoreError."""
    value = future.result()
    if not isinstance(value, reply):
        raise StoreError(f"A shard answered {type(value).__name__} where {reply.__name__} was expected.")
    return value
