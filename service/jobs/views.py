"""Calls that look: at jobs, their logs, metrics and cuts, and at the cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

from memory_store.cuts import MANIFEST, complete_cuts, cut_step
from memory_store.errors import UsageError
from protos import jobs_pb2 as pb
from service.jobs.database import PAGE_MAX, JobDatabase, KeptJob
from service.jobs.demand import Host, sum_of
from service.jobs.folder import ServiceFolder
from service.jobs.job import Change
from service.jobs.log_file import offset_of_tail, read_log
from service.jobs.states import ENDED, WITH_DRIVER, JobState
from service.jobs.turns import Turns
from service.jobs.watchers import Watchers
from service.jobs.wire import (
    change_message,
    job_message,
    load_message,
    progress_message,
    resources_message,
    state_of,
)
from workers.job_status import read_status
from workers.report import Progress, records_after
from workers.shard_load import ShardLoad, read_loads

_PAGE = 100
_METRICS, _METRICS_MAX = 1000, 10_000
_FOLLOW_EVERY_S = 0.5


class Views:
    """Answers from the database and the run folders; `watchers` tells when there is something new of a job."""

    def __init__(
        self,
        database: JobDatabase,
        folders: ServiceFolder,
        hosts: Callable[[], Sequence[Host]],
        watchers: Watchers,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._database, self._folders, self._hosts, self._watchers = database, folders, hosts, watchers

    async def get(self, request: pb.JobRequest, tenant: str) -> pb.JobDetails:
        def read() -> pb.JobDetails:
            job = self._database.find(tenant, request.id)
            spec, changes = self._database.spec(job), self._database.changes(job)
            return pb.JobDetails(
                job=job_message(job),
                spec=spec,
                changes=map(change_message, changes),
                run=str(self._folders.run_of(job).path),
            )

        return await self._turns.take(tenant, read)

    async def page(self, request: pb.ListRequest, tenant: str) -> pb.JobPage:
        states = _states(request.states)
        size = min(request.page_size or _PAGE, PAGE_MAX)
        before = _number_of(request.page_token) if request.page_token else None
        name = request.name or None
        jobs = await self._turns.take(tenant, self._database.newest, tenant, states, name, before, size)
        more = str(jobs[-1].number) if len(jobs) == size else ""
        return pb.JobPage(jobs=map(job_message, jobs), next_page_token=more)

    async def watch(self, request: pb.WatchRequest, tenant: str) -> AsyncGenerator[pb.WatchUpdate, None]:
        job = await self._turns.take(tenant, self._database.find, tenant, request.id)
        seen = request.changes_seen
        told: tuple[KeptJob, Progress | None, tuple[ShardLoad, ...]] | None = None
        with self._watchers.waiting_for(job.number) as changed:
            while True:
                changed.clear()
                job, changes, progress, loads = await self._turns.take(tenant, self._look, job.id)
                fresh = changes[seen:]
                seen = len(changes)
                if fresh or (job, progress, loads) != told:
                    told = job, progress, loads
                    yield pb.WatchUpdate(
                        job=job_message(job),
                        changes=map(change_message, fresh),
                        changes_seen=seen,
                        progress=progress_message(progress) if progress else None,
                        shards=map(load_message, loads),
                    )
                if job.state in ENDED:
                    return
                await changed.wait()

    def _look(self, job_id: str) -> tuple[KeptJob, list[Change], Progress | None, tuple[ShardLoad, ...]]:
        # In this order: the changes then hold the one that brought the job where it is.
        job = self._database.get(job_id)
        changes, run = self._database.changes(job), self._folders.run_of(job).path
        if job.state not in WITH_DRIVER:
            return job, changes, None, ()
        status = read_status(run, job.attempt)
        return job, changes, status.progress if status else None, read_loads(run)

    async def logs(self, request: pb.LogsRequest, tenant: str) -> AsyncIterator[pb.LogPart]:
        job = await self._turns.take(tenant, self._database.find, tenant, request.id)
        path = self._folders.run_of(job).log_path
        if request.HasField("tail"):
            offset = await self._turns.take(tenant, offset_of_tail, path, request.tail)
        else:
            offset = request.offset
        if request.follow:
            # A log in which nothing happens would not tell the follower that he is connected again.
            yield pb.LogPart(next_offset=offset)
        while True:
            ended = (await self._turns.take(tenant, self._database.get, job.id)).state in ENDED
            while text := await self._turns.take(tenant, read_log, path, offset):
                offset += len(text)
                yield pb.LogPart(text=text, next_offset=offset)
            if ended or not request.follow:
                return
            await asyncio.sleep(_FOLLOW_EVERY_S)

    async def metrics(self, request: pb.MetricsRequest, tenant: str) -> pb.MetricsPage:
        limit = min(request.limit or _METRICS, _METRICS_MAX)

        def read() -> pb.MetricsPage:
            run = self._folders.run_of(self._database.find(tenant, request.id))
            found = records_after(run.metrics_path, request.after_step, limit + 1)
            return pb.MetricsPage(
                records=[record.model_dump_json(exclude_none=True) for record in found[:limit]],
                more=len(found) > limit,
            )

        return await self._turns.take(tenant, read)

    async def cuts(self, request: pb.JobRequest, tenant: str) -> pb.CutList:
        def read() -> pb.CutList:
            run = self._folders.run_of(self._database.find(tenant, request.id))
            return pb.CutList(cuts=[_cut_message(cut) for cut in complete_cuts(run.cuts_path)])

        return await self._turns.take(tenant, read)

    async def cluster(self, request: pb.ClusterRequest, tenant: str) -> pb.ClusterAnswer:
        def read() -> pb.ClusterAnswer:
            active = self._database.newest(states=sorted(WITH_DRIVER), limit=PAGE_MAX)
            return pb.ClusterAnswer(
                hosts=map(resources_message, self._hosts()),
                taken=resources_message(sum_of([job.demand.total() for job in active])),
                jobs_waiting=self._database.count()[JobState.QUEUED],
                jobs_active=len(active),
            )

        return await self._turns.take(tenant, read)


def _cut_message(cut: Path) -> pb.Cut:
    size = sum(file.stat().st_size for file in cut.iterdir())
    return pb.Cut(step=cut_step(cut), written_at=(cut / MANIFEST).stat().st_mtime, bytes=size)


def _states(numbers: Sequence[pb.JobState]) -> list[JobState]:
    try:
        return [state_of(number) for number in numbers]
    except ValueError:
        known = ", ".join(JobState)
        raise UsageError(f"One of the states {list(numbers)} is none; the states are {known}.") from None


def _number_of(page_token: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,17}", page_token):
        raise UsageError("The page token is none; give the next_page_token of the page before.")
    return int(page_token)
