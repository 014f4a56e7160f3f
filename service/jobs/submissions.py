"""Calls that ask for a place in the cluster: a new job, and a move of one that runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from memory_store.errors import UsageError
from protos import jobs_pb2 as pb
from service.jobs.database import PAGE_MAX, JobDatabase, KeptJob, NewJob
from service.jobs.demand import Demand, Host, check_ever_fits, demand_of, larger, sum_of
from service.jobs.errors import JobConflictError
from service.jobs.folder import ServiceFolder
from service.jobs.scheduling import Quotas
from service.jobs.states import WITH_DRIVER, JobState
from service.jobs.turns import Turns
from service.jobs.wire import job_message
from workers.job_spec import JobSpec
from workers.move import Move, begin_move, moved, pause_of_move
from workers.preflight import check_cluster_job
from workers.run_folder import RunFolder

_PRIORITY_MAX = 100
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MOVED_EVERY_S = 0.5


class Submissions:
    """Takes what fits into the cluster, the quota and the corpora of a tenant; `hosts` gives what the hosts have."""

    def __init__(
        self,
        database: JobDatabase,
        folders: ServiceFolder,
        hosts: Callable[[], Sequence[Host]],
        quotas: Quotas,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._database, self._folders, self._hosts, self._quotas = database, folders, hosts, quotas

    async def submit(self, request: pb.SubmitRequest, tenant: str) -> pb.Job:
        if not _REQUEST_ID.fullmatch(request.request_id):
            raise UsageError(
                "The request id must be 1 to 128 letters, digits, '.', '_', ':' or '-'; choose a new one for each job."
            )
        if abs(request.priority) > _PRIORITY_MAX:
            raise UsageError(
                f"The priority is {request.priority}; it must be from -{_PRIORITY_MAX} to {_PRIORITY_MAX}."
            )
        return job_message(await self._turns.take(tenant, self._take, request, tenant))

    def _take(self, request: pb.SubmitRequest, tenant: str) -> KeptJob:
        try:
            spec = JobSpec.model_validate_json(request.spec)
        except ValidationError as error:
            raise UsageError(_mistakes(error)) from None
        self._folders.corpus(tenant, spec.data.corpus)
        check_cluster_job(spec)
        demand = demand_of(spec)
        check_ever_fits(demand, self._hosts())
        self._quotas.check(tenant, demand)
        new = NewJob(tenant, request.request_id, spec.name, spec.model_dump_json(), demand, request.priority)
        return self._database.submit(new)

    async def reshard(self, request: pb.ReshardRequest, tenant: str) -> pb.ReshardAnswer:
        def begin() -> tuple[RunFolder, Move, float]:
            job = self._database.find(tenant, request.id)
            if job.state not in (JobState.RUNNING, JobState.RECOVERING) or job.wanted != "run":
                raise JobConflictError(
                    f"the job is {job.state}, and only one that trains can be moved; submit it with other numbers"
                )
            run = self._folders.run_of(job)
            spec = run.load_job()
            move = Move(
                shards=request.shards or spec.store.shards, trainers=request.trainers or spec.train.trainers
            )
            demand = demand_of(moved(spec, move))
            check_ever_fits(demand, self._hosts())
            self._quotas.check(tenant, demand)
            self._check_room_beside_others(job, demand)
            asked = begin_move(run, move)
            # So that nobody else is given that room meanwhile; what the job has in the end, the runner sees.
            self._database.resize(job.id, larger(job.demand, demand))
            return run, move, asked

        run, move, asked = await self._turns.take(tenant, begin)
        while (pause := await self._turns.take(tenant, pause_of_move, run, asked)) is None:
            await asyncio.sleep(_MOVED_EVERY_S)
        return pb.ReshardAnswer(shards=move.shards, trainers=move.trainers, pause_seconds=pause)

    def _check_room_beside_others(self, job: KeptJob, demand: Demand) -> None:
        """Refuse a move for which the job would leave its place, and then wait for another until other jobs end."""
        active = self._database.newest(states=sorted(WITH_DRIVER), limit=PAGE_MAX)
        others = sum_of([other.demand.total() for other in active if other.id != job.id])
        cluster = sum_of(self._hosts())
        if not cluster.covers(sum_of([others, demand.total()])):
            raise JobConflictError(
                f"the job would ask for {demand.total()}, and of {cluster} other jobs have taken {others}; "
                "ask for fewer, or wait until one of those has ended"
            )


def _mistakes(error: ValidationError) -> str:
    """Every mistake in a job, a line each."""
    return "\n".join(
        f"{'.'.join(map(str, mistake['loc'])) or 'the job'}: {mistake['msg']}"
        for mistake in error.errors(include_url=False, include_input=False, include_context=False)
    )
