"""Running a job: shards, trainers, and the report at the end.

Unless `store.carrier` is in_process, the shards are Ray actors and the trainers a Ray Train worker group, on the cluster this
process is connected to or on an embedded one that is started here. Ray Train restarts the group when a trainer or a
shard fails; the trainers then go on from the last cut. With `in_process` the only trainer and its shards run right here,
without Ray.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from memory_store.actor import ShardGroup, start_shards
from memory_store.client import StoreClient
from memory_store.cuts import complete_cuts, cut_step
from memory_store.durable_files import replace_file
from memory_store.errors import (
    CutError,
    NonFiniteGradientError,
    PkmError,
    StoreError,
    UsageError,
    error_named,
)
from memory_store.opening import in_process_store
from workers.events import count_events, read_events, tell
from workers.heartbeat import At, Heartbeat, unnoticed
from workers.job_spec import JobSpec
from workers.move import moved, wanted_move
from workers.plots import draw_access_map, draw_losses
from workers.preflight import check_job
from workers.ranks import Ranks
from workers.report import EvaluationReport, Progress, Report, last_record, read_records
from workers.run_folder import RunFolder
from workers.training import Trainer
from workers.training_cut import latest_cut

RESTARTS_MAX = 100
_POLL_S = 0.5
_RECENT_LINES = 40
ATTEMPTS_IN_VAIN_MAX = 5
_EVALUATION = "evaluation.json"
_ATTEMPTS = "attempts.json"
_embedded_for = 0  # CPUs of the Ray that this process has started for itself

# These would only come again after a restart.
_FINAL_ERRORS = (UsageError, CutError, NonFiniteGradientError)


@dataclass(frozen=True)
class _Outcome:
    """What the leading trainer hands over at the end."""

    evaluation: EvaluationReport
    dense_parameters: int


def train(
    job: JobSpec, run: RunFolder, *, resume: bool = False, on_progress: Callable[[Progress], None]
) -> Report:
    """Train a job in its run folder, and write its report and plots. Blocks until the end.

    `run` must hold the job already (`RunFolder.create`); with `resume` it may have been changed since, and the run goes on
    from its last cut. Raises UsageError for what is wrong with the job or its data, CutError for a damaged cut, StoreError
    if shards or trainers fail for good.
    """
    begun = time.time()
    check_job(job)
    if resume:
        latest_cut(run.cuts_path)
    on_progress(Progress("starting", 0, job.train.steps))
    run.failure_path.unlink(missing_ok=True)
    with _reporting(job, run, on_progress):
        if job.store.carrier == "in_process":
            outcome: _Outcome | None = _train_here(job, run)
        else:
            while (outcome := _train_on_ray(job, run)) is None:
                job = _after_move(job, run)
    assert outcome is not None, "only shards of their own can be moved"
    report = _report(job, run, outcome, begun)
    replace_file(run.report_path, report.model_dump_json(indent=2).encode() + b"\n")
    return report


# ---- in this process ---------------------------------------------------------------------------------------------


def _train_here(job: JobSpec, run: RunFolder) -> _Outcome | None:
    store = in_process_store(job.tables(), job.store.shards, lookup=job.store.lookup) if job.memory else None
    return _run_trainer(job, run, Ranks(device=_device(job)), store)


def _run_trainer(
    job: JobSpec, run: RunFolder, ranks: Ranks, store: StoreClient | None, at: At = unnoticed
) -> _Outcome | None:
    torch.manual_seed(job.seed)
    torch.use_deterministic_algorithms(ranks.device.type == "cpu")
    trainer = Trainer(job, run, ranks, store, at)
    evaluation = trainer.train()
    if evaluation is None:
        return None
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return _Outcome(evaluation, parameters)


def _device(job: JobSpec) -> torch.device:
    cuda = job.train.device == "cuda" or (job.train.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


# ---- on Ray ------------------------------------------------------------------------------------------------------


def _train_on_ray(job: JobSpec, run: RunFolder) -> _Outcome | None:
    """Train to the end, or (None) until the job is to have other shards or trainers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from workers.watch import Watch

    processes = _processes(job)
    start_embedded_ray(processes)
    _check_room(processes)
    for leftover in (run.path / _ATTEMPTS, run.path / _EVALUATION):
        leftover.unlink(missing_ok=True)
    # A log serves the shards of one start of the job: what was before is in the cuts.
    shutil.rmtree(run.logs_path, ignore_errors=True)
    logs = run.logs_path if job.store.durability == "log" else None
    shards = start_shards(job.name, job.tables(), job.store.shards, logs=logs) if job.memory else None
    threads = str(max(1, (os.cpu_count() or 1) // job.train.trainers))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": job.model_dump_json(),
            "run": str(run.path),
            "shards": shards.group if shards else None,
        },
        scaling_config=ScalingConfig(num_workers=job.train.trainers, use_gpu=_device(job).type == "cuda"),
        run_config=RunConfig(
            name=job.name,
            storage_path=str(run.path / "ray"),
            failure_config=FailureConfig(max_failures=RESTARTS_MAX),
            worker_runtime_env={  # type: ignore[call-arg]  # of the class Ray really uses
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "NUMBA_NUM_THREADS": threads,
                    "OMP_WAIT_POLICY": "PASSIVE",
                }
            },
        ),
    )
    shutil.rmtree(run.beats_path, ignore_errors=True)
    run.beats_path.mkdir()
    watch = Watch(
        shards.group if shards else None,
        run.beats_path,
        job.train.silent_after,
        lambda what: tell(run.events_path, "silent", _last_step(run), what),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise StoreError(
            f"The trainers failed more than {RESTARTS_MAX} times; the last failure: {error}"
        ) from error
    finally:
        watch.stop()
        if shards is not None:
            shards.stop()
        for leftover in (run.logs_path, run.beats_path):
            shutil.rmtree(leftover, ignore_errors=True)
    if run.failure_path.is_file():
        failure = json.loads(run.failure_path.read_text(encoding="utf-8"))
        raise error_named(failure["kind"], failure["message"])
    if not (run.path / _EVALUATION).is_file():
        return None
    done = json.loads((run.path / _EVALUATION).read_text(encoding="utf-8"))
    return _Outcome(EvaluationReport.model_validate(done["evaluation"]), done["dense_parameters"])


def _after_move(job: JobSpec, run: RunFolder) -> JobSpec:
    """The job as it goes on from the cut that was written for a move; as before, where there is no room for that."""
    move = wanted_move(run)
    if move is not None and (move.shards, move.trainers) != (job.store.shards, job.train.trainers):
        try:
            wanted = moved(job, move)
            _make_room(_processes(wanted))
            _check_room(_processes(wanted))
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


def _processes(job: JobSpec) -> int:
    return job.train.trainers + (job.store.shards if job.memory else 0)


def start_embedded_ray(processes: int) -> None:
    """Start a Ray for this process alone, with room for `processes` shards and trainers, unless there is one."""
    import ray

    global _embedded_for
    if ray.is_initialized():
        return
    _embedded_for = max(os.cpu_count() or 1, processes)
    # Shards hold state: they must not run at lower priority than others, nor be the first to be killed. (Ray turns
    # its token authentication on by itself for a cluster started here.)
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_oom_score_adjustment", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",  # not one that others have started on this machine
        num_cpus=_embedded_for,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=100 << 20,
    )


