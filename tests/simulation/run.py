"""One run: a small training under faults, from its seed, and what must be true at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.errors import FencedError, PkmError, ShardUnreachableError, StoreError
from memory_store.placement import Placement
from tests.simulation.plan import DIM, PER_TOKEN, ROWS, Plan, WriterPlan, arrays_of, content
from tests.simulation.shards import ShardNode
from tests.simulation.world import World
from tests.simulation.writers import Writer, stale_update

STEPS = 10
FAULTS_S = 6.0
END_S = 400.0


@dataclass
class Outcome:
    """What a run has shown. All of the counts but the first two must be 0."""

    seed: int
    finished: bool
    wrong_lookups: int = 0
    corrupted: int = 0  # rows that are wrong in another way
    lost: int = (
        0  # rows to which a step was not added, and shards that came back without what they had acknowledged
    )
    doubled: int = 0  # rows to which a step was added twice
    stale_accepted: int = 0
    unexplained: list[str] = field(default_factory=list)
    groups: int = 0
    events: int = 0
    resent: int = 0
    seconds: float = 0.0
    fired: dict[str, int] = field(default_factory=dict)
    trace: str = ""

    @property
    def good(self) -> bool:
        wrong = self.wrong_lookups + self.corrupted + self.lost + self.doubled + self.stale_accepted
        return self.finished and not wrong and not self.unexplained


class Run:
    """The parts of a run, and what they tell each other without a network: the coordinator's part."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        choice = Random(f"shape {seed}")
        self.seed = seed
        self.optimizer = choice.choice(["sgd", "sgd", "sgd", "adam"])
        self.logged = choice.random() < 0.75
        self.plan = Plan(seed, STEPS, choice.choice([1, 2, 2]), self.optimizer)
        self.placement = Placement.even(choice.choice([1, 2, 3]))
        self.cut_every = choice.choice([3, 5])
        self.world = World(seed, FAULTS_S)
        self.world.print_trace = trace
        self.outcome = Outcome(seed, finished=False)
        self.nodes = [
            ShardNode(self.world, self.plan.spec, self.placement, shard, logged=self.logged)
            for shard in range(self.placement.shards)
        ]
        self.cuts: list[str] = []
        self.writers: list[Writer] = []
        self._barriers: dict[int, set[int]] = {}
        self._epoch = 0
        self._restarting = False
        self._stale: list[m.Sender] = []

    def go(self) -> Outcome:
        """Run to the end, and judge."""
        outcome, world = self.outcome, self.world
        self._start_writers()
        world.soon(self._disturb)
        world.soon(self._watch)
        try:
            outcome.finished = world.run(self._done, END_S)
        except AssertionError as error:
            outcome.lost += 1
            outcome.unexplained.append(str(error))
        except Exception as error:
            outcome.unexplained.append(f"{type(error).__name__}: {error}")
        if outcome.finished:
            self._judge()
        outcome.events, outcome.seconds, outcome.fired = world.events, world.now, dict(world.fired)
        outcome.trace = world.trace_digest
        return outcome

    def _done(self) -> bool:
        return bool(self.writers) and all(writer.finished for writer in self.writers)

    # ---- writers -------------------------------------------------------------------------------------------------

    def _start_writers(self) -> None:
        """A group of writers begins, with the first of them alone."""
        self._restarting = False
        self.outcome.groups += 1
        self._barriers.clear()
        self.writers = [Writer(self, rank, self.outcome.groups) for rank in range(self.plan.writers)]
        self.writers[0].begin(self.writers[0].lead(self._epoch))

    def group_is_open(self, leader: Writer, first: int) -> None:
        """The tables are at `first`: all writers train."""
        self._epoch = leader.sender.epoch
        for writer in self.writers:
            writer.sender = m.Sender(leader.sender.session, leader.sender.epoch, writer.rank)
            if writer is leader:
                self.world.soon(partial(leader.begin, leader.train(first)))
            else:
                writer.begin(writer.train(first))

    def writer_failed(self, error: PkmError) -> None:
        """All writers are started again, as the driver does it.

        With a log there must be a reason: a deadline that came too early, or another group that has taken over. The real
        deadline is far behind the last fault, so that only a request that got lost can meet it.
        """
        if self.logged and not isinstance(error, ShardUnreachableError | FencedError):
            self.outcome.unexplained.append(f"a writer failed: {error}")
        self._restart_writers()

    def _restart_writers(self) -> None:
        if self._restarting:
            return
        self._restarting = True
        for writer in self.writers:
            self.outcome.resent += sum(connection.link.resent for connection in writer.connections)
            if writer.sender.epoch:
                self._stale.append(writer.sender)
            writer.close()
        self.writers = []
        self.world.after(0.05 + self.world.random.random(), self._start_writers)

    def barrier(self, step: int) -> set[int]:
        """The ranks that stand at `step`; -1 once its cut is written."""
        return self._barriers.setdefault(step, set())

    # ---- faults --------------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        world, random = self.world, self.world.random
        node = random.choice(self.nodes)
        if world.happens("killed shard"):
            node.kill(power=world.happens("power loss", 2))
        if world.happens("paused shard", 0.5):
            node.pause()
        if world.happens("killed writers", 0.3):
            self._restart_writers()
        stale = [sender for sender in self._stale if sender.epoch < self._epoch]
        if stale and world.happens("stale writer", 2):
            self._send_stale(node, random.choice(stale))
        world.after(random.random() * 0.5, self._disturb)

    def _send_stale(self, node: ShardNode, sender: m.Sender) -> None:
        """A writer that was killed, it was thought, goes on after its successor has taken over."""
        process = node.process
        if process is None:
            return
        for request in stale_update(sender, 10**6, process.core.version):
            process.receive(request, self._check_stale)

    def _check_stale(self, outcome: m.Reply | PkmError) -> None:
        if not isinstance(outcome, FencedError):
            # A shard that has begun anew knows no epoch yet, and no group either: it refuses all the same.
            self.outcome.stale_accepted += not isinstance(outcome, StoreError)

    def _watch(self) -> None:
        """Signs of life, and the restart of what is dead."""
        for writer in self.writers:
            for connection in writer.connections:
                connection.notice_death()
        for node in self.nodes:
            if node.process is not None and not node.process.alive:
                node.start()
        self.world.after(1.0, self._watch)

    # ---- what must be true -----------------------------------------------------------------------------------------

    def check_lookup(
        self,
        step: int,
        part: WriterPlan,
        rows: NDArray[np.uint32],
        weights: NDArray[np.float32],
        tokens: NDArray[np.int32],
        found: NDArray[np.float32],
    ) -> None:
        """A lookup for version `step` must have seen exactly the table of that version."""
        if self.plan.tables is None:
            return
        table = self.plan.tables[step]
        if part.kind == "rows":
            expected = table[np.unique(rows)]
        else:
            expected = np.zeros((part.rows.size // PER_TOKEN, table.shape[1]))
            np.add.at(expected, tokens, weights[:, None] * table[rows])
        self.outcome.wrong_lookups += not np.array_equal(found, expected)

    def _judge(self) -> None:
        """The table, the optimizer's state and the last steps are those of a run without faults."""
        for node in self.nodes:
            expected = self.plan.undisturbed(self.placement, node.shard)
            found = [content(node.snapshots[f"cut-{STEPS}"].arrays)]
            process = node.process
            # One that was killed after the last cut is as good as its log, if it has one.
            if process is not None and process.alive and (self.logged or process.core.version):
                found.append(content(arrays_of(process.core)))
                if process.core.version != STEPS:
                    self.outcome.unexplained.append(f"shard {node.shard} is at {process.core.version}")
            for each in found:
                if each != expected:
                    self._count_wrong_rows(node.shard, each[0], expected[0])

    def _count_wrong_rows(self, shard: int, found: bytes, expected: bytes) -> None:
        """Lost, doubled or corrupted: whether what is too little or too much in a row is what one step has added."""
        values, should = (np.frombuffer(each, np.float32).reshape(-1, DIM) for each in (found, expected))
        first = int(self.placement.address_bounds(ROWS)[shard])
        outcome = self.outcome
        wrong = np.flatnonzero((values != should).any(axis=1))
        outcome.corrupted += wrong.size == 0  # the optimizer's state alone
        for row in wrong:
            excess = values[row] - should[row]
            tables = self.plan.tables or []
            steps = [after[first + row] - before[first + row] for before, after in pairwise(tables)]
            if any(step.any() and np.array_equal(excess, step) for step in steps):
                outcome.doubled += 1
            elif any(step.any() and np.array_equal(excess, -step) for step in steps):
                outcome.lost += 1
            else:
                outcome.corrupted += 1
