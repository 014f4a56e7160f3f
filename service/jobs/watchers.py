"""Those who wait for a job to change, and who wakes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watchers:
    """Belongs to the event loop it is made in; `changed` alone may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, set[asyncio.Event]] = {}

    def changed(self, number: int) -> None:
        """Wake all who wait for the job of this number."""
        self._loop.call_soon_threadsafe(self._wake, number)

    def _wake(self, number: int) -> None:
        for event in self._waiting.get(number, ()):
            event.set()

    @contextmanager
    def waiting_for(self, number: int) -> Iterator[asyncio.Event]:
        """An event that is set by every change of the job from now on."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(number, set())
        waiting.add(event)
        try:
            yield event
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(number) is waiting:
                del self._waiting[number]
