"""A running job moves to other shards and trainers: the same bytes as without, nothing lost, nothing made twice."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from memory_store.errors import StoreError, UsageError
from tests.small_job import small_job
from tests.workers.test_trainer_group import (
    dense_weights,
    last_cut,
    losses,
    run_job,
    table_content,
    wait_for_steps,
)
from workers.cut_writer import CutWriter
from workers.events import read_events
from workers.move import Move, ask_to_move, moved
from workers.report import read_records
from workers.run_folder import RunFolder

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def run_and_move(job: Any, folder: Path, moves: list[tuple[int, Move]]) -> list[float]:
    """Run a job, moving it when it has made so many steps; the pauses."""
    pauses: list[float] = []

    def move_when_training() -> None:
        for steps, move in moves:
            wait_for_steps(folder, steps)
            pauses.append(ask_to_move(RunFolder(folder), move, 120))

    thread = threading.Thread(target=move_when_training)
    thread.start()
    run_job(job, folder)
    thread.join()
    return pauses


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["snapshot", "log"])
def test_a_move_to_other_shards_changes_no_byte(durability: str, corpus: Path, tmp_path: Path) -> None:
    settings = {"train__steps": 160, "train__cut_every": 40, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "straight")
    job = small_job(corpus, **settings, store__carrier="auto", store__durability=durability)
    moves = [Move(shards=3, trainers=1), Move(shards=1, trainers=1)]
    pauses = run_and_move(job, tmp_path / "moved", list(zip([15, 70], moves, strict=True)))
    assert len(pauses) == 2
    assert all(0 < pause < 120 for pause in pauses)
    assert table_content(last_cut(tmp_path / "moved")) == table_content(last_cut(tmp_path / "straight"))
    assert dense_weights(last_cut(tmp_path / "moved")) == dense_weights(last_cut(tmp_path / "straight"))
    assert losses(tmp_path / "moved") == losses(tmp_path / "straight")
    run = RunFolder(tmp_path / "moved")
    assert run.load_job().store.shards == 1
    assert [event.kind for event in read_events(run.events_path)] == ["reshard", "reshard"]
    assert not run.move_path.exists()
    assert not run.pause_path.exists()


@pytest.mark.slow
def test_trainers_join_and_leave(corpus: Path, tmp_path: Path) -> None:
    """Sums are then made in another order, so figures are near those of one trainer, not the same."""
    settings = {"train__steps": 90, "train__cut_every": 30, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "straight")
    moves = [(10, Move(shards=2, trainers=2)), (50, Move(shards=2, trainers=1))]
    run_and_move(small_job(corpus, **settings, store__carrier="auto"), tmp_path / "moved", moves)
    ours, theirs = losses(tmp_path / "moved"), losses(tmp_path / "straight")
    assert [step for step, _ in ours] == list(range(1, 91))
    for (step, loss), (_, straight) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(straight, rel=1e-6 if step <= 10 else 2e-2)
        assert math.isfinite(loss)


@pytest.mark.slow
def test_a_move_for_which_there_is_no_room_leaves_the_job_where_it_is(corpus: Path, tmp_path: Path) -> None:
    settings = {"train__steps": 60, "train__cut_every": 30, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "straight")
    refused: list[str] = []

    def move_when_training() -> None:
        wait_for_steps(tmp_path / "moved", 10)
        try:
            ask_to_move(RunFolder(tmp_path / "moved"), Move(shards=900, trainers=1), 120)
        except UsageError as error:
            refused.append(str(error))

    from workers import ray_cluster

    thread = threading.Thread(target=move_when_training)
    thread.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray_cluster, "_embedded_for", 0)  # as on a cluster that others have started
        run_job(small_job(corpus, **settings, store__carrier="auto"), tmp_path / "moved")
    thread.join()
    assert "The job was not moved: The job's shards and trainers are 901 processes" in refused[0]
    assert table_content(last_cut(tmp_path / "moved")) == table_content(last_cut(tmp_path / "straight"))
    assert losses(tmp_path / "moved") == losses(tmp_path / "straight")


def test_a_move_whose_cut_fails_does_not_happen(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: the trainer alone decides that."""
    job = small_job(corpus, train__steps=40, train__cut_every=20, store__carrier="in_process")
    run = RunFolder(tmp_path / "run")
    finish = CutWriter.finish

    def fail_once(self: CutWriter) -> bool:
        written = finish(self)
        return written and not run.move_path.exists()

    monkeypatch.setattr(CutWriter, "finish", fail_once)

    def ask() -> None:
        wait_for_steps(tmp_path / "run", 3)
        run.move_path.write_text(Move(shards=3, trainers=1).model_dump_json())

    thread = threading.Thread(target=ask)
    thread.start()
    run_job(job, tmp_path / "run")
    thread.join()
    assert [record.step for record in read_records(run.metrics_path)] == list(range(1, 41))
    assert [event.message for event in read_events(run.events_path)] == [
        "The job was not moved: the cut for it failed."
    ]


def test_impossible_moves_are_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The job can't have 2000 shards and 1 trainers"):
        moved(small_job(corpus), Move(shards=2000, trainers=1))
    run = RunFolder(tmp_path / "run")
    run.create(small_job(corpus))
    with pytest.raises(UsageError, match="in_process, and so no shards to move"):
        ask_to_move(run, Move(shards=2, trainers=1), 1)
    run.save_job(small_job(corpus, store__carrier="auto"))
    with pytest.raises(StoreError, match=r"has not moved within 0\.5 s"):
        ask_to_move(run, Move(shards=3, trainers=1), 0.5)
