"""Requests that reach a shard before what they depend on wait for it."""

from __future__ import annotations

import numpy as np
import pytest

from memory_store import messages as m
from memory_store.errors import StoreError
from tests.memory_store.test_shard import WRITER, A, Shard, commit, gradient, pool, pool_gradient


def test_a_scale_that_overtakes_the_commits_waits_for_them():
    shard, straight = Shard(), Shard()
    for each in (shard, straight):
        each.ask(gradient(A))
    with shard.unchanged():
        early = shard.send(m.Apply(WRITER, 0, np.full(2, 0.5)))
    shard.ask(commit(hold=True))
    assert shard.answers[early] == m.Committed(1, True, shard.answers[early].squared_norms)
    straight.ask(commit(hold=True))
    straight.ask(m.Apply(WRITER, 0, np.full(2, 0.5)))
    assert shard.bytes() == straight.bytes()
    with pytest.raises(StoreError, match="take steps 1 to 2"):
        shard.ask(m.Apply(WRITER, 3, np.ones(2)))


def test_an_update_of_the_next_step_waits_for_the_step_before():
    shard, straight = Shard(), Shard()
    shard.ask(gradient(A + 1, seq=3, step=1))
    late = shard.send(commit(seq=4, step=1))
    with shard.unchanged():
        shard.ask(gradient(A))
    for request in (commit(), gradient(A)):
        shard.ask(request)
    assert shard.answers[late].version == 2
    for request in (gradient(A), commit(), gradient(A + 1, seq=3, step=1), commit(seq=4, step=1)):
        straight.ask(request)
    assert shard.bytes() == straight.bytes()


def test_a_gradient_that_overtakes_its_lookup_waits_for_it():
    shard = Shard()
    early = shard.send(pool_gradient(lookup=5))
    assert early not in shard.answers
    shard.ask(pool(A, lookup=5))
    assert shard.answers[early].gradient.size
