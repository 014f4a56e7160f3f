"""The shell round the core: futures from many threads, deadlines, and failures that stay where they belong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import TableSpec
from memory_store import messages as m
from memory_store.errors import FencedError, StoreError
from memory_store.opening import in_process_hosts
from memory_store.shard_host import ShardHost

SPEC = TableSpec("memory", rows=50, dim=2)
SENDERS = [m.Sender("session", 1, writer) for writer in range(8)]


def host(writers: int = 1) -> ShardHost:
    (made,) = in_process_hosts([SPEC])
    made.call(m.OpenGroup("session", 1, writers), 0)
    return made


def fetch(version: int = 0) -> m.Fetch:
    none = np.empty(0, np.uint32)
    return m.Fetch("memory", version, False, np.array([3], np.uint32), none, np.empty(0, np.float32))


def commit(step: int, seq: int, sender: m.Sender = SENDERS[0]) -> m.Commit:
    return m.Commit(sender, seq, step, 0, False, 1.0, np.ones(1))


def test_many_writers_commit_at_once_and_all_are_answered():
    shard = host(writers=8)
    with ThreadPoolExecutor(8) as pool:

        def write(sender: m.Sender) -> list[int]:
            versions = []
            for step in range(50):
                shard.call(fetch(step), 30)
                reply = shard.call(commit(step, step + 1, sender), 30)
                assert isinstance(reply, m.Committed)
                versions.append(reply.version)
            return versions

        assert list(pool.map(write, SENDERS)) == [list(range(1, 51))] * 8


def test_a_wait_ends_at_the_deadline_and_is_forgotten():
    shard = host()
    with pytest.raises(StoreError, match=r"answer Fetch within 0\.01 s: it is at version 0"):
        shard.call(fetch(version=3), 0.01)
    for step in range(3):
        shard.call(commit(step, step + 1), 0)
    assert isinstance(shard.call(fetch(version=3), 0), m.Rows)


def test_an_answer_that_comes_with_the_deadline_is_given_not_lost():
    """Whoever loses the race between deadline and answer, nothing is raised in the thread that answers."""
    shard = host()
    barrier = threading.Barrier(2)
    outcomes = set()
    with ThreadPoolExecutor(1) as pool:
        for step in range(200):

            def give_up(waiting: Any) -> bool:
                barrier.wait()
                return shard.abandon(waiting)

            waiting = shard.submit(fetch(version=step + 1))
            abandoned = pool.submit(give_up, waiting)
            barrier.wait()
            shard.call(commit(step, step + 1), 0)
            outcomes.add(abandoned.result(10))
            if not abandoned.result():
                assert isinstance(waiting.result(10), m.Rows)
            else:
                assert not waiting.done()
    assert outcomes <= {True, False}


def test_abandoning_what_is_answered_says_so():
    shard = host()
    assert not shard.abandon(shard.submit(fetch()))
    waiting = shard.submit(fetch(version=1))
    assert shard.abandon(waiting)
    shard.call(commit(0, 1), 0)
    assert not waiting.done()


def test_an_unexpected_failure_reaches_its_caller_and_spoils_nothing(monkeypatch: pytest.MonkeyPatch):
    shard = host()
    waiting = shard.submit(fetch(version=1))
    with monkeypatch.context() as broken:
        broken.setattr("memory_store.table.gather_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard.submit(fetch())
    shard.call(commit(0, 1), 0)
    assert isinstance(waiting.result(0), m.Rows)


@pytest.mark.parametrize("kind", [m.WriteCut, m.LoadCut])
def test_cuts_are_for_the_writers_in_charge(kind: Any, tmp_path: Path):
    stranger = m.Sender("session", 0, 0)
    request = (
        m.WriteCut(stranger, str(tmp_path), 0, 1) if kind is m.WriteCut else kind(stranger, 1, str(tmp_path))
    )
    with pytest.raises(FencedError):
        host().call(request, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_store_error():
    with pytest.raises(StoreError, match=r"could not write the cut of step 0.*/nowhere/at/all"):
        host().call(m.WriteCut(SENDERS[0], "/nowhere/at/all", 0, 1), 60)
