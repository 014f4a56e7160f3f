"""The logged memory usage is of whole steps: it does not depend on how fast the shards are."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from memory_store import messages as m
from memory_store.client import StoreClient
from memory_store.opening import in_process_hosts, in_process_store
from memory_store.shard_host import ShardHost
from tests.memory_store.batches import clients
from tests.small_job import small_job
from workers.ranks import Ranks
from workers.run_folder import RunFolder
from workers.training import USAGE_EVERY_STEPS, Trainer


def test_usage_waits_for_the_shards(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(corpus, memory__sub_keys=128, store__lookup="fetch")

    def usage(store: StoreClient, folder: Path) -> float | None:
        run = RunFolder(folder)
        run.create(job)
        trainer = Trainer(job, run, Ranks(), store)
        trainer._start()
        return [trainer.train_step().memory_usage for _ in range(USAGE_EVERY_STEPS)][-1]

    expected = usage(in_process_store(job.tables(), 2, lookup="fetch"), tmp_path / "fast")
    assert expected is not None
    submit = ShardHost.submit

    def late(self: ShardHost, request: Any, traceparent: str = "") -> Future[m.Reply]:
        if isinstance(request, m.Commit):
            time.sleep(0.2)
        return submit(self, request, traceparent)

    monkeypatch.setattr(ShardHost, "submit", late)
    with clients(in_process_hosts(job.tables(), 2), 1, "fetch", "grpc") as (store,):
        assert usage(store, tmp_path / "slow") == expected
