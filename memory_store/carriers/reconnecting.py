"""A carrier that outlives connections, and the crash of a shard that keeps a log: the threads and deadlines round a link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count

from memory_store import messages as m
from memory_store.calls import expect
from memory_store.carriers.base import Carrier
from memory_store.errors import PkmError, ShardUnreachableError, StoreError
from memory_store.link import Action, Complete, Connect, Link, Send

ATTEMPT_S = 5.0
RESENT_S = 120.0
_PAUSE_S = 0.1


class ReconnectingCarrier:
    """Shard number `shard`, wherever `open_carrier` finds it (it is asked anew after every loss, and may raise PkmError).

    A request ends with its answer, a refusal, or at its deadline. Only where there has never been a connection does a
    failure to connect end it at once.
    """

    def __init__(self, shard: int, open_carrier: Callable[[], Carrier]) -> None:
        self._link = Link(shard)
        self._open_carrier = open_carrier
        self._lock = threading.RLock()  # what is sent may be answered before `submit` of the carrier returns
        self._tickets = count()
        self._futures: dict[int, Future[m.Reply]] = {}
        self._deadlines: dict[int, float] = {}
        self._carrier: Carrier | None = None
        self._generation = 0
        self._connecting = False
        self._closed = False

    @property
    def info(self) -> m.ShardInfo | None:
        """What the shard said of itself when it was last connected to."""
        return self._link.info

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        future: Future[m.Reply] = Future()
        with self._lock:
            ticket = next(self._tickets)
            self._futures[ticket] = future
            self._deadlines[ticket] = time.monotonic() + timeout_s
            self._do(self._link.submit(ticket, request))
        return future

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._give_up(StoreError(f"The client of shard {self._link.shard} was closed."))
            if self._carrier is not None:
                self._carrier.close()

    # ---- what the link wants -------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(ticket, request):
                    self._send(ticket, request)
                case Complete(ticket, outcome):
                    self._complete(ticket, outcome)
                case Connect():
                    self._connect()

    def _send(self, ticket: int, request: m.Request) -> None:
        if self._carrier is None or self._closed:
            return
        # What is sent once more, though it has been answered, has no deadline of its own.
        left = self._deadlines.get(ticket, time.monotonic() + RESENT_S) - time.monotonic()
        generation = self._generation
        sent = self._carrier.submit(request, max(left, 0.001))
        sent.add_done_callback(lambda done: self._arrived(generation, ticket, done))

    def _complete(self, ticket: int, outcome: m.Reply | PkmError) -> None:
        future = self._futures.pop(ticket)
        del self._deadlines[ticket]
        if isinstance(outcome, PkmError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _arrived(self, generation: int, ticket: int, done: Future[m.Reply]) -> None:
        error = None if done.cancelled() else done.exception()
        with self._lock:
            if not (done.cancelled() or error):
                self._do(self._link.answered(ticket, done.result()))
            elif generation != self._generation:
                return  # it has been sent again since
            elif isinstance(error, PkmError) and not isinstance(error, ShardUnreachableError):
                self._do(self._link.answered(ticket, error))
            elif isinstance(error, PkmError) and time.monotonic() >= self._deadlines.get(ticket, 0):
                self._do(self._link.expire(ticket, error))
            else:
                self._do(self._link.lost())

    # ---- connecting ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connecting or self._closed:
            return
        self._connecting = True
        threading.Thread(target=self._reconnect, name="reconnect", daemon=True).start()

    def _reconnect(self) -> None:
        """Look for the shard until it is found, or until nobody waits for it any more."""
        trouble: PkmError = ShardUnreachableError(f"Shard {self._link.shard} was not found in time.")
        while True:
            with self._lock:
                self._expire(trouble)
                if self._closed or not self._link.open_tickets():
                    self._connecting = False
                    return
            carrier = None
            try:
                carrier = self._open_carrier()
                info = expect(carrier.submit(m.Describe(), ATTEMPT_S), m.ShardInfo)
            except PkmError as error:
                trouble = error
                if carrier is not None:
                    carrier.close()
                if self._link.info is None:
                    self._give_up(error)
                time.sleep(_PAUSE_S)
                continue
            with self._lock:
                if self._carrier is not None:
                    self._carrier.close()
                self._carrier, self._connecting = carrier, False
                self._generation += 1
                self._do(self._link.connected_to(info))
                return

    def _expire(self, trouble: PkmError) -> None:
        now = time.monotonic()
        for ticket in self._link.open_tickets():
            if now >= self._deadlines[ticket]:
                self._do(self._link.expire(ticket, trouble))

    def _give_up(self, error: PkmError) -> None:
        with self._lock:
            for ticket in self._link.open_tickets():
                self._do(self._link.expire(ticket, error))
