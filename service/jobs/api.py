"""What a service answers: the calls of protos/jobs.proto, for the tenant whose token they carry.

A person's mistake comes back as one clear sentence; any other error as a reference to the service's log, and not a word more.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from memory_store.cuts import MANIFEST, complete_cuts, cut_step
from memory_store.errors import PkmError, UsageError
from protos import jobs_pb2 as pb
from service.jobs.cluster import ClusterUnreachableError
from service.jobs.database import PAGE_MAX, JobDatabase, KeptJob, NewJob
from service.jobs.demand import Demand, Resources, check_ever_fits, demand_of, larger, sum_of
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.folder import ServiceFolder
from service.jobs.job import Change
from service.jobs.log_file import offset_of_tail, read_log
from service.jobs.scheduling import Quotas
from service.jobs.states import ENDED, WITH_DRIVER, JobState
from service.jobs.tokens import Tokens
from service.jobs.watchers import Watchers
from service.jobs.wire import (
    change_message,
    job_message,
    load_message,
    progress_message,
    resources_message,
    state_of,
)
from workers.job_spec import JobSpec
from workers.job_status import read_status
from workers.move import Move, begin_move, moved, pause_of_move
from workers.preflight import check_corpus
from workers.report import Progress, records_after
from workers.run_folder import RunFolder
from workers.shard_load import ShardLoad, read_loads

SERVICE = pb.DESCRIPTOR.services_by_name["JobService"]
STREAMS_MAX = 1000  # of one tenant: others must find room beside him
_PAGE = 100
_PRIORITY_MAX = 100
_REASON_MAX = 500
_METRICS, _METRICS_MAX = 1000, 10_000
_FOLLOW_EVERY_S = 0.5
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CODES: tuple[tuple[type[PkmError], grpc.StatusCode], ...] = (
    (NoSuchJobError, grpc.StatusCode.NOT_FOUND),
    (JobConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (ClusterUnreachableError, grpc.StatusCode.FAILED_PRECONDITION),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
)

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_Context = grpc.aio.ServicerContext[Any, Any]


class JobApi:
    """Answers from `database` and the run folders under `folders`; `hosts` gives what the hosts of the cluster have. Made in
    the event loop in which it answers.
    """

    def __init__(
        self,
        database: JobDatabase,
        tokens: Tokens,
        folders: ServiceFolder,
        hosts: Callable[[], Sequence[Resources]],
        quotas: Quotas | None = None,
    ) -> None:
        self._database, self._tokens, self._folders, self._hosts = database, tokens, folders, hosts
        self._quotas = quotas or Quotas()
        self._watchers = Watchers()
        self._streams: Counter[str] = Counter()
        database.on_change = self._watchers.changed

    def progressed(self, number: int) -> None:
        """The job of this number has got on; from any thread."""
        self._watchers.changed(number)

    def handler(self) -> grpc.GenericRpcHandler:
        """All calls, as a server takes them. Each has the method here that bears its name."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            stream = method.server_streaming
            make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
            answer = self._streaming if stream else self._answering
            handlers[method.name] = make(
                answer(getattr(self, f"_{method.name.lower()}"), getattr(pb, method.input_type.name)),
                response_serializer=getattr(pb, method.output_type.name).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    # ---- the calls -----------------------------------------------------------------------------------------------

    async def _submit(self, request: pb.SubmitRequest, tenant: str) -> pb.Job:
        if not _REQUEST_ID.fullmatch(request.request_id):
            raise UsageError(
                "The request id must be 1 to 128 letters, digits, '.', '_', ':' or '-'; choose a new one for each job."
            )
        if abs(request.priority) > _PRIORITY_MAX:
            raise UsageError(
                f"The priority is {request.priority}; it must be from -{_PRIORITY_MAX} to {_PRIORITY_MAX}."
            )
        return job_message(await asyncio.to_thread(self._take, request, tenant))

    def _take(self, request: pb.SubmitRequest, tenant: str) -> KeptJob:
        try:
            spec = JobSpec.model_validate_json(request.spec)
        except ValidationError as error:
            raise UsageError(_mistakes(error)) from None
        self._check_corpus(Path(spec.data.corpus), tenant)
        check_corpus(spec)
        demand = demand_of(spec)
        check_ever_fits(demand, self._hosts())
        self._quotas.check(tenant, demand)
        new = NewJob(tenant, request.request_id, spec.name, spec.model_dump_json(), demand, request.priority)
        return self._database.submit(new)

    async def _get(self, request: pb.JobRequest, tenant: str) -> pb.JobDetails:
        def read() -> pb.JobDetails:
            job = self._database.find(tenant, request.id)
            spec, changes = self._database.spec(job), self._database.changes(job)
            return pb.JobDetails(
                job=job_message(job),
                spec=spec,
                changes=map(change_message, changes),
                run=str(self._run(job).path),
            )

        return await asyncio.to_thread(read)

    async def _list(self, request: pb.ListRequest, tenant: str) -> pb.JobPage:
        states = _states(request.states)
        size = min(request.page_size or _PAGE, PAGE_MAX)
        before = _number_of(request.page_token) if request.page_token else None
        name = request.name or None
        jobs = await asyncio.to_thread(self._database.newest, tenant, states, name, before, size)
        more = str(jobs[-1].number) if len(jobs) == size else ""
        return pb.JobPage(jobs=map(job_message, jobs), next_page_token=more)

    async def _cancel(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.cancel)

    async def _pause(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.pause)

    async def _resume(self, request: pb.AskRequest, tenant: str) -> pb.Job:
        return await self._ask(request, tenant, self._database.resume)

    async def _ask(self, request: pb.AskRequest, tenant: str, ask: Callable[[str, str], KeptJob]) -> pb.Job:
        if len(request.reason) > _REASON_MAX:
            raise UsageError(
                f"The reason has {len(request.reason)} letters; it may have {_REASON_MAX}. Say it shorter."
            )

        def find_and_ask() -> KeptJob:
            return ask(self._database.find(tenant, request.id).id, request.reason)

        return job_message(await asyncio.to_thread(find_and_ask))

    async def _watch(self, request: pb.WatchRequest, tenant: str) -> AsyncIterator[pb.WatchUpdate]:
        job = await asyncio.to_thread(self._database.find, tenant, request.id)
        seen = request.changes_seen
        told: tuple[KeptJob, Progress | None, tuple[ShardLoad, ...]] | None = None
        with self._watchers.waiting_for(job.number) as changed:
            while True:
                changed.clear()
                job, changes, progress, loads = await asyncio.to_thread(self._look, job.id)
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
        changes, run = self._database.changes(job), self._run(job).path
        if job.state not in WITH_DRIVER:
            return job, changes, None, ()
        status = read_status(run, job.attempt)
        return job, changes, status.progress if status else None, read_loads(run)

    async def _logs(self, request: pb.LogsRequest, tenant: str) -> AsyncIterator[pb.LogPart]:
        job = await asyncio.to_thread(self._database.find, tenant, request.id)
        path = self._run(job).log_path
        if request.HasField("tail"):
            offset = await asyncio.to_thread(offset_of_tail, path, request.tail)
        else:
            offset = request.offset
        while True:
            ended = (await asyncio.to_thread(self._database.get, job.id)).state in ENDED
            while text := await asyncio.to_thread(read_log, path, offset):
                offset += len(text)
                yield pb.LogPart(text=text, next_offset=offset)
            if ended or not request.follow:
                return
            await asyncio.sleep(_FOLLOW_EVERY_S)

    async def _metrics(self, request: pb.MetricsRequest, tenant: str) -> pb.MetricsPage:
        limit = min(request.limit or _METRICS, _METRICS_MAX)

        def read() -> pb.MetricsPage:
            run = self._run(self._database.find(tenant, request.id))
            found = records_after(run.metrics_path, request.after_step, limit + 1)
            return pb.MetricsPage(
                records=[record.model_dump_json(exclude_none=True) for record in found[:limit]],
                more=len(found) > limit,
            )

        return await asyncio.to_thread(read)

    async def _cuts(self, request: pb.JobRequest, tenant: str) -> pb.CutList:
        def read() -> pb.CutList:
            run = self._run(self._database.find(tenant, request.id))
            return pb.CutList(cuts=[_cut_message(cut) for cut in complete_cuts(run.cuts_path)])

        return await asyncio.to_thread(read)

    async def _reshard(self, request: pb.ReshardRequest, tenant: str) -> pb.ReshardAnswer:
        def begin() -> tuple[RunFolder, Move, float]:
            job = self._database.find(tenant, request.id)
            if job.state not in (JobState.RUNNING, JobState.RECOVERING) or job.wanted != "run":
                raise JobConflictError(
                    f"the job is {job.state}, and only one that trains can be moved; submit it with other numbers"
                )
            run = self._run(job)
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

        run, move, asked = await asyncio.to_thread(begin)
        while (pause := await asyncio.to_thread(pause_of_move, run, asked)) is None:
            await asyncio.sleep(_FOLLOW_EVERY_S)
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

    async def _cluster(self, request: pb.ClusterRequest, tenant: str) -> pb.ClusterAnswer:
        def read() -> pb.ClusterAnswer:
            active = self._database.newest(states=sorted(WITH_DRIVER), limit=PAGE_MAX)
            return pb.ClusterAnswer(
                hosts=map(resources_message, self._hosts()),
                taken=resources_message(sum_of([job.demand.total() for job in active])),
                jobs_waiting=self._database.count()[JobState.QUEUED],
                jobs_active=len(active),
            )

        return await asyncio.to_thread(read)

    def _run(self, job: KeptJob) -> RunFolder:
        return self._folders.run(job.tenant, job.id)

    # ---- around every call ---------------------------------------------------------------------------------------

    # Requests are read here and not by gRPC, which would tell the asker of the error that it meets.

    def _answering(
        self, call: Callable[[Any, str], Awaitable[_Answer]], kind: type[Message]
    ) -> Callable[[bytes, _Context], Awaitable[_Answer]]:
        async def answer(request: bytes, context: _Context) -> _Answer:
            try:
                return await call(_read(kind, request), self._tenant(context))
            except Exception as error:
                await _refuse(context, error)

        return answer

    def _streaming(
        self, call: Callable[[Any, str], AsyncIterator[_Answer]], kind: type[Message]
    ) -> Callable[[bytes, _Context], AsyncIterator[_Answer]]:
        async def answer(request: bytes, context: _Context) -> AsyncIterator[_Answer]:
            tenant = self._tenant(context)
            if self._streams[tenant] >= STREAMS_MAX:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{STREAMS_MAX} watches and logs of yours are open already; close some of them.",
                )
            self._streams[tenant] += 1
            try:
                async for part in call(_read(kind, request), tenant):
                    yield part
            except Exception as error:
                await _refuse(context, error)
            finally:
                self._streams[tenant] -= 1

        return answer

    def _tenant(self, context: _Context) -> str:
        tenant = self._tokens.tenant_of(context.invocation_metadata() or ())
        if tenant is None:  # the server's door (server.py) has let nobody in without a token
            raise PermissionError("a call without a tenant")
        return tenant

    def _check_corpus(self, corpus: Path, tenant: str) -> None:
        """Refuse a corpus outside the folders that are the tenant's to read, wherever links lead."""
        try:
            found = corpus.resolve()
        except (OSError, RuntimeError, ValueError):
            found = None
        roots = [folder.resolve() for folder in self._folders.data_of(tenant)]
        if found is None or not any(found.is_relative_to(root) for root in roots):
            raise UsageError(
                f"data.corpus is {str(corpus)[:200]!r}; a job of this service reads from {roots[0]} or {roots[1]}."
            )


def _read(kind: type[Message], request: bytes) -> Message:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise UsageError(f"The request is no {kind.DESCRIPTOR.full_name}.") from None


async def _refuse(context: _Context, error: Exception) -> NoReturn:
    """End a call with what its asker may know of an error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    for kind, code in _CODES:
        if isinstance(error, kind):
            await context.abort(code, str(error))
    reference = secrets.token_hex(4)
    _log.error("call failed, reference %s", reference, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL, f"The service failed; its log has the reason under {reference}."
    )


def _cut_message(cut: Path) -> pb.Cut:
    size = sum(file.stat().st_size for file in cut.iterdir())
    return pb.Cut(step=cut_step(cut), written_at=(cut / MANIFEST).stat().st_mtime, bytes=size)


def _mistakes(error: ValidationError) -> str:
    """Every mistake in a job, a line each."""
    return "\n".join(
        f"{'.'.join(map(str, mistake['loc'])) or 'the job'}: {mistake['msg']}"
        for mistake in error.errors(include_url=False, include_input=False, include_context=False)
    )


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
