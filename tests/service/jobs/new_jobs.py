"""Jobs to submit, as tests make them up."""

from __future__ import annotations

from service.jobs.database import NewJob
from service.jobs.demand import Demand, Resources

DEMAND = Demand(
    shards=2, shard=Resources(cpus=1, memory_bytes=1 << 20), trainers=1, trainer=Resources(cpus=1)
)


def new_job(request_id: str, tenant: str = "ann", name: str = "small", priority: int = 0) -> NewJob:
    return NewJob(tenant, request_id, name, f'{{"name": "{name}"}}', DEMAND, priority)
