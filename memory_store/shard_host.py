"""The shell round a shard core: a lock, tickets and futures, the files of cuts, and the log.

All carriers end here. The core is entered by one thread at a time; a request that must wait gives its thread
back a future that a later request completes. Reading and writing cuts is done here, because the core knows no
files. With a log, an answer that acknowledges something is given when that is durable.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from memory_store import messages as m
from memory_store.answers import Answer
from memory_store.bucket_files import check_buckets, read_buckets
from memory_store.cut_root import CutRoot
from memory_store.cuts import MANIFEST, read_manifest
from memory_store.errors import CutError, PkmError, StoreError
from memory_store.image import Original
from memory_store.log_records import Base
from memory_store.log_writer import LogWriter
from memory_store.shard import ShardCore
from memory_store.shard_cuts import ShardCut, ShardCuts
from memory_store.shard_metrics import ShardMetrics
from memory_store.step_log import StepLog
from memory_store.traces import BeginSpan, EndSpan


@dataclass(frozen=True)
class _Call:
    """A request that waits for its answer. `duplicate`: it is an update that had come before; `end_span`: it is traced."""

    request: m.Request
    future: Future[m.Reply]
    begun: float
    duplicate: bool
    end_span: EndSpan | None


class ShardHost:
    """One shard, usable from many threads.

    `log` is its log, taken over (recovery.py). If it can't be written for good, or another process has taken the shard
    over, `on_end` is called with the reason: the process should end; until it does, nothing is acknowledged. With `cuts`,
    a folder, it reads and writes no cut elsewhere. Every request is counted in `metrics`, when it is answered. With
    `original` the core's tables are an image of rows elsewhere (image.py).
    """

    def __init__(
        self,
        core: ShardCore,
        log: StepLog | None = None,
        on_end: Callable[[str], None] = lambda reason: None,
        cuts: Path | None = None,
        metrics: ShardMetrics | None = None,
        original: Original | None = None,
    ) -> None:
        self.metrics = metrics or ShardMetrics()
        self.metrics.watch(core)
        self.begin_span: BeginSpan | None = (
            None  # for traces: told of every request that comes under a traceparent
        )
        self._core, self._original = core, original
        self._lock = threading.Lock()
        self._tickets = 0
        self._calls: dict[int, _Call] = {}
        self._cuts = ShardCuts(core.shard, core.incarnation, self._lock, self._cut_ended)
        self._root = CutRoot(cuts)
        self._cut_begun = 0.0
        self._awaiting_cut: list[tuple[int, ShardCut]] = []
        self._durable = 0
        self._undurable: list[Answer] = []
        self._log: LogWriter | None = None
        if log is not None:
            timed = self.metrics.log_sync_seconds.time
            self._log = writer = LogWriter(log, self._became_durable, on_end, timed)
            self.metrics.log_refused.set_function(lambda: float(bool(writer.trouble)))
            core.on_record = self._log.put  # at once: a step is written while it is applied

    def submit(self, request: m.Request, traceparent: str = "") -> Future[m.Reply]:
        """Hand a request to the shard. The future may complete later, or hold a PkmError."""
        begun = time.perf_counter()
        end_span = self.begin_span(request, traceparent) if traceparent and self.begin_span else None
        future: Future[m.Reply] = Future()
        with self._lock:
            self._tickets += 1
            ticket = self._tickets
            self._calls[ticket] = _Call(request, future, begun, self._came_before(request), end_span)
            answers = self._handle(ticket, request)
            due = self._due(answers)
        _complete(due)
        return future

    def _came_before(self, request: m.Request) -> bool:
        if not isinstance(request, m.Contributing | m.Commit):
            return False
        return self._core.group.known(request.sender, request.seq, request.step)

    def _due(self, answers: Iterable[Answer]) -> list[tuple[Future[m.Reply] | None, m.Reply | PkmError]]:
        """The answers that may be given now, with their futures; the others are kept until they may."""
        given = []
        for answer in answers:
            if answer.after > self._durable:
                self._undurable.append(answer)
                continue
            call = self._calls.pop(answer.ticket, None)
            if call is not None:
                seconds = time.perf_counter() - call.begun
                self.metrics.answered(call.request, answer.reply, seconds, duplicate=call.duplicate)
                if call.end_span is not None:
                    call.end_span(answer.reply)
            given.append((call.future if call is not None else None, answer.reply))
        return given

    def _became_durable(self, records: int) -> None:
        with self._lock:
            self._durable = records
            undurable, self._undurable = self._undurable, []
            due = self._due(undurable)
        _complete(due)

    def close(self) -> None:
        """Write what is left of the log."""
        if self._log is not None:
            self._log.close()

    def call(self, request: m.Request, timeout_s: float, traceparent: str = "") -> m.Reply:
        """Serve a request, waiting at most `timeout_s`.

        Raises StoreError when the time is over, or what the shard raised.
        """
        future = self.submit(request, traceparent)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if not self.abandon(future):
                return future.result()
            raise StoreError(
                f"Shard {self._core.shard} could not answer {type(request).__name__} within {timeout_s:g} s: "
                f"it is at version {self._core.version} and {self._waits_for()}."
            ) from None

    def _waits_for(self) -> str:
        if self._log is not None and self._log.trouble:
            return f"can't write its log ({self._log.trouble}); free some space"
        return "waits for the other writers"

    def abandon(self, future: Future[m.Reply]) -> bool:
        """Forget a request that nobody waits for any more; False if its answer is due already."""
        with self._lock:
            for ticket, call in self._calls.items():
                if call.future is future:
                    del self._calls[ticket]
                    self._core.abandon(ticket)
                    return True
        return False

    def _handle(self, ticket: int, request: m.Request) -> list[Answer]:
        try:
            match request:
                case m.BeginCut():
                    done = m.Done(duplicate=not self._begin_cut(request))
                    return [Answer(ticket, done), *self._cut_answers()]
                case m.WriteCut():
                    return self._write_cut(ticket, request)
                case m.LoadCut():
                    done = self._load_cut(request)
                    answers = [Answer(ticket, done, self._core.records_made), *self._core.answer_waiting()]
                    return answers + self._cut_answers()
                case m.Initialise():
                    answers = self._core.handle(ticket, request)
                    if answers[0].reply == m.Done(duplicate=False):
                        self._cuts.forget()
                        self._replaced()
                    return answers + self._cut_answers()
                case m.CountTouched() if self._original is not None:
                    return [Answer(ticket, m.Touched(self._original.touched(request.table, request.since)))]
                case _:
                    return self._core.handle(ticket, request)
        except PkmError as error:
            return [Answer(ticket, error)]
        except OSError as error:
            return [Answer(ticket, StoreError(f"Shard {self._core.shard} could not use its files: {error}."))]
        except BaseException:
            del self._calls[ticket]
            raise

    def _begin_cut(self, request: m.BeginCut | m.WriteCut) -> bool:
        """Begin a cut; False if it has been begun. What an older one still had to write is given up."""
        core = self._core
        core.check_sender(request.sender)
        folder = self._root.folder(request.folder)
        newest = self._cuts.newest
        if newest is not None and request.number <= newest.number:
            if request.number < newest.number:
                raise StoreError(f"Cut number {request.number} comes late: number {newest.number} was begun.")
            return False
        if self._original is not None:
            core.begin_replacing()
            core.restore(self._original.into_image(), core.group_state())
        if core.version != request.step:
            raise StoreError(f"A cut of step {request.step} was asked for; the tables are at {core.version}.")
        if (folder / MANIFEST).exists():
            raise CutError(f"{folder} is a complete cut already; nothing was written over.")
        core.cut_begins()
        self._cut_begun = time.perf_counter()
        self._cuts.begin(folder, core.tables.values(), request.step, request.number)
        return True

    def _write_cut(self, ticket: int, request: m.WriteCut) -> list[Answer]:
        self._begin_cut(request)
        cut = self._cuts.newest
        assert cut is not None
        self._awaiting_cut.append((ticket, cut))
        return self._cut_answers()

    def _cut_ended(self, cut: ShardCut) -> None:
        with self._lock:
            self.metrics.cut_ended(cut.outcome, time.perf_counter() - self._cut_begun)
            if cut is self._cuts.newest and isinstance(cut.outcome, list):
                base = Base(version=cut.step, folder=str(cut.folder), files=tuple(cut.outcome))
                self._core.cut_written(base)
            due = self._due(self._cut_answers())
        _complete(due)

    def _cut_answers(self) -> list[Answer]:
        """Answers to those who wait for a cut that has its outcome, or will have none."""
        answers, awaiting = [], []
        for ticket, cut in self._awaiting_cut:
            if isinstance(cut.outcome, list):
                files = json.dumps([file.model_dump(mode="json") for file in cut.outcome])
                answers.append(Answer(ticket, m.CutWritten(files)))
            elif cut.outcome is not None:
                answers.append(Answer(ticket, cut.outcome))
            elif cut is not self._cuts.newest:
                answers.append(Answer(ticket, StoreError(f"The cut of step {cut.step} was given up.")))
            else:
                awaiting.append((ticket, cut))
        self._awaiting_cut = awaiting
        return answers

    def _load_cut(self, request: m.LoadCut) -> m.Done:
        core = self._core
        if core.replaced_before(request):
            return m.Done(duplicate=True)
        folder = self._root.folder(request.folder)
        manifest = read_manifest(folder)
        parts = list(core.tables.values())
        files = [check_buckets(folder, manifest, part) for part in parts]
        self._cuts.forget()
        core.begin_replacing()
        for part, entries in zip(parts, files, strict=True):
            read_buckets(folder, entries, part)
            part.clear_accesses()
        base = Base(version=manifest.step, folder=str(folder), files=tuple(chain(*files)))
        core.replaced(request, base)
        self._replaced()
        return m.Done(duplicate=False)

    def _replaced(self) -> None:
        if self._original is not None:
            self._original.from_image()


def _complete(due: Iterable[tuple[Future[m.Reply] | None, m.Reply | PkmError]]) -> None:
    """Give answers to those who wait; outside the lock, because others' code runs here."""
    for waiting, reply in due:
        if waiting is None or not waiting.set_running_or_notify_cancel():
            continue
        if isinstance(reply, PkmError):
            waiting.set_exception(reply)
        else:
            waiting.set_result(reply)
