"""Who may write, which updates are known, and in which order contributions are added."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from memory_store.errors import FencedError, StoreError
from memory_store.messages import Commit, Sender
from memory_store.steps import Contribution, WriterGroup


def group(writers: int = 2) -> WriterGroup:
    return WriterGroup("session", 3, writers)


def sender(writer: int = 0) -> Sender:
    return Sender("session", 3, writer)


def commit(
    writer: int = 0,
    seq: int = 9,
    contributions: int = 0,
    step: int = 0,
    rate: float = 0.5,
    hold: bool = False,
) -> Commit:
    return Commit(sender(writer), seq, step, contributions, hold, 1.0, np.array([rate]))


def contribution(address: int, number: float, table: str = "memory") -> Contribution:
    return Contribution(
        table,
        np.array([address], dtype=np.uint32),
        np.zeros(1, dtype=np.int32),
        np.ones(1, dtype=np.float32),
        np.full((1, 2), number, dtype=np.float32),
    )


@pytest.mark.parametrize(
    "stranger", [Sender("session", 2, 0), Sender("session", 4, 0), Sender("other", 3, 0), Sender("", 0, 0)]
)
def test_a_sender_of_another_group_is_fenced(stranger: Sender):
    with pytest.raises(FencedError, match="epoch 3"):
        group().check(stranger)


def test_only_the_writers_of_the_group_may_write():
    group(2).check(sender(1))
    with pytest.raises(StoreError, match="2 writers"):
        group(2).check(sender(2))
    with pytest.raises(StoreError, match="0 writers"):
        WriterGroup().check(Sender("", 0, 0))


def test_a_step_is_complete_when_all_have_committed_and_all_they_announced_is_here():
    writers = group(2)
    writers.commit(commit(0, contributions=1))
    writers.commit(commit(1, contributions=0))
    assert not writers.complete(0)
    writers.contribute(sender(0), 1, 0, contribution(5, 1))
    assert writers.complete(0)
    assert not writers.complete(1)
    assert not WriterGroup().complete(0)


def test_updates_stay_known_after_their_step():
    writers = group(1)
    assert not writers.known(sender(), 1, 0)
    writers.contribute(sender(), 1, 0, contribution(5, 1))
    writers.commit(commit(seq=2, contributions=1))
    for applied in (False, True):
        if applied:
            writers.applied(0)
        assert [writers.known(sender(), seq, 0) for seq in (1, 2, 3)] == [True, True, False]
    assert not writers.known(Sender("session", 3, 1), 1, 0)


def test_contributions_are_added_by_writer_and_number_whatever_the_order_of_arrival():
    parts = [(writer, seq) for writer in range(2) for seq in (1, 2, 3)]
    for order in itertools.permutations(parts):
        writers = group(2)
        for writer, seq in order:
            writers.contribute(sender(writer), seq, 0, contribution(7, 10 * writer + seq))
        merged = writers.contributions(0, "memory")
        assert merged is not None
        assert merged.vectors[:, 0].tolist() == [1, 2, 3, 11, 12, 13]
        assert merged.addresses.tolist() == [7]
        assert merged.vector_numbers.tolist() == list(range(6))


def test_contributions_are_told_apart_by_table():
    writers = group(1)
    writers.contribute(sender(), 1, 0, contribution(7, 1, "one"))
    writers.contribute(sender(), 2, 0, contribution(8, 2, "other"))
    one, other = writers.contributions(0, "one"), writers.contributions(0, "other")
    assert one is not None
    assert other is not None
    assert (one.addresses.tolist(), other.addresses.tolist()) == ([7], [8])
    assert writers.contributions(0, "third") is None


@pytest.mark.parametrize("change", [{"rate": 0.25}, {"hold": True}])
def test_writers_must_agree_on_a_step(change: dict[str, float]):
    writers = group(2)
    writers.commit(commit(0))
    with pytest.raises(StoreError, match="disagree"):
        writers.commit(commit(1, **change))  # type: ignore[arg-type]
    assert not writers.complete(0)
    writers.commit(commit(1))
    assert writers.complete(0)


def test_a_share_can_not_change_once_it_is_committed():
    writers = group(2)
    writers.contribute(sender(), 1, 0, contribution(7, 1))
    with pytest.raises(StoreError, match="0 contributions; 1 have come"):
        writers.commit(commit(contributions=0))
    writers.commit(commit(contributions=1))
    with pytest.raises(StoreError, match="one more"):
        writers.contribute(sender(), 2, 0, contribution(8, 1))
    with pytest.raises(StoreError, match="were committed"):
        writers.commit(commit(seq=10, contributions=1))
    assert writers.pending[0][0].contributions.keys() == {1}
