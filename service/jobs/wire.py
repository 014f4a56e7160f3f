"""Jobs as protos/jobs.proto writes them."""

from __future__ import annotations

from protos import jobs_pb2 as pb
from service.jobs.database import Change, Job
from service.jobs.demand import Demand, Resources
from service.jobs.states import JobState


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


def demand_message(demand: Demand) -> pb.Demand:
    return pb.Demand(
        shards=demand.shards,
        shard=resources_message(demand.shard),
        trainers=demand.trainers,
        trainer=resources_message(demand.trainer),
    )


def resources_message(resources: Resources) -> pb.Resources:
    return pb.Resources(cpus=resources.cpus, gpus=resources.gpus, memory_bytes=resources.memory_bytes)


def change_message(change: Change) -> pb.Change:
    return pb.Change(time=change.time, state=state_message(change.state), reason=change.reason)


def state_message(state: JobState) -> str:
    return state.name


def state_of(message: pb.JobState) -> JobState:
    """Raises ValueError for a number that stands for no state."""
    return JobState(pb.JobState.Name(message).lower())
