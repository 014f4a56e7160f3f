"""Running a job: shards, trainers, and the report at the end.

Unless `store.carrier` is in_process, the shards and the trainers are Ray actors, on a cluster that the job shares with
others or on an embedded one that is started here. When a trainer fails, or a shard without a log, all trainers are started
again (trainer_actors.py) and go on from the last cut. With `in_process` the only trainer and its shards run right here,
without Ray; where several trainers have the tables on their devices, these alone are Ray actors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import ray
import torch

from memory_store.actor import ShardGroup
from memory_store.client import StoreClient
from memory_store.cuts import cut_step
from memory_store.durable_files import replace_file
from memory_store.errors import (
    CutError,
    NonFiniteGradientError,
    PkmError,
    UsageError,
    error_named,
)
from memory_store.metrics_port import Scrape
from memory_store.shard_metrics import ShardMetrics
from memory_store.traces import Traces, opened
from workers.attempts import ATTEMPTS, ATTEMPTS_IN_VAIN_MAX, count_attempt
from workers.events import count_events, tell
from workers.gpu.device_group import DeviceGroup
from workers.heartbeat import At, Heartbeat, unnoticed
from workers.job_certificates import JobCertificates, make_certificates
from workers.job_metrics import JobMetrics
from workers.job_scrape import driver_served, forget_processes, host_of, job_scrape
from workers.job_spec import JobSpec
from workers.move import moved, wanted_move
from workers.plots import draw_access_map, draw_losses
from workers.preflight import check_cluster_job, check_device, check_job
from workers.progress_told import progress_told
from workers.ranks import Ranks
from workers.report import EvaluationReport, Progress, Report, last_record, read_records
from workers.run_folder import RunFolder
from workers.table_placement import store_in_process
from workers.trainer_metrics import TrainerMetrics, in_place_metrics
from workers.training import Trainer
from workers.training_cut import latest_cut

if TYPE_CHECKING:
    from memory_store.spans import Spans

_PLACE_TIMEOUT_S = 120.0
_EVALUATION = "evaluation.json"

# These would only come again after a restart.
_FINAL_ERRORS = (UsageError, CutError, NonFiniteGradientError)


@dataclass(frozen=True)
class _Outcome:
    """What the leading trainer hands over at the end."""

    evaluation: EvaluationReport
    dense_parameters: int


def train(
    job: JobSpec,
    run: RunFolder,
    *,
    resume: bool = False,
    cluster: str | None = None,
    on_progress: Callable[[Progress], None],
) -> Report | None:
    """Train a job in its run folder, and write its report and plots. Blocks until the end.

    `run` must hold the job already (`RunFolder.create`); with `resume` it may have been changed since, and the run goes on
    from its last cut. With `cluster`, a name that no other job has, the job runs on the Ray cluster in whose environment
    this process is, waiting there for its place. None if somebody has stopped the job (halt.py).

    Raises UsageError for what is wrong with the job or its data, CutError for a damaged cut, StoreError if shards or
    trainers fail for good.
    """
    begun = time.time()
    if cluster is None:
        check_job(job)
    else:
        check_cluster_job(job)
    if resume:
        latest_cut(run.cuts_path)
    made = make_certificates() if cluster is not None else None
    scrape = job_scrape(run, made.metrics if made else None)
    metrics = JobMetrics(job.train.steps, run)
    traces = Traces(cluster or job.name, run.traces_path) if job.train.trace_every else None

    def tell_progress(progress: Progress) -> None:
        metrics.progressed(progress)
        on_progress(progress)

    tell_progress(Progress("starting", 0, job.train.steps))
    run.failure_path.unlink(missing_ok=True)
    with driver_served(run, scrape, metrics.registry), progress_told(job, run, tell_progress):
        if job.in_one_process():
            outcome = _train_here(job, run, metrics, traces)
        else:
            while (
                outcome := _train_on_ray(job, run, cluster, tell_progress, metrics, scrape, traces, made)
            ) is None and not run.halt_path.exists():
                job = _after_move(job, run, cluster)
    if outcome is None:
        return None
    report = _report(job, run, outcome, begun)
    replace_file(run.report_path, report.model_dump_json(indent=2).encode() + b"\n")
    return report


# ---- in this process ---------------------------------------------------------------------------------------------


def _train_here(job: JobSpec, run: RunFolder, metrics: JobMetrics, traces: Traces | None) -> _Outcome | None:
    counted = TrainerMetrics(metrics.registry, job.train.batch_tokens)
    device, store = _device(job), None
    with opened(traces, "trainer") as spans:
        if job.memory:
            shards = ShardMetrics(metrics.registry, "in_process")
            store = store_in_process(job, device, shards, spans)
        return _run_trainer(job, run, Ranks(device=device), store, counted, spans)


def _run_trainer(
    job: JobSpec,
    run: RunFolder,
    ranks: Ranks,
    store: StoreClient | None,
    counted: TrainerMetrics,
    spans: Spans | None,
    at: At = unnoticed,
) -> _Outcome | None:
    if store is not None:
        store.waiting = counted.stall("shard")
    torch.manual_seed(job.seed)
    torch.use_deterministic_algorithms(ranks.device.type == "cpu")
    trainer = Trainer(job, run, ranks, store, at, counted)
    if spans is not None:
        from workers.step_spans import StepSpans

        trainer.traces = StepSpans(spans, job.train.trace_every, ranks, trainer.model, store)
    evaluation = trainer.train()
    if evaluation is None:
        return None
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return _Outcome(evaluation, parameters)


def _device(job: JobSpec) -> torch.device:
    cuda = job.train.device == "cuda" or (job.train.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


# ---- on Ray ------------------------------------------------------------------------------------------------------


def _train_on_ray(
    job: JobSpec,
    run: RunFolder,
    cluster: str | None,
    on_progress: Callable[[Progress], None],
    metrics: JobMetrics,
    scrape: Scrape,
    traces: Traces | None,
    made: JobCertificates | None,
) -> _Outcome | None:
    """Train to the end, or (None) until the job is to stop, or to have other shards or trainers."""
    from ray.util.placement_group import remove_placement_group

    from memory_store.actor import NAMESPACE, start_shards
    from workers import ray_cluster
    from workers.shard_loads import LoadWatch
    from workers.trainer_actors import run_trainers
    from workers.watch import Watch

    if cluster is None:
        ray_cluster.start_embedded_ray(ray_cluster.processes(job))
        ray_cluster.check_room(ray_cluster.processes(job))
    elif not ray.is_initialized():
        ray_cluster.join_cluster(cluster)
    for leftover in (run.path / ATTEMPTS, run.path / _EVALUATION):
        leftover.unlink(missing_ok=True)
    # A log serves the shards of one start of the job: what was before is in the cuts.
    shutil.rmtree(run.logs_path, ignore_errors=True)
    shutil.rmtree(run.beats_path, ignore_errors=True)
    run.beats_path.mkdir()
    # On a cluster a job has the GPUs that it asks for by name: nobody has kept others for it.
    gpus = job.train.device == "cuda" if cluster is not None else _device(job).type == "cuda"
    namespace = cluster or NAMESPACE
    if cluster is not None:
        on_progress(Progress("waiting", _last_step(run), job.train.steps))
    place = ray_cluster.place(
        job,
        namespace,
        gpus=gpus,
        timeout_s=_PLACE_TIMEOUT_S if cluster is None else math.inf,
        given_up=run.halt_path.exists,
    )
    if place is None:
        return None
    on_progress(Progress("starting", _last_step(run), job.train.steps))
    shards = watch = loads = None
    try:
        if job.shard_processes():
            logs = run.logs_path if job.store.durability == "log" else None
            shards = start_shards(
                job.name,
                job.tables(),
                job.store.shards,
                place,
                namespace=namespace,
                logs=logs,
                cuts=run.cuts_path,
                credentials=(made.shards, made.trainers) if made else None,
                scrape=scrape,
                traces=traces,
            )
        group = shards.group if shards else None
        watch = Watch(
            group,
            run.beats_path,
            job.train.silent_after,
            lambda what: tell(run.events_path, "silent", _last_step(run), what),
            metrics.shard_restarts.inc,
        )
        if group is not None and cluster is not None:
            loads = LoadWatch(group, run.path)
        threads = str(max(1, (os.cpu_count() or 1) // job.train.trainers))
        tables: ShardGroup | DeviceGroup | None = group
        if job.memory and group is None:
            tables = DeviceGroup.new((made.shards, made.trainers) if made else None)
        run_trainers(
            partial(_train_worker, job.model_dump_json(), str(run.path), tables, scrape, traces),
            job.train.trainers,
            place,
            gpus=gpus,
            environment={
                "OMP_NUM_THREADS": threads,
                "NUMBA_NUM_THREADS": threads,
                "OMP_WAIT_POLICY": "PASSIVE",
            },
        )
    finally:
        if loads is not None:
            loads.stop()
        if watch is not None:
            watch.stop()
        if shards is not None:
            shards.stop()
        remove_placement_group(place)
        forget_processes(run, "shard", "trainer")
        for leftover in (run.logs_path, run.beats_path):
            shutil.rmtree(leftover, ignore_errors=True)
    if run.failure_path.is_file():
        failure = json.loads(run.failure_path.read_text(encoding="utf-8"))
        raise error_named(failure["kind"], failure["message"])
    if not (run.path / _EVALUATION).is_file():
        return None
    done = json.loads((run.path / _EVALUATION).read_text(encoding="utf-8"))
    return _Outcome(EvaluationReport.model_validate(done["evaluation"]), done["dense_parameters"])


def _after_move(job: JobSpec, run: RunFolder, cluster: str | None) -> JobSpec:
    """The job as it goes on from the cut that was written for a move; as before, where there is no room for that."""
    from workers import ray_cluster

    move = wanted_move(run)
    if move is not None and (move.shards, move.trainers) != (job.store.shards, job.train.trainers):
        try:
            wanted = moved(job, move)
            if cluster is None:
                ray_cluster.make_room(ray_cluster.processes(wanted))
            ray_cluster.check_room(ray_cluster.processes(wanted))
            run.save_job(wanted)
            job = wanted
        except UsageError as error:
            run.pause_path.unlink(missing_ok=True)
            step = cut_step(latest_cut(run.cuts_path))
            tell(run.events_path, "reshard", step, f"The job was not moved: {error}")
    run.move_path.unlink(missing_ok=True)
    return job


def _last_step(run: RunFolder) -> int:
    record = last_record(run.metrics_path)
    return record.step if record is not None else 0


def _train_worker(
    job_text: str,
    run_path: str,
    tables: ShardGroup | DeviceGroup | None,
    scrape: Scrape,
    traces: Traces | None,
    ranks: Ranks,
) -> None:
    """What each trainer process runs; again in a new process after a failure."""
    job = JobSpec.model_validate_json(job_text)
    run = RunFolder(Path(run_path))
    if run.failure_path.exists():
        return
    counted = TrainerMetrics(tokens=job.train.batch_tokens // ranks.world)
    ranks = replace(ranks, waiting=counted.stall("barrier"))
    scrape.serve(counted.registry, host_of(scrape), "trainer", ranks.rank)
    heartbeat = Heartbeat(run.beats_path, ranks.rank, ray.get_runtime_context().get_node_id())
    attempts = count_attempt(run) if ranks.leads else None
    try:
        check_device(job, ranks.device)
        store: StoreClient | None = None
        if isinstance(tables, DeviceGroup):
            metrics = ShardMetrics(counted.registry, "in_process")
            store = tables.join(job.tables(), ranks, host_of(scrape), metrics)
        elif tables is not None:
            store = tables.connect(
                lookup=job.store.lookup, wire=job.store.wire, in_place=job.store.carrier == "auto"
            )
            store.on_read_in_place = in_place_metrics(counted).read_in_place
        with opened(traces, "trainer", ranks.rank) as spans:
            outcome = _run_trainer(job, run, ranks, store, counted, spans, heartbeat.at)
    except Exception as error:
        if isinstance(error, _FINAL_ERRORS) or (attempts and attempts.in_vain >= ATTEMPTS_IN_VAIN_MAX):
            failure = {"kind": type(error).__name__, "message": f"{type(error).__name__}: {error}"}
            if isinstance(error, PkmError):
                failure["message"] = str(error)
            mine = run.failure_path.with_name(f"failure-{ranks.rank}.json")  # of several that end at once
            replace_file(mine, json.dumps(failure).encode())
            mine.replace(run.failure_path)
            if ranks.world == 1:
                return
            # An error ends the others too, which wait for this one; who is started in their place finds the file.
        raise
    finally:
        heartbeat.stop()
    if attempts and outcome is not None:
        done = {
            "evaluation": outcome.evaluation.model_dump(mode="json"),
            "dense_parameters": outcome.dense_parameters,
        }
        replace_file(run.path / _EVALUATION, json.dumps(done).encode())


# ---- telling -----------------------------------------------------------------------------------------------------


def _report(job: JobSpec, run: RunFolder, outcome: _Outcome, begun: float) -> Report:
    records = read_records(run.metrics_path)
    plots = [draw_losses(records, run.plots_path / "loss.png", job.name)]
    if job.memory is not None:
        plots.append(draw_access_map(run.access_map_path, run.plots_path / "access-map.png", job.name))
    tables = list(outcome.evaluation.memory.values())
    count = max(1, len(tables))
    train_seconds = sum(record.seconds for record in records)
    hits = [record.cache_hit_rate for record in records if record.cache_hit_rate is not None]
    return Report(
        name=job.name,
        test_perplexity=outcome.evaluation.perplexity,
        test_tokens=outcome.evaluation.tokens,
        memory_usage=sum(table.usage for table in tables) / count if tables else None,
        kl_to_uniform=sum(table.kl_to_uniform for table in tables) / count if tables else None,
        top1_share=sum(table.top1_share for table in tables) / count if tables else None,
        dead_slots=sum(table.dead_slots for table in tables) if tables else None,
        slot_ages=outcome.evaluation.slot_ages,
        cache_hit_rate=fmean(hits) if hits else None,
        final_loss=records[-1].loss,
        tokens_per_second=job.train.batch_tokens * len(records) / train_seconds,
        train_seconds=train_seconds,
        wall_seconds=time.time() - begun,
        steps=job.train.steps,
        tokens=job.train.steps * job.train.batch_tokens,
        dense_parameters=outcome.dense_parameters,
        table_rows=job.table_rows(),
        table_bytes=job.table_bytes(),
        trainers=job.train.trainers,
        shards=job.store.shards if job.memory else 0,
        restarts=count_events(run.events_path, "restart", begun),
        steps_skipped=sum(bool(record.skipped) for record in records),
        cuts_failed=count_events(run.events_path, "cut_failed", begun),
        run=str(run.path),
        cut=str(latest_cut(run.cuts_path)),
        plots=[str(plot) for plot in plots],
    )
