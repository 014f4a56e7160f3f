"""The shard core: requests in, answers out, no clock, no socket, no file, no thread.

`handle(ticket, request)` returns the answers that are due now, each with the ticket of the request it
answers. A request that must wait (a lookup for a version that is not reached, a commit before the other
writers') is put aside and answered by a later call that makes it possible. Every request may be repeated: a
waiting one is simply served again when something has changed, which is the same path a client's retry takes.

What must outlive a crash leaves the core as records for its log, in order; an answer that acknowledges one of them says
how many must be durable before it may be sent.

Invariants: the tables are at version v exactly when v steps have been applied; a step is applied once, when
every writer has committed; a request of a stale epoch, and a request that is refused, changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.access import add_counts, count_entries
from memory_store.access_requests import answered
from memory_store.answers import Answer, acknowledges
from memory_store.arena import NO_VERSION
from memory_store.errors import FencedError, PkmError, StoreError
from memory_store.held_steps import HeldStep, held_step
from memory_store.kept_lookups import KeptLookups
from memory_store.log_records import (
    Base,
    GroupState,
    LoggedBase,
    LoggedCut,
    LoggedGroup,
    LoggedStart,
    LoggedStep,
    LogRecord,
    Replacement,
    TableUpdate,
)
from memory_store.optimizers import Contributions
from memory_store.placement import BUCKETS, Placement
from memory_store.pooled_gradient import differentiate
from memory_store.request_checks import (
    check_commit,
    check_entries,
    check_factors,
    check_fetch,
    check_finite,
    check_gradient,
    check_replayed,
    checked_contribution,
)
from memory_store.steps import Contribution, WriterGroup
from memory_store.table import TablePart, allocated, apply_step
from memory_store.table_spec import TableSpec

_NO_NORMS = np.empty((0, BUCKETS))


class ShardCore:
    """One shard of one or more tables. See the module for its contract.

    Without `first_values` the tables are zeros until they are filled or restored.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        placement: Placement,
        shard: int,
        *,
        incarnation: str = "",
        max_staleness: int = 0,
        shared: bool = False,
        logged: bool = False,
        first_values: bool = True,
    ) -> None:
        self.placement = placement
        self.shard = shard
        self.incarnation = incarnation
        self.max_staleness = max_staleness
        self.logged = logged
        self.records_made = 0
        self.version = 0
        self.arena, self.tables = allocated(specs, placement, shard, shared=shared)
        self.arena.sign(incarnation)
        self.staleness_counts = np.zeros(max_staleness + 1, dtype=np.int64)
        self.group = WriterGroup()
        self._has_first_values = False
        if first_values:
            self.fill_with_first_values()
        self._kept = KeptLookups()
        self._held: HeldStep | None = None
        self._records: list[LogRecord] = []
        self.on_record: Callable[[LogRecord], None] = self._records.append
        self._waiting: list[tuple[int, m.Request]] = []
        self._answered_state = self._state()
        self.arena.show(self.version, self.group.epoch)

    # ---- serving -------------------------------------------------------------------------------------------

    def handle(self, ticket: int, request: m.Request) -> list[Answer]:
        """Serve one request; returns all answers that are due now, also to requests that had been waiting."""
        return self._serve([(ticket, request)]) + self.answer_waiting()

    def answer_waiting(self) -> list[Answer]:
        """The answers that are due because something that a request can wait for has changed."""
        answers = []
        while self._answered_state != self._state():
            self._answered_state = self._state()
            waiting, self._waiting = self._waiting, []
            answers += self._serve(waiting)
        return answers

    def abandon(self, ticket: int) -> None:
        """Forget a waiting request whose client has given up."""
        self._waiting = [(waiting, request) for waiting, request in self._waiting if waiting != ticket]

    def take_records(self) -> list[LogRecord]:
        """What has happened since the last call, for the log, unless `on_record` was told of it at once."""
        records, self._records[:] = list(self._records), []
        return records

    def _record(self, record: LogRecord) -> None:
        if self.logged:
            self.records_made += 1
            self.on_record(record)

    def _state(self) -> tuple[int, int, HeldStep | None, int]:
        """All that a waiting request can wait for."""
        return self.version, self.group.epoch, self._held, self._kept.kept_in_all

    def _serve(self, requests: list[tuple[int, m.Request]]) -> list[Answer]:
        answers = []
        for ticket, request in requests:
            try:
                reply = self._reply(request)
            except PkmError as error:
                answers.append(Answer(ticket, error))
                continue
            if reply is None:
                self._waiting.append((ticket, request))
            else:
                answers.append(
                    Answer(ticket, reply, self.records_made if acknowledges(request, reply) else 0)
                )
        return answers

    def _reply(self, request: m.Request) -> m.Reply | None:
        """The reply to a request, or None if it must wait. Raises PkmError to refuse it."""
        match request:
            case m.Pool():
                return self._pool(request)
            case m.Fetch():
                return self._fetch(request)
            case m.PoolGradient():
                return self._pool_gradient(request)
            case m.RowGradient() | m.EntryGradient() | m.ReplaceRows():
                return self._contribute(request)
            case m.Commit():
                return self._commit(request)
            case m.Apply():
                return self._apply_held(request)
            case m.OpenGroup():
                return self._open_group(request)
            case m.Initialise():
                return self._initialise(request)
            case m.Describe():
                return self._describe()
            case m.CountAccesses() | m.DrawAccesses() | m.ClearAccesses() | m.CountTouched():
                return answered(self._table(request.table), request)
            case m.BeginCut() | m.WriteCut() | m.LoadCut():
                raise StoreError("Cuts are files: the shard's host writes and reads them, not its core.")

    # ---- lookups -------------------------------------------------------------------------------------------

    def _version_reached(self, version: int) -> bool:
        """Whether a lookup for `version` can be served now. Raises StoreError if that version is gone."""
        if version < self.version:
            raise StoreError(
                f"Version {version} of the tables is gone, they are at {self.version}: "
                "restore the last cut and go on from it."
            )
        if version - self.version > self.max_staleness:
            return False
        self.staleness_counts[version - self.version] += 1
        return True

    def _fetch(self, request: m.Fetch) -> m.Rows | None:
        part = self._table(request.table)
        check_fetch(part, request)
        if not self._version_reached(request.version):
            return None
        if request.track:
            counts, sums = request.accesses, request.weight_sums
            add_counts(request.addresses, counts, sums, part.first_address, part.accesses, part.weight_sums)
        return m.Rows(part.fetch(request.addresses))

    def _pool(self, request: m.Pool) -> m.Rows | None:
        part = self._table(request.table)
        check_entries(part, request.offsets, request.addresses, request.weights)
        if request.keep:
            self.group.check(request.sender)
        if not self._version_reached(request.version):
            return None
        if request.keep:
            self._kept.keep(request)
        if request.track:
            count_entries(
                request.addresses, request.weights, part.first_address, part.accesses, part.weight_sums
            )
        return m.Rows(part.pool(request.offsets, request.addresses, request.weights))

    # ---- contributions -------------------------------------------------------------------------------------

    def _pool_gradient(self, request: m.PoolGradient) -> m.WeightGradient | None:
        sender, step, gradient = request.sender, request.step, request.output_gradient
        self.group.check(sender)
        known = self.group.known(sender, request.seq, step)
        kept = self._kept.of(sender.writer, request.lookup)
        if kept is None:
            if known:
                return m.WeightGradient(np.empty(0, dtype=gradient.dtype))
            self._check_step(step)
            return None  # its lookup may have been overtaken
        part = self.tables[kept.table]
        check_gradient(part, gradient, kept.offsets.size - 1)
        # Made before the contribution is taken, which may complete the step and change the rows.
        weight_gradient, contribution = differentiate(part, kept, gradient)
        if not known:
            check_finite(part, kept.weights)
            self._take(request, contribution)
        return m.WeightGradient(weight_gradient)

    def _contribute(self, request: m.RowGradient | m.EntryGradient | m.ReplaceRows) -> m.Done:
        self.group.check(request.sender)
        if self.group.known(request.sender, request.seq, request.step):
            return m.Done(duplicate=True)
        self._take(request, checked_contribution(self._table(request.table), request))
        return m.Done(duplicate=False)

    def _take(self, request: m.Contributing, contribution: Contribution | Replacement) -> None:
        """Take a contribution that was found right, and apply the step if that completes it."""
        self._check_step(request.step)
        self.group.contribute(request.sender, request.seq, request.step, contribution)
        self._apply_complete_steps()

    def _check_step(self, step: int) -> None:
        # A writer that was there before a crash may be a step further than what the crash has left here.
        last = self.version + self.max_staleness + 1
        if not self.version <= step <= last:
            raise StoreError(
                f"An update for step {step} came; the tables take steps {self.version} to {last} now."
            )

    # ---- steps ---------------------------------------------------------------------------------------------

    def _commit(self, request: m.Commit) -> m.Committed | None:
        self.group.check(request.sender)
        if request.step >= self.version and not self.group.known(request.sender, request.seq, request.step):
            self._check_step(request.step)
            check_commit(request, len(self.tables))
            self.group.commit(request)
            self._apply_complete_steps()
        if request.step < self.version:
            return m.Committed(self.version, applied=True, squared_norms=_NO_NORMS)
        if self._held is not None and self._held.step == request.step:
            return m.Committed(self.version, applied=False, squared_norms=self._held.squared_norms)
        return None

    def _apply_complete_steps(self) -> None:
        """Apply the next steps, as far as all of them is here; hold the first that wants to be clipped."""
        while self._held is None and self.group.complete(self.version):
            settings = self.group.settings(self.version)
            contributions = [self.group.contributions(self.version, name) for name in self.tables]
            if settings.hold:
                self._held = held_step(self.version, settings, contributions, self.tables)
            else:
                self._update(settings, contributions, np.ones(len(self.tables)))

    def _apply_held(self, request: m.Apply) -> m.Committed | None:
        self.group.check(request.sender)
        if request.step >= self.version:
            self._check_step(request.step)
            check_factors("clipping scales", request.scales, len(self.tables))
            if self._held is None or self._held.step != request.step:
                return None  # the commits of all writers come first
            held, self._held = self._held, None
            self._update(self.group.settings(held.step), held.contributions, request.scales)
            self._apply_complete_steps()
        return m.Committed(self.version, applied=True, squared_norms=_NO_NORMS)

    def _update(
        self, settings: m.Commit, contributions: list[Contributions | None], scales: NDArray[np.float64]
    ) -> None:
        """Apply the next step and move to the version after it."""
        updates = tuple(
            TableUpdate(name, float(rate), float(settings.scale * scale), gradients)
            for name, rate, scale, gradients in zip(
                self.tables, settings.learning_rates, scales, contributions, strict=True
            )
            if gradients is not None
        )
        replaced = self.group.replacements(self.version)
        self.group.applied(self.version)
        step = LoggedStep(self.version, dict(self.group.last_applied_seq), updates, replaced)
        self._record(step)
        self._apply(step)

    def _apply(self, step: LoggedStep) -> None:
        self._has_first_values = False
        apply_step(self.tables, step)
        self._kept.forget_up_to(self.version)
        self.version += 1
        self.arena.show(self.version, self.group.epoch)

    # ---- control -------------------------------------------------------------------------------------------

    def _open_group(self, request: m.OpenGroup) -> m.Done:
        group = self.group
        if (request.session, request.epoch, request.writers) == (group.session, group.epoch, group.writers):
            return m.Done(duplicate=True)
        if request.epoch <= group.epoch:
            raise FencedError(
                f"Epoch {request.epoch} is not above {group.epoch}, which is in charge: "
                "a newer group has taken over."
            )
        successor = WriterGroup(request.session, request.epoch, request.writers)
        self.restore(self.version, successor.state())
        self._record(LoggedGroup(self.group_state()))
        return m.Done(duplicate=False)

    def _initialise(self, request: m.Initialise) -> m.Done:
        if self.replaced_before(request):
            return m.Done(duplicate=True)
        self.fill_with_first_values()
        self.replaced(request, Base(version=0))
        return m.Done(duplicate=False)

    def check_sender(self, sender: m.Sender) -> None:
        """Raises FencedError unless `sender` belongs to the group in charge."""
        self.group.check(sender)

    def fill_with_first_values(self) -> None:
        """Put every table to its first values; `replaced` or `restore` must follow."""
        if not self._has_first_values:
            self.arena.show(NO_VERSION, self.group.epoch)
        for table in self.tables.values():
            table.clear_accesses() if self._has_first_values else table.initialise()
        self._has_first_values = True

    def begin_replacing(self) -> None:
        """The tables are about to be replaced: until `replaced` or `restore`, who reads in place finds no version."""
        self._has_first_values = False
        self.arena.show(NO_VERSION, self.group.epoch)

    def replaced_before(self, request: m.Initialise | m.LoadCut) -> bool:
        """Whether the tables were replaced for this request already: one that comes late must not do it again.

        Raises FencedError unless its sender belongs to the group in charge.
        """
        self.group.check(request.sender)
        return request.seq <= self.group.last_applied_seq.get(request.sender.writer, 0)

    def replaced(self, request: m.Initialise | m.LoadCut, base: Base) -> None:
        """The tables have been replaced by `base`: forget what was pending."""
        self.group.last_applied_seq[request.sender.writer] = request.seq
        self.restore(base.version, self.group_state())
        self._record(LoggedStart(base, self.group_state()))

    def cut_begins(self) -> None:
        """The tables, as they are now, are being written."""
        self._record(LoggedCut(self.version, self.group_state()))

    def cut_written(self, base: Base) -> None:
        """The tables, as they were at `base.version`, have been written: the log may begin there."""
        self._record(LoggedBase(base))

    # ---- a crash and after ---------------------------------------------------------------------------------

    def group_state(self) -> GroupState:
        """The group in charge, as the log keeps it."""
        return self.group.state()

    def restore(self, version: int, group: GroupState) -> None:
        """The tables are at `version`, and `group` is in charge; nothing is pending."""
        self.version = version
        self.group = WriterGroup.of(group)
        self._kept.clear()
        self._held = None
        self.arena.show(version, group.epoch)

    def replay(self, step: LoggedStep) -> None:
        """Apply a step out of the log once more. Raises LogError, before a row changes, if it can't be of these tables."""
        check_replayed(self.tables, step)
        self._apply(step)

    def _describe(self) -> m.ShardInfo:
        offsets = {name: self.arena.offset_of(part.values) for name, part in self.tables.items()}
        return m.ShardInfo(
            shard=self.shard,
            shards=self.placement.shards,
            placement=self.placement.digest,
            incarnation=self.incarnation,
            version=self.version,
            epoch=self.group.epoch,
            writers=self.group.writers,
            tables=json.dumps([asdict(part.spec) for part in self.tables.values()]),
            arena=json.dumps({"path": self.arena.path, "offsets": offsets}),
            logged=self.logged,
        )

    def _table(self, name: str) -> TablePart:
        part = self.tables.get(name)
        if part is None:
            raise StoreError(f"No table {name!r} here; there are: {', '.join(self.tables)}.")
        return part
