"""`pkm reshard` round the move itself: what it refuses, what it prints, and that it waits for the one who moves."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from service.cli import app
from tests.small_job import small_corpus, small_job
from workers.events import read_events, tell
from workers.move import Move
from workers.run_folder import RunFolder
from workers.supervisor import _alone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("addresses"))


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(small_job(corpus, store__carrier="auto"))
    return run


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def answer(run: RunFolder, seconds: float | None, message: str) -> threading.Thread:
    """What a job in training does: it sees the wish, and tells how that went."""

    def move() -> None:
        while not run.move_path.exists():
            time.sleep(0.01)
        assert Move.model_validate_json(run.move_path.read_bytes()) == Move(shards=3, trainers=1)
        tell(run.events_path, "reshard", 7, message, seconds)

    thread = threading.Thread(target=move)
    thread.start()
    return thread


def test_it_waits_until_the_job_has_moved_and_says_how_long_it_stood_still(run: RunFolder) -> None:
    tell(run.events_path, "reshard", 3, "an older move", 99.0)
    with _alone(run):
        thread = answer(run, 12.34, "Moved.")
        result = pkm("reshard", str(run.path), "--shards", "3", "--json")
        thread.join()
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"shards": 3, "trainers": 1, "pause_seconds": 12.34}
    assert len(read_events(run.events_path)) == 2


def test_a_move_that_does_not_happen_is_a_failure(run: RunFolder) -> None:
    with _alone(run):
        thread = answer(run, None, "The job was not moved: no room.")
        result = pkm("reshard", str(run.path), "--shards", "3")
        thread.join()
    assert result.exit_code == 2
    assert "The job was not moved: no room." in result.stderr


def test_what_can_not_be_moved_is_refused(run: RunFolder, corpus: Path) -> None:
    assert "pkm train --resume" in pkm("reshard", str(run.path), "--shards", "3").stderr
    with _alone(run):
        assert "--shards N, --trainers N, or both" in pkm("reshard", str(run.path)).stderr
        refused = pkm("reshard", str(run.path), "--shards", "2000")
        assert refused.exit_code == 2
        assert "The job can't have 2000 shards" in refused.stderr
        run.save_job(small_job(corpus))
        assert "and so no shards to move" in pkm("reshard", str(run.path), "--shards", "3").stderr
    assert not run.move_path.exists()
