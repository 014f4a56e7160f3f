"""Turns of tenants at the threads that answer: one who asks for much waits for his own calls, not the others for theirs.

A tenant with many calls in line is also answered at a bounded pace, by one thread. Otherwise the service would be so busy
with answering him that calls of others would wait where no turns are taken: before the service has looked at whose they are.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

# Few, since Python runs one of them at a time; a tenant whose files are slow leaves some for the others.
THREADS = 4
THREADS_OF_ONE_TENANT = 2
CROWD = 100  # calls of a tenant in line, from which on he has one thread, and that pauses after each
PAUSE_S = 0.005

_Answer = TypeVar("_Answer")


class Turns:
    """Work of tenants, done in the order in which it came for each of them, and one after the other among them.

    Belongs to the event loop in which `take` is called.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="answer")
        self._busy = 0
        self._at_work: Counter[str] = Counter()  # threads of each tenant, those that pause among them
        # The tenant who comes first has the next turn.
        self._waiting: dict[str, deque[tuple[asyncio.Future[Any], Callable[[], Any]]]] = {}

    async def take(self, tenant: str, work: Callable[..., _Answer], *arguments: object) -> _Answer:
        """What `work(*arguments)` returns or raises, in a thread, when it is the tenant's turn."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append((answer, partial(work, *arguments)))
        self._begin()
        try:
            return await answer
        finally:
            del answer  # it refers to the error that leaves here, whose trace refers to this frame: a circle

    def _begin(self) -> None:
        while self._busy < THREADS:
            tenant = next(filter(self._may_begin, self._waiting), None)
            if tenant is None:
                return
            line = self._waiting.pop(tenant)
            answer, work = line.popleft()
            if line:
                self._waiting[tenant] = line  # behind the others
            if answer.done():  # nobody waits for it any more
                continue
            self._busy += 1
            self._at_work[tenant] += 1
            done = self._threads.submit(work)
            done.add_done_callback(partial(self._tell, answer.get_loop(), tenant, answer))

    def _may_begin(self, tenant: str) -> bool:
        return self._at_work[tenant] < (1 if self._is_crowd(tenant) else THREADS_OF_ONE_TENANT)

    def _is_crowd(self, tenant: str) -> bool:
        return len(self._waiting.get(tenant, ())) > CROWD

    def _tell(
        self, loop: asyncio.AbstractEventLoop, tenant: str, answer: asyncio.Future[Any], done: Future[Any]
    ) -> None:
        with suppress(RuntimeError):  # the service has ended meanwhile
            loop.call_soon_threadsafe(self._end, tenant, answer, done)

    def _end(self, tenant: str, answer: asyncio.Future[Any], done: Future[Any]) -> None:
        self._busy -= 1
        if not answer.done():
            error = done.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())
        if self._is_crowd(tenant):
            answer.get_loop().call_later(PAUSE_S, self._free, tenant)
            self._begin()
        else:
            self._free(tenant)

    def _free(self, tenant: str) -> None:
        self._at_work[tenant] -= 1
        self._begin()
