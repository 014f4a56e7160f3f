"""Jobs as protos/jobs.proto writes them."""

from __future__ import annotations

from typing import cast, get_args

from protos import jobs_pb2 as pb
from service.jobs.demand import Demand, Resources
from service.jobs.job import Change, Job
from service.jobs.states import JobState, Wanted
from workers.report import Progress
from workers.shard_load import ShardLoad


def job_message(job: Job) -> pb.Job:
    return pb.Job(
        id=job.id,
        tenant=job.tenant,
        name=job.name,
        priority=job.priority,
        demand=demand_message(job.demand),
        state=state_message(job.state),
        reason=job.reason,
        wanted=job.wanted.upper(),
        attempt=job.attempt,
        submitted_at=job.submitted_at,
        changed_at=job.changed_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


def job_of(message: pb.Job) -> Job:
    """The job of a message. Raises ValueError if it is of a newer release, with a state that is not known here."""
    wanted = pb.Wanted.Name(message.wanted).lower()
    if wanted not in get_args(Wanted):
        raise ValueError(f"{wanted} is nothing a job can be wanted to be")
    return Job(
        id=message.id,
        tenant=message.tenant,
        name=message.name,
        priority=message.priority,
        demand=demand_of(message.demand),
        state=state_of(message.state),
        reason=message.reason,
        wanted=cast("Wanted", wanted),
        attempt=message.attempt,
        submitted_at=message.submitted_at,
        changed_at=message.changed_at,
        started_at=message.started_at if message.HasField("started_at") else None,
        ended_at=message.ended_at if message.HasField("ended_at") else None,
    )


def demand_message(demand: Demand) -> pb.Demand:
    return pb.Demand(
        shards=demand.shards,
        shard=resources_message(demand.shard),
        trainers=demand.trainers,
        trainer=resources_message(demand.trainer),
    )


def demand_of(message: pb.Demand) -> Demand:
    return Demand(
        shards=message.shards,
        shard=resources_of(message.shard),
        trainers=message.trainers,
        trainer=resources_of(message.trainer),
    )


def resources_message(resources: Resources) -> pb.Resources:
    return pb.Resources(cpus=resources.cpus, gpus=resources.gpus, memory_bytes=resources.memory_bytes)


def resources_of(message: pb.Resources) -> Resources:
    return Resources(cpus=message.cpus, gpus=message.gpus, memory_bytes=message.memory_bytes)


def change_message(change: Change) -> pb.Change:
    return pb.Change(time=change.time, state=state_message(change.state), reason=change.reason)


def change_of(message: pb.Change) -> Change:
    return Change(message.time, state_of(message.state), message.reason)


def state_message(state: JobState) -> str:
    return state.name


def state_of(message: pb.JobState) -> JobState:
    """Raises ValueError for a number that stands for no state."""
    return JobState(pb.JobState.Name(message).lower())


def progress_message(progress: Progress) -> pb.Progress:
    return pb.Progress(
        phase=progress.phase,
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss,
        tokens_per_second=progress.tokens_per_second,
        memory_usage=progress.memory_usage,
        seconds_left=progress.seconds_left,
    )


def progress_of(message: pb.Progress) -> Progress:
    def given(name: str) -> float | None:
        return getattr(message, name) if message.HasField(name) else None

    return Progress(
        message.phase,
        message.step,
        message.steps,
        loss=given("loss"),
        tokens_per_second=given("tokens_per_second"),
        memory_usage=given("memory_usage"),
        seconds_left=given("seconds_left"),
    )


def load_message(load: ShardLoad) -> pb.ShardLoad:
    return pb.ShardLoad(**load.model_dump())


def load_of(message: pb.ShardLoad) -> ShardLoad:
    return ShardLoad(
        shard=message.shard,
        address=message.address,
        busy_cores=message.busy_cores,
        calls_per_second=message.calls_per_second,
        memory_bytes=message.memory_bytes,
    )
