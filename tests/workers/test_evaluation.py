"""Evaluation counts accesses at shards, which forget them when they die: then all is counted once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memory_store.client import StoreClient
from memory_store.messages import ShardInfo
from memory_store.opening import in_process_store
from memory_store.statistics import clear_accesses
from tests.small_job import small_job
from workers.evaluation import evaluate
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.training import Trainer


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_a_shard_that_dies_while_it_counts_changes_no_figure(
    deaths: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus)
    store = in_process_store(job.tables(), 2, lookup="fetch")
    run = RunFolder(tmp_path / "run")
    run.create(job)
    trainer = Trainer(job, run, Ranks(), store)
    trainer._start()
    expected = evaluate(trainer.model, store, trainer.corpus, job, "validation")

    lives = [0]
    describe = StoreClient.describe

    def restarted(self: StoreClient) -> list[ShardInfo]:
        return [replace(info, incarnation=f"life {lives[0]}") for info in describe(self)]

    def die(batch: int) -> None:
        if batch == 1 and lives[0] < deaths:
            lives[0] += 1
            for table in store.specs:
                clear_accesses(store, table)

    monkeypatch.setattr(StoreClient, "describe", restarted)
    found = evaluate(trainer.model, store, trainer.corpus, job, "validation", on_batch=die)
    assert lives[0] == deaths
    assert found == expected
