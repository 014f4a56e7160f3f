"""Gradients of rows on their way from a device to the shards, beside the backward pass that made them.

On a GPU one thread waits for each copy to the host, has the gradients of rows made of it, and sends them, while autograd goes
on. It takes lookups in the order of their backward passes, so that runs repeat bit for bit. A step's commit waits for all of
them, and raises what has failed. On a CPU nothing is copied, and they are made and sent at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

from memory_store.client import StoreClient


class GradientSender:
    """Sends to the shards of `store`; `beside` the caller's work, or at once."""

    def __init__(self, store: StoreClient, *, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "gradients") if beside else None
        self._under_way: list[Future[None]] = []
        store.before_change.append(self._finish)

    def send(self, action: Callable[[], None]) -> None:
        """Have `action` wait for a gradient, and contribute it."""
        if self._thread is None:
            action()
        else:
            self._under_way.append(self._thread.submit(copy_context().run, action))

    def _finish(self, replaced: bool) -> None:
        """Wait for what is under way, or drop it if the tables are replaced; see `StoreClient.before_change`."""
        under_way, self._under_way = self._under_way, []
        if replaced:
            under_way = [sent for sent in under_way if not sent.cancel()]
        errors = [error for error in [sent.exception() for sent in under_way] if error is not None]
        if errors and not replaced:
            raise errors[0]
