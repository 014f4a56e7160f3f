"""Writers as `StoreClient` behaves, round the real link: one generator per writer, one simulated connection per shard."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_store import messages as m
from memory_store.errors import PkmError, ShardUnreachableError, StoreError
from memory_store.grouping import group_by_address
from memory_store.link import Action, Complete, Connect, Link, Send
from memory_store.optimizers import Contributions, sum_by_row
from memory_store.steps import token_of_entry
from tests.simulation.plan import DIM, RATE, ROWS, TOKENS, WriterPlan
from tests.simulation.shards import ShardNode, ShardProcess
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.run import Run

DEADLINE_S = 30.0
NO_ROWS, NO_WEIGHTS = np.empty(0, np.uint32), np.empty(0, np.float32)

Outcome = m.Reply | PkmError
Work = Generator[list[int], None, None]


class Connection:
    """What `ReconnectingCarrier` is in a real client: the shell round the link to one shard."""

    def __init__(self, world: World, node: ShardNode, answered: Any, name: str) -> None:
        self._world, self._node, self._answered, self._name = world, node, answered, name
        self.link = Link(node.shard)
        self._generation = 0
        self._process: ShardProcess | None = None
        self._cut_off_until = 0.0
        self._connecting = False
        self.closed = False

    def submit(self, ticket: int, request: m.Request) -> None:
        self._do(self.link.submit(ticket, request))
        self._world.after(DEADLINE_S, partial(self._expire, ticket, StoreError("no answer in time")))
        if self._world.happens("clock jump", 0.02):
            self._world.after(
                0.6, partial(self._expire, ticket, ShardUnreachableError("the clock has jumped"))
            )

    def _expire(self, ticket: int, error: PkmError) -> None:
        if not self.closed:
            self._do(self.link.expire(ticket, error))

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(ticket, request):
                    self._send(ticket, request)
                case Complete(ticket, outcome):
                    self._answered(ticket, outcome)
                case Connect():
                    if not self._connecting:
                        self._connecting = True
                        self._world.soon(self._connect)

    def _connect(self) -> None:
        process = self._node.process
        if self.closed or not self.link.open_tickets():
            self._connecting = False
            return
        if self._world.happens("partition", 0.1):
            self._cut_off_until = self._world.now + 2 * self._world.random.random()
        if process is None or not process.alive or process.paused or self._world.now < self._cut_off_until:
            self._world.after(0.1, self._connect)
            return
        (answer,) = process.core.handle(-1, m.Describe())
        assert isinstance(answer.reply, m.ShardInfo)
        self._generation, self._process, self._connecting = self._generation + 1, process, False
        self._world.note(f"{self._name} connects to {answer.reply.incarnation} at {answer.reply.version}")
        self._do(self.link.connected_to(answer.reply))

    def _send(self, ticket: int, request: m.Request) -> None:
        process, generation, world = self._process, self._generation, self._world
        assert process is not None
        reply = partial(self._reply, generation, ticket)
        if world.happens("lost message", 0.3) or world.happens("broken connection", 0.1):
            world.after(0.05, partial(self._lost, generation))
            return
        if not (process.alive and not process.paused):
            world.after(0.3, partial(self._lost, generation))
        world.soon(partial(process.receive, request, reply))
        if world.happens("doubled message"):
            world.soon(partial(process.receive, request, lambda _: None))
        if world.happens("late message", 3 if isinstance(request, m.LoadCut | m.Initialise) else 0.3):
            world.after(3 * world.random.random(), partial(self._late, request))

    def _late(self, request: m.Request) -> None:
        """A copy that was on its way for long reaches whoever is the shard now."""
        if self._node.process is not None:
            self._node.process.receive(request, lambda _: None)

    def _reply(self, generation: int, ticket: int, outcome: Outcome) -> None:
        if self._world.happens("lost message", 0.3):
            self._world.after(0.05, partial(self._lost, generation))
        else:
            self._world.soon(partial(self._arrive, generation, ticket, outcome))

    def _arrive(self, generation: int, ticket: int, outcome: Outcome) -> None:
        if self.closed or (isinstance(outcome, PkmError) and generation != self._generation):
            return
        self._do(self.link.answered(ticket, outcome))

    def _lost(self, generation: int) -> None:
        if generation == self._generation and not self.closed:
            self._do(self.link.lost())

    def notice_death(self) -> None:
        """Signs of life have not come back: a dead or paused process is noticed."""
        process = self._process
        if process is not None and (not process.alive or process.paused or process is not self._node.process):
            self._lost(self._generation)


class Writer:
    """One trainer. `work` yields the tickets it waits for; their outcomes are in `outcomes`."""

    def __init__(self, run: Run, rank: int, epoch_hint: int) -> None:
        self.run, self.world, self.rank = run, run.world, rank
        self.alive = True
        self.finished = False
        self.sender = m.Sender("", 0, rank)
        self.outcomes: dict[int, Outcome] = {}
        self._tickets = count()
        self._shard_of: dict[int, int] = {}
        self.connections = [
            Connection(run.world, node, self._complete, f"writer {rank} of {epoch_hint}, shard {node.shard}")
            for node in run.nodes
        ]
        self._seq = [0] * len(run.nodes)
        self._lookups = count(1)
        self._waits_for: list[int] = []
        self._work: Work | None = None
        self._cuts = 0
        self._cut_under_way: tuple[str, list[int]] | None = None

    # ---- running the generator ---------------------------------------------------------------------------------

    def begin(self, work: Work) -> None:
        self._work = work
        self.world.soon(self._go_on)

    def _complete(self, ticket: int, outcome: Outcome) -> None:
        self.outcomes[ticket] = outcome
        if all(each in self.outcomes for each in self._waits_for):
            self.world.soon(self._go_on)

    def _go_on(self) -> None:
        if not self.alive or self._work is None or not all(each in self.outcomes for each in self._waits_for):
            return
        try:
            self._waits_for = []
            self._waits_for = next(self._work)
        except StopIteration:
            self._work = None
            return
        except PkmError as error:
            self.world.note(f"writer {self.rank} fails: {error}")
            self._work = None
            self.run.writer_failed(error)
            return
        if all(each in self.outcomes for each in self._waits_for):
            self.world.soon(self._go_on)

    def close(self) -> None:
        self.alive = False
        for connection in self.connections:
            connection.closed = True

    # ---- calls ---------------------------------------------------------------------------------------------------

    def send(self, shard: int, request: m.Request) -> int:
        ticket = next(self._tickets)
        self._shard_of[ticket] = shard
        self.connections[shard].submit(ticket, request)
        return ticket

    def to_all(self, request: m.Request) -> list[int]:
        return [self.send(shard, request) for shard in range(len(self.connections))]

    def take(self, ticket: int) -> Any:
        """The reply of a request that has come to its end; a refusal is raised."""
        outcome = self.outcomes[ticket]
        if isinstance(outcome, PkmError):
            raise outcome
        return outcome

    def next_seq(self, shard: int) -> int:
        self._seq[shard] += 1
        return self._seq[shard]

    # ---- what a writer does --------------------------------------------------------------------------------------

    def lead(self, epoch: int) -> Work:
        """Take over, go back to the last cut, and let the others begin."""
        described = self.to_all(m.Describe())
        yield described
        epoch = max([epoch, *(self.take(ticket).epoch for ticket in described)]) + 1
        session = f"session-{epoch}"
        opened = self.to_all(m.OpenGroup(session, epoch, self.run.plan.writers))
        yield opened
        for ticket in opened:
            self.take(ticket)
        self.sender = m.Sender(session, epoch, 0)
        cut = self.run.cuts[-1] if self.run.cuts else None
        for node in self.run.nodes:
            node.acknowledged = 0
        replaced = [
            self.send(shard, m.LoadCut(self.sender, self.next_seq(shard), cut))
            if cut is not None
            else self.send(shard, m.Initialise(self.sender, self.next_seq(shard)))
            for shard in range(len(self.connections))
        ]
        yield replaced
        for ticket in replaced:
            self.take(ticket)
        self.run.group_is_open(self, int(cut.split("-")[1]) if cut is not None else 0)

    def train(self, first: int) -> Work:
        unconfirmed: list[int] = []
        for step in range(first, self.run.plan.steps):
            part = self.run.plan.parts[step][self.rank]
            contributions = yield from self._look_up_and_contribute(step, part)
            yield [*contributions, *unconfirmed]
            for ticket in [*contributions, *unconfirmed]:
                self.take(ticket)
            hold = self.run.plan.held[step]
            commits = [
                self.send(
                    shard,
                    m.Commit(
                        self.sender,
                        self.next_seq(shard),
                        step,
                        1,
                        hold,
                        1 / self.run.plan.writers,
                        np.array([RATE]),
                        self.run.plan.discarded[step],
                    ),
                )
                for shard in range(len(self.connections))
            ]
            if hold:
                yield commits
                for ticket in commits:
                    self.take(ticket)
                commits = self.to_all(m.Apply(self.sender, step, np.array([0.5])))
            unconfirmed = commits
            if (step + 1) % self.run.cut_every == 0 or step + 1 == self.run.plan.steps:
                yield unconfirmed
                for ticket in unconfirmed:
                    self.take(ticket)
                unconfirmed = []
                yield from self._cut(step + 1)
        self.finished = True

    def _look_up_and_contribute(self, step: int, part: WriterPlan) -> Generator[list[int], None, list[int]]:
        bounds = self.run.placement.address_bounds(ROWS)
        tokens = token_of_entry(part.offsets)
        mine = [(part.rows >= low) & (part.rows < high) for low, high in pairwise(bounds)]
        lookup = next(self._lookups)
        asked = []
        for shard, chosen in enumerate(mine):
            offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens[chosen], minlength=TOKENS))]).astype(
                np.int32
            )
            rows, weights = part.rows[chosen], part.weights[chosen]
            if part.kind == "rows":
                request: m.Request = m.Fetch("memory", step, False, np.unique(rows), NO_ROWS, NO_WEIGHTS)
            else:
                keep = part.kind == "pool"
                request = m.Pool(self.sender, "memory", step, lookup, keep, False, offsets, rows, weights)
            asked.append(self.send(shard, request))
        yield asked
        contributions = []
        for shard, chosen in enumerate(mine):
            found = self.take(asked[shard]).values
            rows, weights = part.rows[chosen], part.weights[chosen]
            self.run.check_lookup(step, part, rows, weights, tokens[chosen], found)
            seq = self.next_seq(shard)
            if part.kind == "pool":
                update: m.Request = m.PoolGradient(self.sender, seq, step, lookup, part.gradient)
            elif part.kind == "rows":
                groups = group_by_address(rows)
                sums = sum_by_row(Contributions.grouped(groups, tokens[chosen], weights, part.gradient))
                update = m.RowGradient(self.sender, seq, step, "memory", groups.addresses, sums)
            else:
                offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens[chosen], minlength=TOKENS))])
                update = m.EntryGradient(
                    self.sender, seq, step, "memory", offsets.astype(np.int32), rows, weights, part.gradient
                )
            contributions.append(self.send(shard, update))
        return contributions

    def _cut(self, step: int) -> Work:
        """All writers stand at `step`; the first writes the cut, the others wait for it."""
        barrier = self.run.barrier(step)
        barrier.add(self.rank)
        while len(barrier) < self.run.plan.writers:
            yield [self._pause()]
        if self.rank == 0:
            yield from self._finish_cut()
            yield from self._begin_cut(step)
            while step == self.run.plan.steps and not (yield from self._finish_cut()):
                yield from self._begin_cut(step)
            barrier.add(-1)
        while -1 not in barrier:
            yield [self._pause()]

    def _begin_cut(self, step: int) -> Work:
        """Once all shards have begun, steps go on; one that has died since then fails the cut."""
        folder = f"cut-{step}"
        self._cuts += 1
        begun = self.to_all(m.BeginCut(self.sender, folder, step, self._cuts))
        yield begun
        for ticket in begun:
            self.take(ticket)
        self._cut_under_way = folder, self.to_all(m.WriteCut(self.sender, folder, step, self._cuts))

    def _finish_cut(self) -> Generator[list[int], None, bool]:
        """Wait for the cut under way, if there is one; whether it was written."""
        if self._cut_under_way is None:
            return True
        folder, tickets = self._cut_under_way
        self._cut_under_way = None
        yield tickets
        if any(isinstance(self.outcomes[ticket], PkmError) for ticket in tickets):
            self.world.count("failed cut")
            return False
        if folder not in self.run.cuts:
            self.run.cuts.append(folder)
        return True

    def _pause(self) -> int:
        """A ticket that is answered after a while."""
        ticket = next(self._tickets)
        self.world.after(0.02, partial(self._complete, ticket, m.Done(duplicate=False)))
        return ticket


def stale_update(sender: m.Sender, seq: int, step: int) -> list[m.Request]:
    """What a writer whose successor has taken over may still send: were it taken, the table would show it."""
    rows = np.arange(0, ROWS, 7, dtype=np.uint32)
    poison = np.full((rows.size, DIM), 1000, np.float32)
    return [
        m.RowGradient(sender, seq, step, "memory", rows, poison),
        m.Commit(sender, seq + 1, step, 1, False, 1.0, np.array([RATE])),
        m.Apply(sender, step, np.array([64.0])),
        m.Initialise(sender, seq + 2),
    ]
