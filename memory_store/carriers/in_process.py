"""The carrier for a shard in the same process: a method call. Arrays are shared, not copied.

A reply that must wait for another writer is waited for by a thread of its own, so that the deadline holds
here too.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from memory_store import messages as m
from memory_store.errors import StoreError
from memory_store.shard_host import ShardHost
from memory_store.traces import traceparent


class InProcessCarrier:
    def __init__(self, host: ShardHost) -> None:
        self._host = host

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        future = self._host.submit(request, traceparent.get())
        if not future.done():
            timer = threading.Timer(timeout_s, self._expire, (future, type(request).__name__, timeout_s))
            timer.daemon = True
            timer.start()
            future.add_done_callback(lambda _: timer.cancel())
        return future

    def _expire(self, future: Future[m.Reply], request: str, timeout_s: float) -> None:
        if self._host.abandon(future):
            future.set_exception(
                StoreError(
                    f"The shard could not answer {request} within {timeout_s:g} s: "
                    "it waits for the other writers."
                )
            )

    def close(self) -> None:
        """Nothing to close."""