def _make_room(processes: int) -> None:
    """Replace a Ray that was started here, on which nothing runs now, by one for more processes, if they are more."""
    import ray

    if 0 < _embedded_for < processes:
        ray.shutdown()
        start_embedded_ray(processes)


def _check_room(processes: int) -> None:
    """Raises UsageError if the cluster could never run all `processes`, for which Ray Train would wait without end."""
    import ray

    cpus: float = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    if cpus < processes:
        raise UsageError(
            f"The job's shards and trainers are {processes} processes of one CPU each, and the Ray cluster has "
            f"{cpus:g} CPUs; use fewer store.shards or train.trainers, or more hosts."
        )


def _train_worker(config: dict[str, object]) -> None:
    """What each trainer process runs; Ray Train calls it again in a new process after a failure."""
    import ray
    import ray.train

    job = JobSpec.model_validate_json(str(config["job"]))
    run = RunFolder(Path(str(config["run"])))
    if run.failure_path.exists():
        return
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), _device(job))
    heartbeat = Heartbeat(run.beats_path, ranks.rank, ray.get_runtime_context().get_node_id())
    attempts = _count_attempt(run) if ranks.leads else None
    group = config["shards"]
    try:
        store = None
        if isinstance(group, ShardGroup):
            store = group.connect(
                lookup=job.store.lookup, wire=job.store.wire, in_place=job.store.carrier == "auto"
            )
        outcome = _run_trainer(job, run, ranks, store, heartbeat.at)
    except Exception as error:
        if isinstance(error, _FINAL_ERRORS) or (attempts and attempts.in_vain >= ATTEMPTS_IN_VAIN_MAX):
            failure = {"kind": type(error).__name__, "message": f"{type(error).__name__}: {error}"}
            if isinstance(error, PkmError):
                failure["message"] = str(error)
            replace_file(run.failure_path, json.dumps(failure).encode())
            return
        raise
    finally:
        heartbeat.stop()
    if attempts and outcome is not None:
        done = {
            "evaluation": outcome.evaluation.model_dump(mode="json"),
            "dense_parameters": outcome.dense_parameters,
        }
        replace_file(run.path / _EVALUATION, json.dumps(done).encode())


