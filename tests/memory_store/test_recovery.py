"""A shard that is killed at any point of a step recovers alone, and its writers go on: the bytes are those of an
undisturbed store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from memory_store.client import StoreClient
from memory_store.errors import StoreError
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_store
from tests.logged_shards import SHARDS, SPEC, Shards
from tests.memory_store.written_cuts import write_cut


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    shards = Shards(tmp_path / "logs")
    yield shards
    shards.close()


def train(
    store: StoreClient,
    steps: range,
    clip: float | None = None,
    at: Callable[[int, str], None] = lambda step, point: None,
) -> list[bytes]:
    """Some steps of a model without a model; `at` is called at every point of a step."""
    seen = []
    table = store.table("memory")
    for step in steps:
        random = np.random.default_rng(step)
        rows = random.integers(0, SPEC.rows, (50, 16))
        weights = random.random((50, 16), dtype=np.float32)
        at(step, "before the lookup")
        found = table.lookup(rows, weights, keep=True)
        at(step, "before the backward pass")
        seen += [found.output.tobytes(), found.backward(np.sin(found.output)).tobytes()]
        replaced = np.unique(rows[:2])
        store.replace_rows("memory", replaced, random.random((replaced.size, SPEC.dim), dtype=np.float32))
        at(step, "before the commit")
        store.step({"memory": 0.01}, {"memory": clip} if clip else None)
        at(step, "after the commit")
    store.synchronise()
    return seen


POINTS = ["before the lookup", "before the backward pass", "before the commit", "after the commit"]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("lookup", ["in place", "pool", "fetch"])
def test_a_killed_shard_recovers_what_it_acknowledged_and_its_writer_goes_on(
    shards: Shards, lookup: str, clip: float | None
) -> None:
    kind: LookupKind = "auto" if lookup == "in place" else "pool" if lookup == "pool" else "fetch"
    alone = in_process_store(
        [SPEC], 1 if lookup == "in place" else SHARDS, lookup="pool" if lookup == "in place" else kind
    )
    store = shards.connect(lookup=kind)
    store.take_over()
    assert store.reads_in_place == (lookup == "in place")
    kills = dict(zip(range(2, 2 + 2 * len(POINTS), 2), POINTS, strict=True))
    killed = []

    def kill(step: int, point: str) -> None:
        if kills.get(step) == point:
            shards.kill(step // 2 % SHARDS)
            killed.append(point)

    steps = range(12)
    assert train(store, steps, clip, kill) == train(alone, steps, clip)
    assert killed == POINTS
    everything = np.arange(SPEC.rows).reshape(-1, 1)
    ones = np.ones((SPEC.rows, 1), np.float32)
    ours, theirs = (
        each.table("memory").lookup(everything, ones, keep=False).output for each in (store, alone)
    )
    assert ours.tobytes() == theirs.tobytes()
    store.close()


def test_a_shard_without_a_log_sends_its_writers_back_to_their_cut(tmp_path: Path) -> None:
    shards = Shards(None)
    store = shards.connect()
    store.take_over()
    train(store, range(2))
    shards.kill(1)
    with pytest.raises(StoreError, match="without what it had learned: restore the last cut"):
        train(store, range(2, 4))
    store.close()
    shards.close()


def test_a_log_begins_at_the_cuts_and_a_damaged_cut_is_passed_over(shards: Shards, tmp_path: Path) -> None:
    alone = in_process_store([SPEC], SHARDS, lookup="fetch")
    store = shards.connect(lookup="fetch")
    store.take_over()
    cuts = []
    for step in range(0, 12, 3):
        assert train(store, range(step, step + 3)) == train(alone, range(step, step + 3))
        cuts.append(write_cut(store, tmp_path / "cuts"))
    for shard in range(SHARDS):
        found = len(list((tmp_path / "logs" / f"shard-{shard:04d}").glob("*.log")))
        assert found == 2, "from the second newest cut on"
    damaged = next(cuts[-1].glob("*shard-0001-*delta-00000012.arrow"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    for shard in range(SHARDS):
        shards.kill(shard)
    assert train(store, range(12, 15)) == train(alone, range(12, 15))
    store.close()


def test_writers_that_go_back_to_a_cut_leave_a_log_that_begins_there(shards: Shards, tmp_path: Path) -> None:
    alone = in_process_store([SPEC], SHARDS, lookup="fetch")
    first = shards.connect(lookup="fetch")
    first.take_over()
    expected = train(alone, range(6))
    train(first, range(2))
    folder = write_cut(first, tmp_path / "cuts")
    train(first, range(2, 5))
    first.close()
    second = shards.connect(lookup="fetch")
    second.take_over()
    second.load_cut(str(folder), 2)
    assert train(second, range(2, 4)) == expected[4:8]
    shards.kill(0)
    shards.kill(1)
    assert train(second, range(4, 6)) == expected[8:]
    second.close()


def test_a_damaged_log_is_kept_aside_and_the_writers_go_back_to_their_cut(
    shards: Shards, tmp_path: Path
) -> None:
    store = shards.connect()
    store.take_over()
    train(store, range(3))
    (segment,) = (tmp_path / "logs" / "shard-0000").glob("*.log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    shards.kill(0)
    with pytest.raises(StoreError, match="without what it had learned"):
        train(store, range(3, 6))
    (aside,) = (tmp_path / "logs").glob("shard-0000-damaged-*")
    assert (aside / segment.name).read_bytes() == bytes(content)
    store.close()
