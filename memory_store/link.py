"""What a client must remember of one shard so that neither a lost connection nor a shard's crash loses or doubles anything.

A state machine without sockets, threads or clocks: requests, answers and losses go in, what is to be done comes out. The same
requests may reach a shard several times and in any order; the shard tells old from new by their `seq`, and requests
that overtake what they depend on wait there.

- The connection is lost, the shard lives: what has no answer yet is sent again.
- The shard has crashed and recovered from its log (`ShardInfo.logged`): it has every step that it acknowledged, and nothing
  of later ones. So the lookups and updates of a step are kept here until the shard has acknowledged the step, and sent again.
- The shard has crashed and begun anew: all requests fail, and the writers go back to their last cut.

Lookups that count accesses are never sent again: nobody knows whether they were counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from memory_store import messages as m
from memory_store.errors import PkmError, StoreError


@dataclass(frozen=True)
class Send:
    """Send this request over the connection under way; its answer belongs to `ticket`."""

    ticket: int
    request: m.Request


@dataclass(frozen=True)
class Connect:
    """Find out where the shard answers now, and ask it what it is."""


@dataclass(frozen=True)
class Complete:
    """The client's request `ticket` has come to its end."""

    ticket: int
    outcome: m.Reply | PkmError


Action = Send | Connect | Complete

_Update = m.RowGradient | m.PoolGradient | m.EntryGradient | m.ReplaceRows | m.Commit | m.Apply


class Link:
    """One client's dealings with shard number `shard`. Tickets are the caller's, rising."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.info: m.ShardInfo | None = None
        self.connected = False
        self.resent = 0
        self._epoch = 0
        self._acknowledged = 0  # the version that the shard has acknowledged to this writer
        self._open: dict[int, m.Request] = {}
        self._kept: dict[int, m.Request] = {}

    def submit(self, ticket: int, request: m.Request) -> list[Action]:
        """The client makes a request."""
        self._follow(request)
        if _step_of(request) is not None and (self.info is None or self.info.logged):
            self._kept[ticket] = request
        self._open[ticket] = request
        return [Send(ticket, request)] if self.connected else [Connect()] if len(self._open) == 1 else []

    def answered(self, ticket: int, outcome: m.Reply | PkmError) -> list[Action]:
        """The shard has answered, or refused, the request sent for `ticket`."""
        if isinstance(outcome, m.Committed) and outcome.applied:
            self._acknowledge(outcome.version)
        request = self._open.pop(ticket, None)
        if request is None:
            return []
        if isinstance(outcome, PkmError):
            self._kept.pop(ticket, None)
        elif isinstance(request, m.OpenGroup):
            self._begin(request.epoch)  # not before: a shard that has never seen it is not to blame
        return [Complete(ticket, outcome)]

    def lost(self) -> list[Action]:
        """The connection under way has broken: what was sent over it may have arrived or not."""
        if not self.connected:
            return []
        self.connected = False
        uncounted = [
            self._fail(ticket, "lost the connection while it counted accesses; evaluate once more")
            for ticket, request in list(self._open.items())
            if isinstance(request, m.Pool | m.Fetch) and request.track
        ]
        return [*uncounted, Connect()]

    def connected_to(self, info: m.ShardInfo) -> list[Action]:
        """A new connection is there, to a shard that says `info` of itself."""
        before, self.info = self.info, info
        self.connected = True
        restarted = before is not None and before.incarnation != info.incarnation
        if restarted and (trouble := self._unusable(info)):
            self._kept.clear()
            return [self._fail(ticket, trouble) for ticket in list(self._open)]
        # Also to a shard that was not restarted: what was sent again after its restart may have been lost in turn.
        resend = self._kept | self._open
        self.resent += len(resend)
        return [Send(ticket, resend[ticket]) for ticket in sorted(resend)]

    def expire(self, ticket: int, error: PkmError) -> list[Action]:
        """The client waits no longer for `ticket`."""
        return [Complete(ticket, error)] if self._open.pop(ticket, None) is not None else []

    def open_tickets(self) -> list[int]:
        return list(self._open)

    # ---- what must be remembered ---------------------------------------------------------------------------

    def _follow(self, request: m.Request) -> None:
        """Whose requests these are; with a new group, and with other tables, what was kept is over."""
        sender: m.Sender | None = getattr(request, "sender", None)
        epoch = sender.epoch if sender is not None else 0
        if epoch > self._epoch or isinstance(request, m.Initialise | m.LoadCut):
            self._begin(max(epoch, self._epoch))

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._kept.clear()
        self._acknowledged = 0

    def _acknowledge(self, version: int) -> None:
        self._acknowledged = max(self._acknowledged, version)
        self._kept = {
            ticket: request
            for ticket, request in self._kept.items()
            if (step := _step_of(request)) is not None and step >= version
        }

    def _unusable(self, info: m.ShardInfo) -> str:
        """Why a restarted shard can't go on where it was, or nothing."""
        if info.epoch < self._epoch:
            return "was started again without what it had learned: restore the last cut"
        if info.version < self._acknowledged:
            return (
                f"came back at version {info.version} after it had acknowledged {self._acknowledged}; "
                "its log has lost its end: restore the last cut"
            )
        return ""

    def _fail(self, ticket: int, what: str) -> Complete:
        request = self._open.pop(ticket)
        self._kept.pop(ticket, None)
        return Complete(ticket, StoreError(f"Shard {self.shard} {what} ({type(request).__name__})."))


def _step_of(request: m.Request) -> int | None:
    """The step for which a crashed shard would need this request again, if for any."""
    if isinstance(request, _Update):
        return request.step
    if isinstance(request, m.Pool) and request.keep:
        return request.version
    return None
