"""The shard core against a dictionary, under any interleaving of writers, readers, repeats and take-overs.

Gradients are small integers, rates and scales powers of two, so every sum is exact in any order and the table
must equal the dictionary bit for bit. The machine keeps a message back as a network would, delivers messages
late, in any order and again, and holds the model's view of what each outstanding request is to be answered.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise

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

addresses = st.lists(st.sampled_from(ADDRESSES), max_size=4)
integers = st.integers(-4, 4)
powers = st.sampled_from([0.25, 0.5, 1.0, 2.0])


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

    @initialize(writers=st.integers(1, 3))
    def start(self, writers: int) -> None:
        self.open_group(writers, 1)

    def new_step(self) -> None:
        self.shares = [WriterModel() for _ in range(self.writers)]
        self.held = False
        self.rate, self.scale, self.hold = 0.5, 1.0, False

    def complete(self) -> bool:
        return all(share.announced == len(share.taken) for share in self.shares)

    def settle(self) -> None:
        """What follows in the model from the last message."""
        if not self.held and self.complete():
            if self.hold:
                self.held = True
            else:
                self.apply(1.0)

    def apply(self, clipping: float) -> None:
        parts = [part for share in self.shares for part in share.taken.values()]
        for address, gradient in summed(parts, self.scale * clipping * self.rate).items():
            self.rows[address] = self.rows[address] - gradient
            self.touched[address] = self.version + 1
        self.version += 1
        self.kept: dict[int, tuple[m.Pool, m.Sender]] = {}
        self.new_step()

    # ---- messages ------------------------------------------------------------------------------------------

    def send(self, request: m.Request) -> int:
        self.tickets += 1
        self.waiting[self.tickets] = request
        for answer in self.core.handle(self.tickets, request):
            asked = self.waiting.pop(answer.ticket)  # a KeyError here: answered twice, or never asked
            self.answers[answer.ticket] = answer.reply
            if isinstance(asked, m.Fetch) and isinstance(answer.reply, m.Rows):
                self.served.append((asked, answer.reply))
        return self.tickets

    def reply(self, request: m.Request) -> m.Reply | PkmError | None:
        return self.answers.get(self.send(request))

    def next_seq(self, writer: int) -> int:
        self.seq[writer] += 1
        return self.seq[writer]

    def contribute(self, writer: int, seq: int, gradients: RowGradients) -> None:
        self.shares[writer].taken[seq] = gradients
        self.settle()

    def values(self, chosen: list[int]) -> np.ndarray:
        return np.array([self.rows[address] for address in chosen]).reshape(len(chosen), DIM)

    def may_contribute(self, writer: int) -> bool:
        return self.shares[writer].announced is None

    # ---- rules ---------------------------------------------------------------------------------------------

    @rule(writers=st.integers(1, 3), jump=st.integers(1, 3), often=st.integers(0, 3))
    def take_over(self, writers: int, jump: int, often: int) -> None:
        if often == 0:
            self.open_group(writers, jump)

    def open_group(self, writers: int, jump: int) -> None:
        self.epoch += jump
        self.writers = writers
        self.senders = [m.Sender(f"session-{self.epoch}", self.epoch, number) for number in range(writers)]
        self.seq = [0] * writers
        self.kept = {}
        self.sent: list[m.RowGradient | m.EntryGradient | m.Commit] = []
        self.late: list[tuple[m.RowGradient | m.EntryGradient, RowGradients]] = []
        self.lookups = 0
        fenced = [ticket for ticket, request in self.waiting.items() if isinstance(request, m.Commit)]
        self.new_step()
        assert self.reply(m.OpenGroup(f"session-{self.epoch}", self.epoch, writers)) == m.Done(
            duplicate=False
        )
        assert all(isinstance(self.answers[ticket], FencedError) for ticket in fenced)

    @rule(chosen=addresses, ahead=st.integers(-1, 2))
    def fetch(self, chosen: list[int], ahead: int) -> None:
        version = self.version + ahead
        if version < 0:
            return
        none = np.empty(0, np.uint32)
        request = m.Fetch(
            "memory", version, False, np.array(chosen, np.uint32), none, np.empty(0, np.float32)
        )
        reply = self.reply(request)
        if ahead < 0:
            assert isinstance(reply, StoreError)
        else:
            assert isinstance(reply, m.Rows) if ahead == 0 else reply is None

    @rule(writer=st.integers(0, 2), data=st.data(), tokens=st.integers(0, 3))
    def pool(self, writer: int, data: st.DataObject, tokens: int) -> None:
        sender = self.senders[writer % self.writers]
        entries = [data.draw(st.lists(st.sampled_from(ADDRESSES), max_size=5)) for _ in range(tokens)]
        chosen = [address for token in entries for address in token]
        weights = np.array(
            data.draw(st.lists(integers, min_size=len(chosen), max_size=len(chosen))), np.float32
        )
        offsets = np.cumsum([0] + [len(token) for token in entries]).astype(np.int32)
        self.lookups += 1
        request = m.Pool(
            sender,
            "memory",
            self.version,
            self.lookups,
            True,
            False,
            offsets,
            np.array(chosen, np.uint32),
            weights,
        )
        reply = self.reply(request)
        assert isinstance(reply, m.Rows)
        weighted = weights[:, None] * self.values(chosen)
        expected = [weighted[begin:end].sum(axis=0) for begin, end in pairwise(offsets)]
        np.testing.assert_array_equal(reply.values, np.array(expected).reshape(tokens, DIM))
        self.kept[self.lookups] = (request, sender)

    @precondition(lambda self: any(self.may_contribute(sender.writer) for _, sender in self.kept.values()))
    @rule(data=st.data())
    def pool_gradient(self, data: st.DataObject) -> None:
        open_lookups = [n for n, (_, sender) in self.kept.items() if self.may_contribute(sender.writer)]
        lookup = data.draw(st.sampled_from(open_lookups))
        pool, sender = self.kept[lookup]
        token = np.repeat(np.arange(pool.offsets.size - 1), np.diff(pool.offsets))
        shape = (pool.offsets.size - 1, DIM)
        numbers = data.draw(st.lists(integers, min_size=shape[0] * DIM, max_size=shape[0] * DIM))
        gradient = np.array(numbers, dtype=np.float32).reshape(shape)
        request = m.PoolGradient(sender, self.next_seq(sender.writer), self.version, lookup, gradient)
        expected = (self.values(pool.addresses.tolist()) * gradient[token]).sum(axis=1)
        for _ in range(data.draw(st.integers(1, 2))):
            reply = self.reply(request)
            assert isinstance(reply, m.WeightGradient)
            np.testing.assert_array_equal(reply.gradient, expected)
        each = pool.weights[:, None] * gradient[token]
        parts = [{int(row): part} for row, part in zip(pool.addresses, each, strict=True)]
        self.contribute(sender.writer, request.seq, summed(parts))

    @rule(writer=st.integers(0, 2), data=st.data(), late=st.booleans(), by_entry=st.booleans())
    def gradient(self, writer: int, data: st.DataObject, late: bool, by_entry: bool) -> None:
        """Of rows, or of entries that are weighted; sent at once, or kept back until after the commit."""
        writer %= self.writers
        if not self.may_contribute(writer):
            return
        chosen = data.draw(addresses)
        numbers = data.draw(st.lists(integers, min_size=len(chosen) * DIM, max_size=len(chosen) * DIM))
        gradients = np.array(numbers, dtype=np.float32).reshape(len(chosen), DIM)
        sender, seq, rows = self.senders[writer], self.next_seq(writer), np.array(chosen, np.uint32)
        request: m.RowGradient | m.EntryGradient
        if by_entry:  # one entry a token, at half the gradient
            half, offsets = np.full(len(chosen), 0.5, np.float32), np.arange(len(chosen) + 1, dtype=np.int32)
            request = m.EntryGradient(sender, seq, self.version, "memory", offsets, rows, half, 2 * gradients)
        else:
            request = m.RowGradient(sender, seq, self.version, "memory", rows, gradients)
        self.sent.append(request)
        parts = summed([{address: part} for address, part in zip(chosen, gradients, strict=True)])
        if late:
            self.late.append((request, parts))
        else:
            assert self.reply(request) == m.Done(duplicate=False)
            self.contribute(writer, request.seq, parts)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.integers(0, len(self.late) - 1)))

    def deliver(self, number: int) -> None:
        request, parts = self.late.pop(number)
        assert self.reply(request) == m.Done(duplicate=False)
        self.contribute(request.sender.writer, request.seq, parts)

    @rule(data=st.data(), rate=powers, hold=st.booleans(), clipping=powers)
    def finish_step(self, data: st.DataObject, rate: float, hold: bool, clipping: float) -> None:
        """All that is missing from the step arrives, in any order."""
        version = self.version
        while self.version == version and not self.held:
            missing = [number for number, share in enumerate(self.shares) if share.announced is None]
            choice = data.draw(st.integers(0, len(missing) + len(self.late) - 1))
            if choice < len(missing):
                self.commit_share(missing[choice], rate, 1.0, hold)
            else:
                self.deliver(choice - len(missing))
        if self.held:
            self.apply_held(clipping, 0)

    @precondition(lambda self: self.version == 0 or self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        on_the_way = {id(request) for request, _ in self.late}
        known = [request for request in self.sent if id(request) not in on_the_way]
        if not known:
            return
        request = data.draw(st.sampled_from(known))
        reply = self.reply(request)
        if not isinstance(request, m.Commit):
            assert reply == m.Done(duplicate=True)
        elif request.step < self.version:
            assert isinstance(reply, m.Committed)
            assert reply.applied
        elif self.held:
            assert isinstance(reply, m.Committed)
            assert not reply.applied
        else:
            assert reply is None

    @rule(writer=st.integers(0, 2), rate=powers, scale=powers, hold=st.booleans())
    def commit(self, writer: int, rate: float, scale: float, hold: bool) -> None:
        if self.shares[writer % self.writers].announced is None:
            self.commit_share(writer % self.writers, rate, scale, hold)

    def commit_share(self, writer: int, rate: float, scale: float, hold: bool) -> None:
        """The first to commit a step decides its settings; who disagrees is refused and commits again."""
        share, sender = self.shares[writer], self.senders[writer]
        outstanding = sum(request.sender.writer == writer for request, _ in self.late)
        announced = len(share.taken) + outstanding
        if all(other.announced is None for other in self.shares):
            self.rate, self.scale, self.hold = rate, scale, hold
        else:
            other_rate = np.array([self.rate * 2])
            wrong = m.Commit(sender, 10**6, self.version, announced, self.hold, self.scale, other_rate)
            assert isinstance(self.reply(wrong), StoreError)
        seq, rates = self.next_seq(writer), np.array([self.rate])
        request = m.Commit(sender, seq, self.version, announced, self.hold, self.scale, rates)
        self.sent.append(request)
        share.announced = announced
        self.send(request)
        self.settle()

    @precondition(lambda self: self.held)
    @rule(clipping=powers, writer=st.integers(0, 2))
    def apply_held(self, clipping: float, writer: int) -> None:
        squares = sum(float((part**2).sum()) for part in self.step_gradients().values())
        again = next(request for request in reversed(self.sent) if isinstance(request, m.Commit))
        held = self.reply(again)
        assert isinstance(held, m.Committed)
        assert held.squared_norms.sum() == squares * self.scale**2
        apply = m.Apply(self.senders[writer % self.writers], self.version, np.array([clipping]))
        self.apply(clipping)
        for _ in range(2):
            reply = self.reply(apply)
            assert isinstance(reply, m.Committed)
            assert (reply.applied, reply.version) == (True, self.version)

    def step_gradients(self) -> RowGradients:
        return summed([part for share in self.shares for part in share.taken.values()])

    @precondition(lambda self: self.epoch > 1)
    @rule(kind=st.sampled_from(["gradient", "commit", "apply", "initialise", "pool"]), age=st.integers(1, 3))
    def send_as_predecessor(self, kind: str, age: int) -> None:
        old = m.Sender(f"session-{self.epoch - age}", max(0, self.epoch - age), 0)
        none, rows = np.empty(0, np.uint32), np.array(ADDRESSES, np.uint32)
        requests: dict[str, m.Request] = {
            "gradient": m.RowGradient(old, 1, self.version, "memory", rows, np.ones((4, DIM), np.float32)),
            "commit": m.Commit(old, 2, self.version, 0, False, 1.0, np.array([1.0])),
            "apply": m.Apply(old, self.version, np.array([1.0])),
            "initialise": m.Initialise(old),
            "pool": m.Pool(
                old,
                "memory",
                self.version,
                1,
                True,
                False,
                np.zeros(1, np.int32),
                none,
                np.empty(0, np.float32),
            ),
        }
        assert isinstance(self.reply(requests[kind]), FencedError)

    @rule(writer=st.integers(0, 2), flaw=st.sampled_from(["nan", "row", "width", "step", "offsets"]))
    def send_nonsense(self, writer: int, flaw: str) -> None:
        sender = self.senders[writer % self.writers]
        good = m.RowGradient(
            sender, 10**6, self.version, "memory", np.array([FIRST], np.uint32), np.ones((1, DIM), np.float32)
        )
        offsets = np.array([0, 2, 1], dtype=np.int32)
        flawed: dict[str, m.Request] = {
            "nan": replace(good, gradients=np.array([[1, np.nan]], dtype=np.float32)),
            "row": replace(good, addresses=np.array([FIRST - 1], np.uint32)),
            "width": replace(good, gradients=np.ones((1, DIM + 1), np.float32)),
            "step": replace(good, step=self.version + 1),
            "offsets": m.Pool(
                sender,
                "memory",
                self.version,
                0,
                True,
                False,
                offsets,
                good.addresses,
                np.ones(1, np.float32),
            ),
        }
        reply = self.reply(flawed[flaw])
        assert isinstance(reply, NonFiniteGradientError if flaw == "nan" else StoreError)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The client of a waiting request has gone; if it was a commit, it stays made."""
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.core.abandon(ticket)
        del self.waiting[ticket]

    @rule(often=st.integers(0, 5))
    def start_again(self, often: int) -> None:
        if often > 0:
            return
        assert self.reply(m.Initialise(self.senders[0])) == m.Done(duplicate=False)
        self.version = 0
        self.rows.clear()
        self.touched.clear()
        self.kept = {}
        self.open_group(self.writers, 1)

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
            np.testing.assert_array_equal(rows.values, self.values(asked.addresses.tolist()))
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
TestShardMachine.settings = settings(max_examples=60, stateful_step_count=40)
