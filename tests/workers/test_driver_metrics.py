"""The driver's metrics while it trains a job in its own process: those of the job, of its trainer and of its shards."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.small_job import small_job
from workers.events import read_events, tell
from workers.job_metrics import PHASES, JobMetrics
from workers.report import Progress, read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train

Samples = dict[tuple[str, str], float]


def scrape(run: RunFolder) -> Samples:
    """By name and the labels' values, which stand in the order of their names."""
    (told,) = run.scrape_path.glob("*.json")
    ((address,),) = (group["targets"] for group in json.loads(told.read_text()))
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def test_one_process_tells_of_job_trainer_and_shards(corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, train__steps=40, train__evaluate_every=10, train__cut_every=10)
    run = RunFolder(tmp_path / "run")
    run.create(job)
    seen: list[Samples] = []

    def look(progress: Progress) -> None:
        if list(run.scrape_path.glob("*.json")):
            seen.append(scrape(run))

    train(job, run, on_progress=look)
    last = seen[-1]
    records = read_records(run.metrics_path)
    assert last["pkm_trainer_steps_total", ""] == last["pkm_job_step", ""] == last["pkm_job_steps", ""] == 40
    assert last["pkm_trainer_tokens_total", ""] == 40 * job.train.batch_tokens
    assert last["pkm_shard_version", ""] == 40
    assert last["pkm_trainer_loss_nats", ""] == records[-1].loss
    assert last["pkm_trainer_gradient_norm", "dense"] == records[-1].gradient_norm
    validations = [record for record in records if record.validation_perplexity is not None]
    assert last["pkm_perplexity", "validation"] == validations[-1].validation_perplexity
    assert last["pkm_memory_usage_ratio", "validation,memory"] == validations[-1].validation_usage
    assert last["pkm_memory_kl_nats", "validation,memory"] == validations[-1].validation_kl
    assert last["pkm_cut_step", ""] in {30, 40}  # the last one may be under way
    assert last["pkm_cut_bytes", ""] > job.table_rows() * job.model.dim * 4
    assert last["pkm_trainer_stall_seconds_total", "data"] > 0
    assert sum(last["pkm_job_phase", phase] for phase in PHASES) == 1
    assert not list(run.scrape_path.glob("*.json"))  # nobody is to be asked any more


def test_what_has_happened_is_counted_from_the_folder_of_the_run(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(small_job(corpus))
    for kind in ("restart", "cut_failed", "restart"):
        tell(run.events_path, kind, 3, "it has happened")  # type: ignore[arg-type]
    registry = JobMetrics(10, run).registry
    counts = {
        kind: registry.get_sample_value("pkm_job_events_total", {"kind": kind})
        for kind in ("restart", "silent")
    }
    assert counts == {"restart": 2, "silent": 0}
    assert len(read_events(run.events_path)) == 3
    assert registry.get_sample_value("pkm_cut_step") is None
    free = registry.get_sample_value("pkm_job_disk_free_bytes")
    total = registry.get_sample_value("pkm_job_disk_bytes")
    assert free is not None
    assert total is not None
    assert 0 < free < total
