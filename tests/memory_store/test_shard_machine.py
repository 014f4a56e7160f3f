"""The shard core against a dictionary, under any interleaving of writers, readers, repeats and take-overs.

Gradients are small integers, rates and scales powers of two, so every sum is exact in any order and the table
must equal the dictionary bit for bit. The machine keeps messages back as a network would, delivers them late,
in another order and again, and knows how each request must be answered, now or later.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memory_store import messages as m
from memory_store.errors import FencedError, NonFiniteGradientError, PkmError, StoreError
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.table_spec import OptimizerSpec, TableSpec
from tests.memory_store.reference import RowGradients, summed

DIM = 2
SPEC = TableSpec("memory", rows=3000, dim=DIM, initial_std=0.0, optimizer=OptimizerSpec("sgd"))
FIRST = 512 * 3  # this shard is the second of two: buckets 512 to 1023, three rows each
ADDRESSES = [FIRST, FIRST + 1, FIRST + 4, FIRST + 600]  # few, so that they meet
POWERS = [0.25, 0.5, 1.0, 2.0]
NO_ROWS, NO_WEIGHTS = np.empty(0, np.uint32), np.empty(0, np.float32)

Gradient = m.RowGradient | m.EntryGradient | m.PoolGradient
chances = st.randoms(use_true_random=True)  # its seed is Hypothesis's choice


def integers(chance: Random, *shape: int) -> np.ndarray:
    numbers = [chance.randint(-4, 4) for _ in range(int(np.prod(shape)))]
    return np.array(numbers, dtype=np.float32).reshape(shape)


def some_rows(chance: Random) -> np.ndarray:
    return np.array(chance.choices(ADDRESSES, k=chance.randrange(5)), dtype=np.uint32)


def by_row(rows: np.ndarray, gradients: np.ndarray) -> RowGradients:
    return summed({int(row): part} for row, part in zip(rows, gradients, strict=True))


@dataclass
class WriterModel:
    """A writer's share of the step under way, as the dictionary store sees it."""

    taken: dict[int, RowGradients] = field(default_factory=dict)
    announced: int | None = None


class ShardMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.core = ShardCore([SPEC], Placement.even(2), 1)
        self.rows: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(DIM))
        self.touched: dict[int, int] = {}
        self.version = 0
        self.epoch = 0
        self.tickets = 0
        self.waiting: dict[int, m.Request] = {}
        self.answers: dict[int, m.Reply | PkmError] = {}
        self.served: list[tuple[m.Fetch, m.Rows]] = []

    # ---- the dictionary store ------------------------------------------------------------------------------

    def new_step(self) -> None:
        self.shares = [WriterModel() for _ in range(self.writers)]
        self.settings = (0.5, 1.0, False)  # rate, scale, whether to hold
        self.held = False

    def gradients(self) -> RowGradients:
        return summed(part for share in self.shares for part in share.taken.values())

    def settle(self) -> None:
        """What the last message has completed."""
        complete = all(share.announced == len(share.taken) for share in self.shares)
        if complete and not self.held:
            if self.settings[2]:
                self.held = True
            else:
                self.apply(1.0)

    def apply(self, clipping: float) -> None:
        rate, scale, _ = self.settings
        for address, gradient in self.gradients().items():
            self.rows[address] = self.rows[address] - rate * scale * clipping * gradient
            self.touched[address] = self.version + 1
        self.version += 1
        self.new_step()

    def values(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.rows[int(address)] for address in rows]).reshape(rows.size, DIM)

    # ---- messages ------------------------------------------------------------------------------------------

    def send(self, request: m.Request) -> m.Reply | PkmError | None:
        self.tickets += 1
        self.waiting[self.tickets] = request
        for answer in self.core.handle(self.tickets, request):
            asked = self.waiting.pop(answer.ticket)  # a KeyError here: answered twice, or never asked
            self.answers[answer.ticket] = answer.reply
            if isinstance(asked, m.Fetch) and isinstance(answer.reply, m.Rows):
                self.served.append((asked, answer.reply))
        return self.answers.get(self.tickets)

    def next_seq(self, writer: int) -> int:
        self.seq[writer] += 1
        return self.seq[writer]

    def deliver(self, request: Gradient, parts: RowGradients) -> None:
        """A contribution arrives for the first time."""
        reply = self.send(request)
        assert isinstance(reply, m.WeightGradient) or reply == m.Done(duplicate=False)
        self.shares[request.sender.writer].taken[request.seq] = parts
        self.settle()

    def gradient(self, chance: Random, writer: int) -> tuple[Gradient, RowGradients]:
        """A contribution of any kind, and what it adds to each row."""
        sender, rows = self.senders[writer], some_rows(chance)
        numbers = integers(chance, rows.size, DIM)
        match chance.choice(["rows", "entries", "pool"]):
            case "rows":
                seq = self.next_seq(writer)
                return m.RowGradient(sender, seq, self.version, "memory", rows, numbers), by_row(
                    rows, numbers
                )
            case "entries":  # one entry a token, of half the gradient
                seq, offsets = self.next_seq(writer), np.arange(rows.size + 1, dtype=np.int32)
                half = np.full(rows.size, 0.5, np.float32)
                entries = m.EntryGradient(
                    sender, seq, self.version, "memory", offsets, rows, half, 2 * numbers
                )
                return entries, by_row(rows, numbers)
        pool, tokens = self.pool(chance, sender, rows)
        output_gradient = integers(chance, pool.offsets.size - 1, DIM)
        seq, each = self.next_seq(writer), output_gradient[tokens]
        request = m.PoolGradient(sender, seq, self.version, pool.lookup, output_gradient)
        self.weight_gradients[id(request)] = (self.values(rows) * each).sum(axis=1)
        return request, by_row(rows, pool.weights[:, None] * each)

    def pool(self, chance: Random, sender: m.Sender, rows: np.ndarray) -> tuple[m.Pool, np.ndarray]:
        """A kept lookup, whose output is checked, and the token of each of its entries."""
        weights = integers(chance, rows.size)
        cuts = sorted(chance.randint(0, rows.size) for _ in range(chance.randrange(3)))
        offsets = np.array([0, *cuts, rows.size], dtype=np.int32)
        self.lookups += 1
        request = m.Pool(sender, "memory", self.version, self.lookups, True, False, offsets, rows, weights)
        reply = self.send(request)
        assert isinstance(reply, m.Rows)
        weighted = weights[:, None] * self.values(rows)
        expected = [weighted[begin:end].sum(axis=0) for begin, end in pairwise(offsets)]
        np.testing.assert_array_equal(reply.values, expected)
        return request, np.repeat(np.arange(offsets.size - 1), np.diff(offsets))

    # ---- rules ---------------------------------------------------------------------------------------------

    @initialize(writers=st.integers(1, 3))
    def open_group(self, writers: int, jump: int = 1) -> None:
        fenced = [ticket for ticket, request in self.waiting.items() if isinstance(request, m.Commit)]
        self.epoch += jump
        self.writers = writers
        self.senders = [m.Sender(f"session-{self.epoch}", self.epoch, number) for number in range(writers)]
        self.seq = [0] * writers
        self.lookups = 0
        self.sent: list[Gradient | m.Commit] = []
        self.late: list[tuple[Gradient, RowGradients]] = []
        self.weight_gradients: dict[int, np.ndarray] = {}
        self.new_step()
        reply = self.send(m.OpenGroup(f"session-{self.epoch}", self.epoch, writers))
        assert reply == m.Done(duplicate=False)
        assert all(isinstance(self.answers[ticket], FencedError) for ticket in fenced)

    @rule(chance=chances)
    def write(self, chance: Random) -> None:
        """A writer makes contributions; some arrive now, some after its commit."""
        writer = chance.randrange(self.writers)
        if self.shares[writer].announced is None:
            for _ in range(chance.randint(1, 3)):
                made = self.gradient(chance, writer)
                if chance.random() < 0.3:
                    self.late.append(made)
                else:
                    self.deliver(*made)
                    self.sent.append(made[0])

    @rule(chance=chances)
    def deliver_late(self, chance: Random) -> None:
        if self.late:
            request, parts = self.late.pop(chance.randrange(len(self.late)))
            self.deliver(request, parts)
            self.sent.append(request)

    @rule(chance=chances)
    def commit(self, chance: Random) -> None:
        """The first to commit a step decides its settings; who disagrees is refused and commits again."""
        missing = [number for number, share in enumerate(self.shares) if share.announced is None]
        if not missing:
            return
        writer = chance.choice(missing)
        share, sender = self.shares[writer], self.senders[writer]
        announced = len(share.taken) + sum(request.sender == sender for request, _ in self.late)
        if len(missing) == self.writers:
            self.settings = chance.choice(POWERS), chance.choice(POWERS), chance.random() < 0.5
        rate, scale, hold = self.settings
        if len(missing) < self.writers:
            wrong = m.Commit(sender, 10**6, self.version, announced, hold, scale, np.array([2 * rate]))
            assert isinstance(self.send(wrong), StoreError)
        seq = self.next_seq(writer)
        request = m.Commit(sender, seq, self.version, announced, hold, scale, np.array([rate]))
        self.sent.append(request)
        share.announced = announced
        self.send(request)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(chance=chances)
    def apply_held(self, chance: Random) -> None:
        _, scale, _ = self.settings
        again = next(request for request in reversed(self.sent) if isinstance(request, m.Commit))
        reply = self.send(again)
        assert isinstance(reply, m.Committed)
        squares = sum(float((part**2).sum()) for part in self.gradients().values())
        assert reply.squared_norms.sum() == squares * scale**2
        clipping = chance.choice(POWERS)
        apply = m.Apply(chance.choice(self.senders), self.version, np.array([clipping]))
        self.apply(clipping)
        for _ in range(2):
            reply = self.send(apply)
            assert isinstance(reply, m.Committed)
            assert (reply.applied, reply.version) == (True, self.version)

    @rule(chance=chances)
    def finish_step(self, chance: Random) -> None:
        """Some more contributions, and then all that is missing from the step, in any order."""
        version = self.version
        for _ in range(chance.randrange(3)):
            self.write(chance)
        while self.version == version:
            if self.held:
                self.apply_held(chance)
            else:
                chance.choice([self.commit, self.deliver_late, self.send_again])(chance)

    @rule(chance=chances)
    def fetch(self, chance: Random) -> None:
        ahead = chance.randint(-1, 2)
        if self.version + ahead < 0:
            return
        rows = some_rows(chance)
        reply = self.send(m.Fetch("memory", self.version + ahead, False, rows, NO_ROWS, NO_WEIGHTS))
        if ahead < 0:
            assert isinstance(reply, StoreError)
        else:
            assert isinstance(reply, m.Rows) if ahead == 0 else reply is None

    @rule(chance=chances)
    def send_again(self, chance: Random) -> None:
        if not self.sent:
            return
        request = chance.choice(self.sent)
        reply = self.send(request)
        if isinstance(request, m.PoolGradient):
            assert isinstance(reply, m.WeightGradient)
            expected = self.weight_gradients[id(request)] if request.step == self.version else NO_WEIGHTS
            np.testing.assert_array_equal(reply.gradient, expected)
        elif not isinstance(request, m.Commit):
            assert reply == m.Done(duplicate=True)
        elif request.step < self.version or self.held:
            assert isinstance(reply, m.Committed)
            assert reply.applied == (request.step < self.version)
        else:
            assert reply is None

    @rule(chance=chances)
    def send_as_predecessor(self, chance: Random) -> None:
        epoch = self.epoch - chance.randint(1, 3)
        old = m.Sender(f"session-{epoch}", max(0, epoch), 0)
        rows, no_tokens = np.array(ADDRESSES, np.uint32), np.zeros(1, np.int32)
        request = chance.choice(
            [
                m.RowGradient(old, 1, self.version, "memory", rows, np.ones((4, DIM), np.float32)),
                m.Commit(old, 2, self.version, 0, False, 1.0, np.array([1.0])),
                m.Apply(old, self.version, np.array([1.0])),
                m.Initialise(old, 1),
                m.Pool(old, "memory", self.version, 1, True, False, no_tokens, NO_ROWS, NO_WEIGHTS),
            ]
        )
        assert isinstance(self.send(request), FencedError)

    @rule(chance=chances)
    def send_nonsense(self, chance: Random) -> None:
        sender, one = chance.choice(self.senders), np.array([FIRST], np.uint32)
        good = m.RowGradient(sender, 10**6, self.version, "memory", one, np.ones((1, DIM), np.float32))
        nan = replace(good, gradients=np.array([[1, np.nan]], dtype=np.float32))
        flawed = [
            replace(good, addresses=one - np.uint32(1)),
            replace(good, gradients=np.ones((1, DIM + 1), np.float32)),
            replace(good, step=self.version + 2),
            m.Commit(sender, 10**6, self.version, 0, False, 1.0, np.array([np.nan])),
        ]
        assert isinstance(self.send(nan), NonFiniteGradientError)
        assert isinstance(self.send(chance.choice(flawed)), StoreError)

    @precondition(lambda self: self.waiting)
    @rule(chance=chances)
    def give_up(self, chance: Random) -> None:
        """The client of a waiting request has gone; if it was a commit, it stays made."""
        ticket = chance.choice(sorted(self.waiting))
        self.core.abandon(ticket)
        del self.waiting[ticket]

    @rule(chance=chances)
    def upheaval(self, chance: Random) -> None:
        """Now and then a new group takes over, sometimes after a return to the first values."""
        if chance.random() < 0.1:
            assert self.send(m.Initialise(self.senders[0], 10**7)) == m.Done(duplicate=False)
            self.version = 0
            self.rows.clear()
            self.touched.clear()
            self.open_group(self.writers)
        elif chance.random() < 0.3:
            self.open_group(chance.randint(1, 3), jump=chance.randint(1, 3))

    # ---- what must hold after every message ----------------------------------------------------------------

    @invariant()
    def table_equals_the_dictionary(self) -> None:
        part = self.core.tables["memory"]
        expected = np.zeros_like(part.values)
        last_step = np.zeros_like(part.last_step)
        for address, values in self.rows.items():
            expected[address - FIRST] = values
        for address, step in self.touched.items():
            last_step[address - FIRST] = step
        np.testing.assert_array_equal(part.values, expected)
        np.testing.assert_array_equal(part.last_step, last_step)
        assert self.core.version == self.version

    @invariant()
    def lookups_saw_the_version_they_asked_for(self) -> None:
        for asked, rows in self.served:
            assert asked.version == self.version
            np.testing.assert_array_equal(rows.values, self.values(asked.addresses))
        self.served.clear()

    @invariant()
    def nobody_waits_without_reason(self) -> None:
        for request in self.waiting.values():
            if isinstance(request, m.Fetch):
                assert request.version > self.version
            else:
                assert isinstance(request, m.Commit)
                assert (request.sender.epoch, request.step) == (self.epoch, self.version)
                assert not self.held


TestShardMachine = ShardMachine.TestCase
TestShardMachine.settings = settings(max_examples=150, stateful_step_count=30)
