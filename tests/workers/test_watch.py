"""Who falls silent is found and named: by the rules alone, and in a real job whose processes are stopped (SIGSTOP)."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import ray

from memory_store.actor import NAMESPACE
from memory_store.carriers.grpc_server import ShardServer
from memory_store.carriers.grpc_sign_of_life import Sign, sign_of_life
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import TableSpec
from tests.small_job import dense_weights, small_job, table_content
from tests.workers.test_trainer_group import last_cut, losses, run_job, wait_for_steps
from workers.events import read_events
from workers.heartbeat import BEGUN, COMMITTED, STARTING, WAITING, Beat, Heartbeat, read_beats
from workers.watch import TrainerWatch


def beat(rank: int, count: int, step: int = 0, stage: int = BEGUN, process: int = 0) -> Beat:
    return Beat(
        rank=rank,
        process=process or 100 + rank,
        node="node",
        count=count,
        step=step,
        stage=stage,
        doing=f"stage {stage}",
    )


def hung(watch: TrainerWatch, now: float, *beats: Beat) -> list[tuple[int, str]]:
    return [(found.rank, what) for found, what in watch.hung(beats, now)]


def test_a_process_that_gives_no_sign_of_life_is_named() -> None:
    watch = TrainerWatch(10)
    for now in range(15):
        assert hung(watch, now, beat(0, now, now), beat(1, min(now, 4), min(now, 4))) == []
    found = hung(watch, 15, beat(0, 15, 15), beat(1, 4, 4))
    assert [rank for rank, _ in found] == [1]
    assert "no sign of life for 11 s, since stage 4000000000" in found[0][1]
    # What it has left is not taken for another one that hangs, and its successor begins anew.
    for now in range(16, 40):
        assert hung(watch, now, beat(0, now, now), beat(1, 4, 4)) == []
    for now in range(40, 60):
        assert hung(watch, now, beat(0, now, now), beat(1, now, now, process=2)) == []


def test_of_those_that_stand_still_the_one_behind_is_named() -> None:
    """Trainer 1 has not committed step 5; the others wait for it in step 6, or after the commit of step 5."""
    watch = TrainerWatch(10)
    for now in range(11):
        stuck = [beat(0, now, 6, COMMITTED), beat(1, now, 5, BEGUN + 1), beat(2, now, 6, BEGUN)]
        assert hung(watch, now, *stuck) == []
    found = hung(watch, 11, beat(0, 11, 6, COMMITTED), beat(1, 11, 5, BEGUN + 1), beat(2, 11, 6, BEGUN))
    assert [rank for rank, _ in found] == [1]
    assert "has not got on for 11 s with stage 4000000001" in found[0][1]


def test_who_waits_for_one_that_works_is_left_in_peace() -> None:
    watch = TrainerWatch(10)
    for now in range(100):
        writing_a_cut = beat(0, now, 5, 2_000_000_000 + now)
        assert hung(watch, now, writing_a_cut, beat(1, now, 5, WAITING)) == []


def test_who_waits_for_a_shard_is_left_in_peace() -> None:
    watch = TrainerWatch(10)
    for now in range(100):
        assert watch.hung([beat(0, now, 5)], now, shards_alive=now > 50 and now % 8 != 0) == []
    assert [found.rank for found, _ in watch.hung([beat(0, 108, 5)], 108)] == [0]


def test_a_long_start_is_no_silence() -> None:
    watch = TrainerWatch(10)
    for now in range(100):
        assert hung(watch, now, beat(0, now, 0, STARTING), beat(1, now, 0, BEGUN)) == []


def test_beats_are_written_as_long_as_the_process_runs(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 3, "here")
    heart.at(7, COMMITTED, "the test")
    seen = set()
    deadline = threading.Event()
    while len(seen) < 2:
        seen |= {each.count for each in read_beats(tmp_path) if each.step == 7}
        deadline.wait(0.05)
    (last,) = read_beats(tmp_path)
    assert (last.rank, last.process, last.node, last.doing) == (3, os.getpid(), "here", "the test")
    heart.stop()
    assert read_beats(tmp_path) == []
    (tmp_path / "trainer-0.json").write_text('{"rank": 0')
    assert read_beats(tmp_path) == []


def test_a_busy_shard_gives_signs_of_life() -> None:
    host = ShardHost(ShardCore([TableSpec("memory", 100, 2)], Placement.even(1), 0))
    server = ShardServer(host, "127.0.0.1:0", "token")
    address = f"127.0.0.1:{server.port}"
    with host._lock:
        assert sign_of_life(address, 10, "token") == Sign.ALIVE
    server.stop(0)
    assert sign_of_life(address, 10, "token") == Sign.GONE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_stopped_shard_and_a_stopped_trainer_are_replaced(corpus: Path, tmp_path: Path) -> None:
    """With a log, a stopped shard costs no trainer its life; woken later, the stopped processes change nothing."""
    settings = {"train__steps": 160, "train__cut_every": 40, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "straight")
    stopped: list[int] = []

    def stop_when_training() -> None:
        wait_for_steps(tmp_path / "stopped", 20)
        actor = ray.get_actor("small-shard-1", namespace=NAMESPACE)
        stopped.append(ray.get(actor.process_id.remote()))
        os.kill(stopped[-1], signal.SIGSTOP)
        wait_for_steps(tmp_path / "stopped", 100)
        (trainer,) = read_beats(tmp_path / "stopped" / "beats")
        stopped.append(trainer.process)
        os.kill(stopped[-1], signal.SIGSTOP)

    thread = threading.Thread(target=stop_when_training)
    thread.start()
    job = small_job(corpus, **settings, store__carrier="auto", store__durability="log", train__silent_after=6)
    report = run_job(job, tmp_path / "stopped")
    thread.join()
    assert len(stopped) == 2
    events = read_events(tmp_path / "stopped" / "events.jsonl")
    assert [event.kind for event in events] == ["silent", "silent", "restart"]
    assert "Shard 1 at " in events[0].message
    assert "Trainer 0 has given no sign of life" in events[1].message
    assert report.restarts == 1
    assert table_content(last_cut(tmp_path / "stopped")) == table_content(last_cut(tmp_path / "straight"))
    assert dense_weights(last_cut(tmp_path / "stopped")) == dense_weights(last_cut(tmp_path / "straight"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
