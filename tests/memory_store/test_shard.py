"""The shard core, one request at a time: what waits, what is a repetition, what is refused unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memory_store import messages as m
from memory_store.errors import FencedError, NonFiniteGradientError, PkmError, StoreError
from memory_store.placement import BUCKETS, Placement
from memory_store.shard import ShardCore
from memory_store.table_spec import OptimizerSpec, TableSpec

# Two tables of which the second has rows missing in its last buckets, on the second of two shards.
SPECS = [
    TableSpec("memory", rows=4096, dim=2, optimizer=OptimizerSpec("sgd")),
    TableSpec("other", rows=1500, dim=3, dtype="float64", optimizer=OptimizerSpec("adam")),
]
FIRST = 2048  # the first address of `memory` on this shard
A = FIRST + 10
WRITERS = (m.Sender("session", 1, 0), m.Sender("session", 1, 1))
WRITER = WRITERS[0]
RATES = np.array([0.5, 0.5])


class Shard:
    """A core, and the answers it gave by ticket."""

    def __init__(self, writers: int = 1, **settings: Any) -> None:
        self.core = ShardCore(SPECS, Placement.even(2), 1, **settings)
        self.answers: dict[int, m.Reply | PkmError] = {}
        self._tickets = 0
        self.ask(m.OpenGroup("session", 1, writers))

    def send(self, request: m.Request) -> int:
        self._tickets += 1
        for answer in self.core.handle(self._tickets, request):
            assert answer.ticket not in self.answers, "answered twice"
            self.answers[answer.ticket] = answer.reply
        return self._tickets

    def ask(self, request: m.Request) -> Any:
        """The reply, which must be there at once; a refusal is raised."""
        reply = self.answers[self.send(request)]
        if isinstance(reply, PkmError):
            raise reply
        return reply

    def bytes(self) -> bytes:
        """Everything that a step may change."""
        return b"".join(
            array.tobytes()
            for part in self.core.tables.values()
            for array in (part.values, part.first_state, part.second_state, part.last_step, part.accesses)
        )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        before, version = self.bytes(), self.core.version
        yield
        assert (self.bytes(), self.core.version) == (before, version)


def addresses(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


def fetch(*numbers: int, version: int = 0) -> m.Fetch:
    return m.Fetch("memory", version, False, addresses(*numbers), addresses(), np.empty(0, np.float32))


def pool(*numbers: int, version: int = 0, lookup: int = 1, sender: m.Sender = WRITER) -> m.Pool:
    """One token that reads all rows with weight 1."""
    offsets = np.array([0, len(numbers)], dtype=np.int32)
    weights = np.ones(len(numbers), dtype=np.float32)
    return m.Pool(sender, "memory", version, lookup, True, False, offsets, addresses(*numbers), weights)


def gradient(*numbers: int, seq: int = 1, step: int = 0, sender: m.Sender = WRITER) -> m.RowGradient:
    ones = np.ones((len(numbers), 2), dtype=np.float32)
    return m.RowGradient(sender, seq, step, "memory", addresses(*numbers), ones)


def pool_gradient(seq: int = 1, step: int = 0, lookup: int = 1, sender: m.Sender = WRITER) -> m.PoolGradient:
    return m.PoolGradient(sender, seq, step, lookup, np.ones((1, 2), dtype=np.float32))


def entry_gradient(*numbers: int, seq: int = 1, step: int = 0, sender: m.Sender = WRITER) -> m.EntryGradient:
    """One token that reads all rows with weight 1, and a gradient of 1."""
    offsets, weights = np.array([0, len(numbers)], dtype=np.int32), np.ones(len(numbers), dtype=np.float32)
    ones = np.ones((1, 2), dtype=np.float32)
    return m.EntryGradient(sender, seq, step, "memory", offsets, addresses(*numbers), weights, ones)


def replacing(*numbers: int, seq: int = 1, step: int = 0, sender: m.Sender = WRITER) -> m.ReplaceRows:
    """All of the rows become 7."""
    sevens = np.full((len(numbers), 2), 7, dtype=np.float32)
    return m.ReplaceRows(sender, seq, step, "memory", addresses(*numbers), sevens)


def commit(
    contributions: int = 1, seq: int = 2, step: int = 0, sender: m.Sender = WRITER, hold: bool = False
) -> m.Commit:
    return m.Commit(sender, seq, step, contributions, hold, 1.0, RATES)


# ---- steps -------------------------------------------------------------------------------------------------


def test_a_step_moves_the_rows_of_its_gradient_and_the_version():
    shard = Shard()
    before = shard.core.tables["memory"].values.copy()
    assert shard.ask(gradient(A, A + 1)) == m.Done(duplicate=False)
    reply = shard.ask(commit())
    assert (reply.version, reply.applied, shard.core.version) == (1, True, 1)
    changed = np.nonzero((shard.core.tables["memory"].values != before).any(axis=1))[0]
    assert changed.tolist() == [10, 11]
    np.testing.assert_array_equal(shard.ask(fetch(A, version=1)).values, before[[10]] - np.float32(0.5))


def test_a_step_waits_for_every_writer_and_every_contribution():
    shard = Shard(writers=2)
    with shard.unchanged():
        first = shard.send(commit(0, sender=WRITERS[0], seq=1))
        second = shard.send(commit(2, sender=WRITERS[1], seq=3))
        shard.ask(gradient(A, seq=2, sender=WRITERS[1]))
        assert not {first, second} & shard.answers.keys()
    shard.ask(gradient(A, seq=1, sender=WRITERS[1]))
    assert {first, second} <= shard.answers.keys()
    assert shard.core.version == 1


def test_a_step_without_any_contribution_moves_the_version_only():
    shard = Shard()
    before = shard.bytes()
    assert shard.ask(commit(0, seq=1)).version == 1
    assert shard.bytes() == before


def test_a_lookup_waits_for_its_version_and_sees_no_other():
    shard = Shard()
    waiting = shard.send(fetch(A, version=2))
    before = shard.core.tables["memory"].values[10].copy()
    for step in range(2):
        assert waiting not in shard.answers
        shard.ask(gradient(A, seq=2 * step + 1, step=step))
        shard.ask(commit(seq=2 * step + 2, step=step))
    reply = shard.answers[waiting]
    assert isinstance(reply, m.Rows)
    np.testing.assert_array_equal(reply.values[0], before - np.float32(0.5) - np.float32(0.5))
    with pytest.raises(StoreError, match="Version 1 of the tables is gone, they are at 2"):
        shard.ask(fetch(A, version=1))


def test_an_abandoned_request_is_never_answered():
    shard = Shard()
    waiting = shard.send(fetch(A, version=1))
    shard.core.abandon(waiting)
    shard.ask(commit(0, seq=1))
    assert waiting not in shard.answers


def test_replacing_the_tables_answers_who_waited_for_that_version():
    shard = Shard()
    waiting = shard.send(fetch(A, version=7))
    shard.core.restore(7, shard.core.group_state())
    assert [answer.ticket for answer in shard.core.answer_waiting()] == [waiting]


# ---- duplicates and fencing --------------------------------------------------------------------------------


def test_everything_may_be_sent_again():
    shard, once = Shard(), Shard()
    once.ask(gradient(A))
    once.ask(pool(A, A + 1))
    once.ask(pool_gradient(seq=2))
    once.ask(entry_gradient(A, A + 2, seq=3))
    once.ask(replacing(A + 1, A + 3, seq=4))
    once.ask(commit(4, seq=5))
    assert shard.ask(m.OpenGroup("session", 1, 1)) == m.Done(duplicate=True)
    assert [shard.ask(gradient(A)).duplicate for _ in range(3)] == [False, True, True]
    assert shard.ask(pool(A, A + 1)).values.tolist() == shard.ask(pool(A, A + 1)).values.tolist()
    first, again = (shard.ask(pool_gradient(seq=2)).gradient for _ in range(2))
    assert first.tolist() == again.tolist()
    assert [shard.ask(entry_gradient(A, A + 2, seq=3)).duplicate for _ in range(2)] == [False, True]
    assert [shard.ask(replacing(A + 1, A + 3, seq=4)).duplicate for _ in range(2)] == [False, True]
    assert [shard.ask(commit(4, seq=5)).version for _ in range(3)] == [1, 1, 1]
    assert shard.ask(gradient(A)) == m.Done(duplicate=True)
    assert shard.ask(entry_gradient(A, A + 2, seq=3)) == m.Done(duplicate=True)
    assert shard.ask(replacing(A + 1, A + 3, seq=4)) == m.Done(duplicate=True)
    assert shard.ask(pool_gradient(seq=2)).gradient.size == 0
    assert shard.bytes() == once.bytes()


def test_a_commit_sent_again_while_it_waits_is_answered_both_times():
    shard = Shard(writers=2)
    tickets = [shard.send(commit(0, seq=1)) for _ in range(2)]
    shard.ask(commit(0, seq=1, sender=WRITERS[1]))
    assert [shard.answers[ticket].version for ticket in tickets] == [1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda sender: gradient(A, seq=7, sender=sender),
        lambda sender: entry_gradient(A, seq=7, sender=sender),
        lambda sender: replacing(A, seq=7, sender=sender),
        lambda sender: pool(A, lookup=9, sender=sender),
        lambda sender: pool_gradient(seq=7, sender=sender),
        lambda sender: commit(0, seq=7, sender=sender),
        lambda sender: m.Apply(sender, 0, np.ones(2)),
        lambda sender: m.Initialise(sender, 7),
    ],
)
@pytest.mark.parametrize("successor", [m.OpenGroup("next", 2, 1), m.OpenGroup("next", 9, 3)])
def test_a_writer_whose_successor_has_taken_over_changes_nothing(request_of: Any, successor: m.OpenGroup):
    shard = Shard()
    shard.ask(pool(A))
    shard.ask(successor)
    with shard.unchanged(), pytest.raises(FencedError, match="Writer 0 of epoch 1 is stale"):
        shard.ask(request_of(WRITER))


def test_taking_over_drops_what_was_pending_and_refuses_who_waited():
    shard = Shard(writers=2)
    shard.ask(gradient(A))
    waiting = shard.send(commit())
    reader = shard.send(fetch(A, version=1))
    shard.ask(m.OpenGroup("next", 2, 1))
    assert isinstance(shard.answers[waiting], FencedError)
    assert reader not in shard.answers
    before = shard.core.tables["memory"].values.copy()
    shard.ask(commit(0, seq=1, sender=m.Sender("next", 2, 0)))
    np.testing.assert_array_equal(shard.core.tables["memory"].values, before)
    assert reader in shard.answers


def test_a_group_that_takes_over_while_a_step_is_held_starts_afresh():
    shard = Shard()
    shard.ask(gradient(A))
    shard.ask(commit(hold=True))
    successor = m.Sender("next", 2, 0)
    with shard.unchanged():
        shard.ask(m.OpenGroup("next", 2, 1))
        waiting = shard.send(m.Apply(successor, 0, np.ones(2)))
        assert waiting not in shard.answers
    before = shard.core.tables["memory"].values.copy()
    shard.ask(gradient(A + 1, sender=successor))
    assert shard.ask(commit(sender=successor)).version == 1
    changed = np.nonzero((shard.core.tables["memory"].values != before).any(axis=1))[0]
    assert changed.tolist() == [11]


@pytest.mark.parametrize("old", [m.OpenGroup("late", 1, 1), m.OpenGroup("late", 0, 1)])
def test_a_group_must_have_a_higher_epoch(old: m.OpenGroup):
    with pytest.raises(FencedError, match="not above 1"):
        Shard().ask(old)


def test_initialising_brings_the_first_values_back():
    shard = Shard()
    first = shard.bytes()
    shard.ask(gradient(A))
    shard.ask(commit())
    assert shard.bytes() != first
    shard.ask(m.Initialise(WRITER, 3))
    assert (shard.bytes(), shard.core.version) == (first, 0)


# ---- clipping ----------------------------------------------------------------------------------------------


def test_a_held_step_waits_for_its_scale():
    shard = Shard()
    before = shard.core.tables["memory"].values[10].copy()
    shard.ask(gradient(A, A + 1))
    with shard.unchanged():
        held = shard.ask(replace(commit(hold=True), scale=0.5))
    assert (held.applied, held.version, held.squared_norms.shape) == (False, 0, (2, BUCKETS))
    assert held.squared_norms.sum(axis=1).tolist() == [4 * 0.25, 0]
    assert held.squared_norms[0, 512 + 10 // 4] == 2 * 2 * 0.25
    reply = shard.ask(m.Apply(WRITER, 0, np.array([0.25, 1.0])))
    assert (reply.applied, reply.version) == (True, 1)
    np.testing.assert_array_equal(shard.core.tables["memory"].values[10], before - np.float32(0.0625))
    with shard.unchanged():
        assert shard.ask(m.Apply(WRITER, 0, np.array([0.25, 1.0]))).version == 1


# ---- staleness ---------------------------------------------------------------------------------------------


def test_bounded_staleness_serves_early_counts_it_and_keeps_the_order_of_steps():
    shard = Shard(writers=2, max_staleness=1)
    one, other = WRITERS
    early = [shard.send(commit(0, seq=1 + step, step=step, sender=one)) for step in range(2)]
    shard.ask(fetch(A, version=1))
    late = shard.send(fetch(A, version=2))
    with pytest.raises(StoreError, match="steps 0 to 2 now"):
        shard.ask(gradient(A, seq=3, step=3, sender=one))
    # The other writer's second step arrives before its first.
    shard.ask(gradient(A, seq=3, step=1, sender=other))
    shard.send(commit(1, seq=4, step=1, sender=other))
    assert shard.core.version == 0
    shard.ask(gradient(A, seq=1, step=0, sender=other))
    shard.ask(commit(1, seq=2, step=0, sender=other))
    assert shard.core.version == 2
    assert {*early, late} <= shard.answers.keys()
    assert shard.core.staleness_counts.tolist() == [1, 1]


# ---- refusals ----------------------------------------------------------------------------------------------

WRONG_REQUESTS = {
    "unknown table": (replace(fetch(A), table="third"), "No table 'third'"),
    "row of the other shard": (fetch(A, FIRST - 1), "owns buckets 512 to 1023"),
    "row beyond the table": (fetch(4096), "owns buckets"),
    "row that does not exist": (replace(fetch(1023 * 2 + 1), table="other"), "owns buckets"),
    "pooled row of the other shard": (pool(A, 5), "owns buckets"),
    "row gradient of the other shard": (gradient(A, 5), "owns buckets"),
    "too few weights": (replace(pool(A, A), weights=np.ones(1, np.float32)), "2 rows came with 1 weights"),
    "too many weights": (replace(pool(A), weights=np.ones(2, np.float32)), "1 rows came with 2 weights"),
    "weights of another type": (replace(pool(A), weights=np.ones(1)), "float64"),
    "offsets that do not start at 0": (replace(pool(A, A), offsets=np.int32([1, 2])), "must rise"),
    "offsets that fall": (replace(pool(A, A), offsets=np.int32([0, 2, 1, 2])), "must rise"),
    "negative offsets": (replace(pool(A, A), offsets=np.int32([0, -5, 2])), "must rise"),
    "offsets that end early": (replace(pool(A, A), offsets=np.int32([0, 1])), "must rise"),
    "offsets that end late": (replace(pool(A, A), offsets=np.int32([0, 3])), "must rise"),
    "no offsets": (replace(pool(), offsets=np.empty(0, np.int32)), "must rise"),
    "counts that are not one each": (replace(fetch(A), track=True), "access counts"),
    "gradient of another width": (replace(gradient(A), gradients=np.ones((1, 3), np.float32)), r"\(1, 3\)"),
    "gradient of another length": (replace(gradient(A), gradients=np.ones((2, 2), np.float32)), r"\(2, 2\)"),
    "gradient of another type": (replace(gradient(A), gradients=np.ones((1, 2))), "float64"),
    "NaN": (replace(gradient(A), gradients=np.float32([[1, np.nan]])), "NaN or infinity"),
    "infinity": (replace(gradient(A), gradients=np.float32([[-np.inf, 1]])), "NaN or infinity"),
    "entry gradient of the other shard": (entry_gradient(A, 5), "owns buckets"),
    "entry gradient without its weights": (
        replace(entry_gradient(A), weights=np.empty(0, np.float32)),
        "1 rows came with 0 weights",
    ),
    "entry gradient of another width": (
        replace(entry_gradient(A), output_gradient=np.ones((1, 3), np.float32)),
        r"\(1, 3\)",
    ),
    "entry gradient of more tokens": (replace(entry_gradient(A), offsets=np.int32([0, 0, 1])), r"\(1, 2\)"),
    "entry gradient whose offsets fall": (replace(entry_gradient(A), offsets=np.int32([1, 0])), "must rise"),
    "entry gradient with a weight that is NaN": (
        replace(entry_gradient(A), weights=np.float32([np.nan])),
        "NaN or infinity",
    ),
    "entry gradient that is infinite": (
        replace(entry_gradient(A), output_gradient=np.float32([[1, np.inf]])),
        "NaN or infinity",
    ),
    "replaced rows of the other shard": (replacing(A, 5), "owns buckets"),
    "replaced rows of another step": (replacing(A, step=2), "steps 0 to 1"),
    "entry gradient of another step": (entry_gradient(A, step=2), "steps 0 to 1"),
    "gradient of another step": (gradient(A, step=2), "steps 0 to 1"),
    "gradient of a lookup of another step": (pool_gradient(lookup=5, step=2), "steps 0 to 1"),
    "writer outside the group": (gradient(A, sender=m.Sender("session", 1, 1)), "1 writers"),
    "commit of another step": (commit(step=3), "steps 0 to 1"),
    "too few rates": (replace(commit(0), learning_rates=np.ones(1)), "2 finite"),
    "rate that is NaN": (replace(commit(0), learning_rates=np.array([0.1, np.nan])), "2 finite"),
    "scale that is infinite": (replace(commit(0), scale=np.inf), "inf"),
    "cut": (m.WriteCut(WRITER, "/", 0, 1), "host"),
    "map of another size": (m.DrawAccesses("memory", 65, 8), "map"),
    "touched rows of no table": (m.CountTouched("third", 0), "No table"),
}


@pytest.mark.parametrize(("wrong", "said"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS.keys())
def test_a_wrong_request_is_refused_and_changes_nothing(wrong: m.Request, said: str):
    shard, untroubled = Shard(), Shard()
    with shard.unchanged(), pytest.raises(StoreError, match=said):
        shard.ask(wrong)
    for either in (shard, untroubled):
        either.ask(gradient(A))
        either.ask(commit())
    assert shard.bytes() == untroubled.bytes()


def test_a_wrong_pool_gradient_is_refused_before_any_row_changes():
    shard = Shard()
    shard.ask(pool(A))
    with shard.unchanged():
        for bad in (np.ones((2, 2), np.float32), np.ones((1, 3), np.float32), np.ones((1, 2))):
            with pytest.raises(StoreError, match="are expected"):
                shard.ask(replace(pool_gradient(), output_gradient=bad))
        with pytest.raises(NonFiniteGradientError):
            shard.ask(replace(pool_gradient(), output_gradient=np.float32([[np.inf, 0]])))
        shard.ask(replace(pool(A, lookup=2), weights=np.float32([np.nan])))
        with pytest.raises(NonFiniteGradientError):
            shard.ask(pool_gradient(lookup=2))
    assert shard.ask(commit(0)).version == 1


@pytest.mark.parametrize("scales", [[1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_wrong_clipping_scales_are_refused_and_the_step_stays_held(scales: list[float]):
    shard = Shard()
    shard.ask(gradient(A))
    shard.ask(commit(hold=True))
    with shard.unchanged(), pytest.raises(StoreError, match="clipping scales"):
        shard.ask(m.Apply(WRITER, 0, np.array(scales)))
    assert shard.ask(m.Apply(WRITER, 0, np.ones(2))).version == 1


def test_kept_lookups_are_bounded_and_freed_by_the_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memory_store.kept_lookups.KEPT_LOOKUPS_MAX", 3)
    shard = Shard()
    for lookup in range(3):
        shard.ask(pool(A, lookup=lookup))
    with pytest.raises(StoreError, match="3 lookups wait"):
        shard.ask(pool(A, lookup=3))
    shard.ask(commit(0))
    shard.ask(pool(A, lookup=4, version=1))
    assert shard.send(pool_gradient(lookup=0, seq=3, step=1)) not in shard.answers