@dataclass(frozen=True)
class _Attempts:
    """How often the trainers have started, and how often in a row without a new cut."""

    count: int
    in_vain: int
    step: int


def _count_attempt(run: RunFolder) -> _Attempts:
    path = run.path / _ATTEMPTS
    before = _Attempts(**json.loads(path.read_text())) if path.is_file() else _Attempts(0, 0, 0)
    cuts = complete_cuts(run.cuts_path)
    step = cut_step(cuts[-1]) if cuts else 0
    in_vain = before.in_vain + 1 if before.count and step == before.step else 0
    attempts = _Attempts(before.count + 1, in_vain, step)
    if before.count:
        tell(
            run.events_path, "restart", step, f"The trainers were started again, from the cut of step {step}."
        )
    replace_file(path, json.dumps(vars(attempts)).encode())
    return attempts


# ---- telling -----------------------------------------------------------------------------------------------------


@contextmanager
def _reporting(job: JobSpec, run: RunFolder, on_progress: Callable[[Progress], None]) -> Iterator[None]:
    """Follow the run's log in a thread, and tell of each new line."""
    stop = threading.Event()

    def follow() -> None:
        told = -1
        usage = None
        seen = time.time()
        over = False
        while not over:
            over = stop.wait(_POLL_S)
            for event in read_events(run.events_path, seen):
                seen = math.nextafter(event.time, math.inf)
                on_progress(Progress("training", event.step, job.train.steps, news=event.message))
            record = last_record(run.metrics_path)
            if record is None or record.step == told:
                continue
            recent = read_records(run.metrics_path)[-_RECENT_LINES:]
            usage = next(
                (line.memory_usage for line in reversed(recent) if line.memory_usage is not None), usage
            )
            rate = sorted(line.tokens_per_second for line in recent)[len(recent) // 2]
            left = (job.train.steps - record.step) * job.train.batch_tokens / rate
            phase = _phase(record.step, told, job.train.steps)
            told = record.step
            on_progress(Progress(phase, record.step, job.train.steps, record.loss, rate, usage, left))

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _phase(step: int, told: int, steps: int) -> str:
    if step < told:
        return "recovering"
    return "evaluating" if step == steps else "training"


def _report(job: JobSpec, run: RunFolder, outcome: _Outcome, begun: float) -> Report:
    records = read_records(run.metrics_path)
    plots = [draw_losses(records, run.plots_path / "loss.png", job.name)]
    if job.memory is not None:
        plots.append(draw_access_map(run.access_map_path, run.plots_path / "access-map.png", job.name))
    tables = list(outcome.evaluation.memory.values())
    count = max(1, len(tables))
    train_seconds = sum(record.seconds for record in records)
    return Report(
        name=job.name,
        test_perplexity=outcome.evaluation.perplexity,
        test_tokens=outcome.evaluation.tokens,
        memory_usage=sum(table.usage for table in tables) / count if tables else None,
        kl_to_uniform=sum(table.kl_to_uniform for table in tables) / count if tables else None,
        top1_share=sum(table.top1_share for table in tables) / count if tables else None,
        dead_slots=sum(table.dead_slots for table in tables) if tables else None,
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
