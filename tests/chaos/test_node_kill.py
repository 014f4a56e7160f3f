"""A Ray node is killed with a shard, or more, on it: the rest of the cluster takes over, and no byte changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memory_store.cuts import complete_cuts
from tests.small_job import dense_weights, small_corpus, small_job, table_content
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("durability", ["log", "snapshot"])
def test_a_killed_node_changes_no_byte(durability: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train__steps": 200, "train__cut_every": 40, "store__lookup": "fetch"}
    corpus = small_corpus(tmp_path)
    straight, killed = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "killed")
    job = small_job(corpus, **settings)
    straight.create(job)
    train(job, straight, on_progress=lambda _: None)
    killed.create(small_job(corpus, **settings, store__carrier="auto", store__durability=durability))
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.node_job", str(killed.path), "60"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    died = json.loads(done.stdout.splitlines()[-1])
    assert "shard" in died
    assert 60 <= died["step"] < 200
    cuts = [complete_cuts(run.cuts_path)[-1] for run in (straight, killed)]
    assert table_content(cuts[0]) == table_content(cuts[1])
    assert dense_weights(cuts[0]) == dense_weights(cuts[1])
    logged = [
        [(line.step, line.loss) for line in read_records(run.metrics_path)] for run in (straight, killed)
    ]
    assert logged[0] == logged[1]
