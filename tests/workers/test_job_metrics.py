"""A real job on Ray shards, scraped: its numbers are exactly those that its client has counted for itself."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from ray.util.placement_group import remove_placement_group

from memory_store import client as client_module
from memory_store import messages as m
from memory_store.actor import start_shards
from memory_store.carriers.base import Carrier
from memory_store.client import StoreClient
from memory_store.metrics_port import Scrape
from tests.small_job import small_job
from workers.job_spec import JobSpec
from workers.ranks import Ranks
from workers.ray_cluster import place
from workers.run_folder import RunFolder
from workers.trainer_metrics import TrainerMetrics, in_place_metrics
from workers.training import Trainer

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow, pytest.mark.timeout(600)]
STEPS, BATCH_TOKENS = 12, 256


class CountingCarrier:
    """Counts what goes to a shard and what comes back, under the names that the metrics have."""

    def __init__(self, carrier: Carrier, counts: Counter[str]) -> None:
        self._carrier, self._counts = carrier, counts

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        counts = self._counts
        match request:
            case m.Fetch() | m.Pool():
                counts["lookups"] += 1
                counts[f"lookups of {type(request).__name__.lower()} by grpc"] += 1
                counts["lookup rows"] += request.addresses.size
            case m.RowGradient() | m.EntryGradient():
                counts["updates"] += 1
                counts["update rows"] += request.addresses.size
                gradient = (
                    request.gradients if isinstance(request, m.RowGradient) else request.output_gradient
                )
                counts["update bytes"] += gradient.nbytes
            case m.PoolGradient():
                counts["updates"] += 1
                counts["update bytes"] += request.output_gradient.nbytes
            case m.Commit():
                counts["commits"] += 1
        future = self._carrier.submit(request, timeout_s)
        future.add_done_callback(self._count_reply)
        return future

    def _count_reply(self, future: Future[m.Reply]) -> None:
        match future.result():
            case m.Rows(values=values):
                self._counts["lookup bytes"] += values.nbytes
            case m.WeightGradient(gradient=gradient):
                self._counts["update rows"] += gradient.size

    def close(self) -> None:
        self._carrier.close()


def scraped(folder: Path) -> Counter[str]:
    """The sums over all targets and labels, by sample name; `le` and help lines left out. Of lookups also by their labels."""
    sums: Counter[str] = Counter()
    for file in sorted(folder.glob("*.json")):
        ((group),) = json.loads(file.read_text())
        (address,) = group["targets"]
        assert address.startswith("127.0.0.1:")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "le" not in sample.labels:
                    sums[sample.name] += sample.value  # type: ignore[assignment]
                if sample.name == "pkm_lookups_total":
                    sums["lookups of {kind} by {carrier}".format_map(sample.labels)] += sample.value  # type: ignore[assignment]
    return sums


@pytest.fixture
def in_place_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What the kernel is asked that reads shared memory in place."""
    counts: Counter[str] = Counter()
    pool_rows = client_module.pool_rows

    def counted(
        values: NDArray[Any], first: int, offsets: Any, addresses: NDArray[np.uint32], *rest: Any
    ) -> None:
        counts["lookups"] += 1
        counts["lookups of in_place by shared_memory"] += 1
        counts["lookup rows"] += addresses.size
        counts["lookup bytes"] += addresses.size * values[0].nbytes
        pool_rows(values, first, offsets, addresses, *rest)

    monkeypatch.setattr(client_module, "pool_rows", counted)
    return counts


def train_counted(job: JobSpec, run: RunFolder, store: StoreClient) -> tuple[Counter[str], TrainerMetrics]:
    counts: Counter[str] = Counter()
    store._carriers = [CountingCarrier(carrier, counts) for carrier in store._carriers]
    counted = TrainerMetrics(tokens=job.train.batch_tokens)
    store.waiting = counted.stall("shard")
    store.on_read_in_place = in_place_metrics(counted).read_in_place
    Trainer(job, run, Ranks(), store, counted=counted).train()
    return counts, counted


@pytest.mark.parametrize("lookup", ["fetch", "pool", "auto"])
def test_scraped_numbers_are_those_the_client_has_counted(
    lookup: str, corpus: Path, tmp_path: Path, in_place_reads: Counter[str]
) -> None:
    job = small_job(
        corpus,
        store__carrier="auto",
        store__lookup=lookup,
        train__steps=STEPS,
        train__batch_tokens=BATCH_TOKENS,
        train__evaluate_every=5,
        train__cut_every=6,
    )
    run = RunFolder(tmp_path / "run")
    run.create(job)
    scrape = Scrape(run.scrape_path)
    where = place(job, "pkm", gpus=False, timeout_s=120, given_up=lambda: False)
    assert where is not None
    shards = start_shards(job.name, job.tables(), job.store.shards, where, scrape=scrape)
    try:
        store = shards.group.connect(lookup=job.store.lookup)
        counts, counted = train_counted(job, run, store)
        port = scrape.serve(counted.registry, "127.0.0.1", "trainer")
        sums = scraped(run.scrape_path)
        port.close()
        store.close()
    finally:
        shards.stop()
        remove_placement_group(where)
    assert counts["lookups"] > 0  # those of evaluations are by message always
    counts += in_place_reads
    assert bool(in_place_reads) == (lookup == "auto")
    assert sums["pkm_lookups_total"] == counts["lookups"] == sums["pkm_lookup_seconds_count"]
    kinds = [
        {name: count for name, count in told.items() if name.startswith("lookups of")}
        for told in (sums, counts)
    ]
    assert kinds[0] == kinds[1]
    assert sums["pkm_lookup_rows_total"] == counts["lookup rows"]
    assert sums["pkm_lookup_bytes_total"] == counts["lookup bytes"]
    assert sums["pkm_shard_updates_total"] == counts["updates"] > 0
    assert sums["pkm_shard_update_rows_total"] == counts["update rows"]
    assert sums["pkm_shard_update_bytes_total"] == counts["update bytes"]
    assert sums["pkm_shard_commits_total"] == counts["commits"] == STEPS * job.store.shards
    assert sums["pkm_shard_version"] == STEPS * job.store.shards
    assert sums["pkm_shard_cut_seconds_count"] == 2 * job.store.shards
    assert sums["pkm_cut_seconds_count"] == 2
    assert sums["pkm_trainer_steps_total"] == sums["pkm_trainer_step"] == STEPS
    assert sums["pkm_trainer_tokens_total"] == STEPS * BATCH_TOKENS
    assert sums["pkm_shard_duplicates_refused_total"] == 0
