"""Shards as processes that are killed, paused and started again, round the real core, log and recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Lock

import numpy as np

from memory_store import messages as m
from memory_store.answers import Answer
from memory_store.errors import CutError, PkmError, StoreError, SupersededError
from memory_store.frozen_part import FrozenPart
from memory_store.log_records import Base, LogRecord
from memory_store.placement import Placement
from memory_store.recovery import take_over
from memory_store.shard import ShardCore
from memory_store.step_log import StepLog
from memory_store.table_spec import TableSpec
from tests.simulation.disk import SimulatedDisk
from tests.simulation.plan import arrays_of
from tests.simulation.world import World

Reply = Callable[[m.Reply | PkmError], None]
_RETRY_S = 0.2
_BUCKETS_AT_A_TIME = 400


@dataclass
class Snapshot:
    """What a cut keeps of one shard."""

    arrays: list[np.ndarray]

    @staticmethod
    def of(core: ShardCore) -> Snapshot:
        return Snapshot([array.copy() for array in arrays_of(core)])

    def load(self, core: ShardCore) -> None:
        core.begin_replacing()
        for array, kept in zip(arrays_of(core), self.arrays, strict=True):
            array[:] = kept


class CutUnderWay:
    """A cut that is being written while steps go on: the rows come out of the same frozen parts as in a real shard."""

    def __init__(self, core: ShardCore, folder: str, number: int) -> None:
        part = core.tables["memory"]
        self.folder, self.number = folder, number
        self.frozen = FrozenPart(part, core.version, Lock())
        self.snapshot = Snapshot.of(core)
        for bucket in part.buckets:
            for array in self.snapshot.arrays:
                array[part.bucket_slice(bucket)] = 0  # what is not written is wrong
        self.written = False
        self.awaited: list[int] = []
        self._buckets = list(part.buckets)

    def write_some(self) -> None:
        part = self.frozen.part
        some, self._buckets = self._buckets[:_BUCKETS_AT_A_TIME], self._buckets[_BUCKETS_AT_A_TIME:]
        arrays = [array for array in self.snapshot.arrays if array.ndim == 1 or array.shape[1]]
        for bucket in some:
            for array, rows in zip(arrays, self.frozen.read(bucket).columns, strict=True):
                array[part.bucket_slice(bucket)] = rows
        if not self._buckets:
            self.written = True
            self.frozen.end()


class ShardNode:
    """One shard of the store: its disk, its snapshots, the process that serves it now, and older ones that still run."""

    def __init__(
        self, world: World, spec: TableSpec, placement: Placement, shard: int, *, logged: bool
    ) -> None:
        self.world, self.spec, self.placement, self.shard, self.logged = world, spec, placement, shard, logged
        self._lives = count(1)
        self.disk = SimulatedDisk(world.random, world.happens, world.count)
        self.snapshots: dict[str, Snapshot] = {}
        self.acknowledged = (
            0  # the version that has been acknowledged to anybody since the tables were last replaced
        )
        self.process: ShardProcess | None = None
        self.start()

    def start(self) -> None:
        """Start a process, unless one runs; where the disk refuses, try again."""
        if self.process is not None and self.process.alive and not self.process.paused:
            return
        incarnation = f"shard-{self.shard}-life-{next(self._lives)}"
        core = ShardCore(
            [self.spec],
            self.placement,
            self.shard,
            incarnation=incarnation,
            logged=self.logged,
            first_values=not self.logged,
        )
        log = None
        if self.logged:
            try:
                log = take_over(core, self.disk, self._load)
            except OSError:
                self.world.after(0.5, self.start)
                return
            assert core.version >= self.acknowledged, (
                f"shard {self.shard} came back at {core.version}, {self.acknowledged} was acknowledged"
            )
        self.world.note(f"{incarnation} starts at {core.version}")
        self.process = ShardProcess(self, core, log)

    def _load(self, core: ShardCore, base: Base) -> None:
        if base.folder is None:
            core.fill_with_first_values()
        elif base.folder not in self.snapshots:
            raise CutError(f"{base.folder} is missing.")
        else:
            self.snapshots[base.folder].load(core)

    # ---- faults ------------------------------------------------------------------------------------------------

    def kill(self, *, power: bool) -> None:
        """End the process; started again a little later."""
        if self.process is None or not self.process.alive:
            return
        self.process.alive = False
        if power:
            self.disk.lose_power()
        else:
            self.disk.tear()
        self.world.after(0.05 + self.world.random.random(), self.start)

    def pause(self) -> None:
        """Stop the process for some time; its successor may be started meanwhile."""
        process = self.process
        if process is None or not process.alive or process.paused:
            return
        process.paused = True
        self.world.after(0.1 + self.world.random.random(), partial(self._wake, process))
        self.world.after(0.6 * self.world.random.random(), self.start)

    def _wake(self, process: ShardProcess) -> None:
        self.world.count("woken shard")
        process.wake()


class ShardProcess:
    """One life of a shard: the core, the log, and answers that wait until they are durable."""

    def __init__(self, node: ShardNode, core: ShardCore, log: StepLog | None) -> None:
        self._node, self._world, self.core, self._log = node, node.world, core, log
        self.alive, self.paused = True, False
        self._tickets = count()
        self._replies: dict[int, Reply] = {}
        self._undurable: list[Answer] = []
        self._records: list[LogRecord] = []
        self._appended = self._durable = 0
        self._writing = False
        self._asleep: list[Callable[[], None]] = []
        self._cut: CutUnderWay | None = None

    def do(self, action: Callable[[], None]) -> None:
        """Run an action of this process: now, when it is woken, or never."""
        if self.paused:
            self._asleep.append(action)
        elif self.alive:
            action()

    def wake(self) -> None:
        self.paused = False
        asleep, self._asleep = self._asleep, []
        for action in asleep:
            self.do(action)

    def receive(self, request: m.Request, reply: Reply) -> None:
        self.do(partial(self._handle, request, reply))

    def _handle(self, request: m.Request, reply: Reply) -> None:
        ticket = next(self._tickets)
        self._replies[ticket] = reply
        try:
            match request:
                case m.LoadCut():
                    answers = [Answer(ticket, self._load_cut(request), self.core.records_made)]
                    answers += self.core.answer_waiting()
                case m.BeginCut():
                    answers = [Answer(ticket, m.Done(duplicate=not self._begin_cut(request)))]
                case m.WriteCut():
                    self._begin_cut(request)
                    assert self._cut is not None
                    self._cut.awaited.append(ticket)
                    answers = self._cut_answers()
                case _:
                    answers = self.core.handle(ticket, request)
                    if isinstance(request, m.Initialise) and answers[0].reply == m.Done(duplicate=False):
                        self._give_up_cut()
        except PkmError as error:
            answers = [Answer(ticket, error)]
        self._records += self.core.take_records()
        self._answer(answers)
        self._write_soon()

    def _load_cut(self, request: m.LoadCut) -> m.Done:
        if self.core.replaced_before(request):
            return m.Done(duplicate=True)
        self._give_up_cut()
        self._node.snapshots[request.folder].load(self.core)
        version = int(request.folder.split("-")[1])
        self.core.replaced(request, Base(version=version, folder=request.folder))
        return m.Done(duplicate=False)

    def _begin_cut(self, request: m.BeginCut | m.WriteCut) -> bool:
        self.core.check_sender(request.sender)
        if self._cut is not None and request.number <= self._cut.number:
            if request.number < self._cut.number:
                raise CutError("late")
            return False
        if self.core.version != request.step:
            raise CutError(f"at {self.core.version}, not at {request.step}")
        self.core.cut_begins()
        self._give_up_cut()
        self._cut = cut = CutUnderWay(self.core, request.folder, request.number)
        self._world.after(0.2 * self._world.random.random(), partial(self.do, partial(self._write_cut, cut)))
        return True

    def _give_up_cut(self) -> None:
        if self._cut is not None:
            self._cut.frozen.end()
            given_up = StoreError("the cut was given up")
            self._answer([Answer(ticket, given_up) for ticket in self._cut.awaited])
            self._cut = None

    def _write_cut(self, cut: CutUnderWay) -> None:
        """The cut's thread: some buckets at a time, steps between them."""
        if cut is not self._cut:
            return
        if self.core.version > cut.frozen.version:
            self._world.count("buckets written beside steps")
        cut.write_some()
        if not cut.written:
            wait = 0.2 * self._world.random.random()
            self._world.after(wait, partial(self.do, partial(self._write_cut, cut)))
            return
        self._node.snapshots[cut.folder] = cut.snapshot
        self.core.cut_written(Base(version=cut.frozen.version, folder=cut.folder))
        self._records += self.core.take_records()
        self._write_soon()
        self._answer(self._cut_answers())

    def _cut_answers(self) -> list[Answer]:
        """Who waits for a cut that is written has it now."""
        if self._cut is None or not self._cut.written:
            return []
        awaited, self._cut.awaited = self._cut.awaited, []
        return [Answer(ticket, m.CutWritten("[]")) for ticket in awaited]

    # ---- answers and the log -----------------------------------------------------------------------------------

    def _answer(self, answers: list[Answer]) -> None:
        for answer in answers:
            if self._log is not None and answer.after > self._durable:
                self._undurable.append(answer)
                continue
            node, reply = self._node, answer.reply
            if self is node.process and isinstance(reply, m.Committed) and reply.applied:
                node.acknowledged = max(node.acknowledged, reply.version)
            self._replies.pop(answer.ticket)(reply)

    def _write_soon(self) -> None:
        if self._log is not None and self._records and not self._writing:
            self._writing = True
            self._world.soon(partial(self.do, self._append))

    def _append(self) -> None:
        """The log's thread: append what there is, sync a moment later, then give the answers."""
        assert self._log is not None
        try:
            while self._records:
                self._log.append(self._records[0])
                self._records.pop(0)
                self._appended += 1
        except SupersededError:
            self.alive = False
            return
        except OSError:
            self._world.after(_RETRY_S, partial(self.do, self._append))
            return
        self._world.soon(partial(self.do, self._sync))

    def _sync(self) -> None:
        assert self._log is not None
        appended = self._appended
        try:
            self._log.sync()
        except (OSError, SupersededError):
            self.alive = False
            if self is self._node.process:
                self._world.after(0.3, self._node.start)
            return
        self._durable = appended
        self._writing = False
        undurable, self._undurable = self._undurable, []
        self._answer(undurable)
        self._write_soon()
