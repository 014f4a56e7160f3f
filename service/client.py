"""Asking a job service from a program: submit, find, list, ask and watch.

    with Client("127.0.0.1:7070", token) as client:
        job = client.submit(load_job("job.yaml").job)
        for update in client.watch(job.id):
            print(update.job.state, update.job.reason)

Every call may be sent again when its answer is lost, and is: a job is submitted once all the same, since a request keeps its
id. A watch that is cut goes on where it was.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from memory_store.errors import PkmError, UsageError
from protos import jobs_pb2 as pb
from service.jobs.demand import Resources
from service.jobs.errors import (
    JobConflictError,
    NoSuchJobError,
    NotAllowedError,
    ServerUnreachableError,
    ServiceError,
)
from service.jobs.job import Change, Job
from service.jobs.states import JobState
from service.jobs.tokens import bearer
from service.jobs.wire import change_of, job_of, load_of, progress_of, resources_of, state_message
from workers.job_spec import JobSpec
from workers.report import Progress, StepRecord
from workers.shard_load import ShardLoad

SERVICE = pb.DESCRIPTOR.services_by_name["JobService"]
_PAGE = 500
_PAUSE_S = 0.5
PATIENCE_S = 180.0
_ERRORS: dict[grpc.StatusCode, type[PkmError]] = {
    grpc.StatusCode.NOT_FOUND: NoSuchJobError,
    grpc.StatusCode.FAILED_PRECONDITION: JobConflictError,
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowedError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
    grpc.StatusCode.UNAVAILABLE: ServerUnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnreachableError,
}
_RETRIES = {
    "methodConfig": [
        {
            # Not the streams: they are made anew here, from where they were, and gRPC's own try could wait for ever.
            "name": [
                {"service": SERVICE.full_name, "method": method.name}
                for method in SERVICE.methods
                if not method.server_streaming
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRIES)),
    # A service that was away for a minute is found within a second of its return, and not half a minute later.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 << 20),
)


@dataclass(frozen=True)
class JobDetails:
    """A job, what was submitted, and every state it has been in, oldest first. `run` is the folder of its files, as the
    hosts of the cluster see it."""

    job: Job
    spec: JobSpec
    changes: tuple[Change, ...]
    run: Path


@dataclass(frozen=True)
class JobUpdate:
    """A job as it is, the states it has come into since the update before, and how far it is
    and how busy its shards are while it has a process."""

    job: Job
    changes: tuple[Change, ...]
    progress: Progress | None = None
    shards: tuple[ShardLoad, ...] = ()


@dataclass(frozen=True)
class Cut:
    """A complete checkpoint; `written_at` in seconds since 1970."""

    step: int
    written_at: float
    bytes: int


@dataclass(frozen=True)
class CutFile:
    """A file from which a job's last cut is evaluated: `corpus/FILE` or `cuts/CUT/FILE`."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Moved:
    """Where a job trains now, and for how long it stood still on the way."""

    shards: int
    trainers: int
    pause_seconds: float


@dataclass(frozen=True)
class ClusterLoad:
    """What each host of the cluster has, and what jobs of all tenants have taken of that."""

    hosts: tuple[Resources, ...]
    taken: Resources
    jobs_waiting: int
    jobs_active: int


class Client:
    """Asks the service at `server`, "HOST:PORT", as the tenant whose `token` it is.

    With `certificate`, the PEM of who is trusted, over TLS; without it the token travels in the open, which only a service
    on this machine accepts. A call that is not answered within `timeout_s` seconds raises ServerUnreachableError; besides
    what each call says, all raise NotAllowedError for a token that is not known, and ServiceError if the service fails.
    """

    def __init__(
        self, server: str, token: str, certificate: bytes | None = None, timeout_s: float = 10.0
    ) -> None:
        self.server, self._metadata, self._timeout_s = server, [bearer(token)], timeout_s
        if certificate is None:
            self._channel = grpc.insecure_channel(server, _OPTIONS)
        else:
            self._channel = grpc.secure_channel(server, grpc.ssl_channel_credentials(certificate), _OPTIONS)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the connection go."""
        self._channel.close()

    def submit(self, job: JobSpec, priority: int = 0, request_id: str | None = None) -> Job:
        """Put a job into the queue; with the request id of an earlier submission, find the job that it has made.

        Raises UsageError if the service can't run it, JobConflictError if the request id stands for another job.
        """
        request = pb.SubmitRequest(
            request_id=request_id or uuid.uuid4().hex, spec=job.model_dump_json(), priority=priority
        )
        return job_of(self._ask("Submit", request))

    def get(self, job_id: str) -> JobDetails:
        """All about a job; as much of an id is enough as no other job has. Raises NoSuchJobError."""
        found = self._ask("Get", pb.JobRequest(id=job_id))
        return JobDetails(
            job_of(found.job),
            JobSpec.model_validate_json(found.spec),
            tuple(change_of(change) for change in found.changes),
            Path(found.run),
        )

    def list(self, states: Sequence[JobState] = (), name: str = "") -> Iterator[Job]:
        """The jobs in these states and of this name, or all; newest first, asked for as they are read."""
        token = ""
        while True:
            request = pb.ListRequest(
                states=map(state_message, states), name=name, page_size=_PAGE, page_token=token
            )
            page = self._ask("List", request)
            yield from map(job_of, page.jobs)
            token = page.next_page_token
            if not token:
                return

    def cancel(self, job_id: str, reason: str = "") -> Job:
        """End a job after a last cut. Raises NoSuchJobError; JobConflictError if it has ended otherwise."""
        return job_of(self._ask("Cancel", pb.AskRequest(id=job_id, reason=reason)))

    def pause(self, job_id: str, reason: str = "") -> Job:
        """Have a job rest after a cut, and give its place back. Raises NoSuchJobError, JobConflictError."""
        return job_of(self._ask("Pause", pb.AskRequest(id=job_id, reason=reason)))

    def resume(self, job_id: str, reason: str = "") -> Job:
        """Have a paused job go on. Raises NoSuchJobError, JobConflictError."""
        return job_of(self._ask("Resume", pb.AskRequest(id=job_id, reason=reason)))

    def metrics(self, job_id: str, after_step: int = 0) -> Iterator[StepRecord]:
        """The figures of every step after `after_step`, asked for as they are read. Raises NoSuchJobError."""
        while True:
            page = self._ask("Metrics", pb.MetricsRequest(id=job_id, after_step=after_step))
            for text in page.records:
                record = StepRecord.model_validate_json(text)
                after_step = record.step
                yield record
            if not page.more:
                return

    def cuts(self, job_id: str) -> tuple[Cut, ...]:
        """The complete checkpoints of a job, oldest first. Raises NoSuchJobError."""
        found = self._ask("Cuts", pb.JobRequest(id=job_id)).cuts
        return tuple(Cut(cut.step, cut.written_at, cut.bytes) for cut in found)

    def cut_files(self, job_id: str) -> tuple[CutFile, ...]:
        """The files from which a job's last cut is evaluated, the cut's manifest last; service.fetch_run fetches them.

        Raises NoSuchJobError; JobConflictError if the job has no cut yet.
        """
        found = self._ask("CutFiles", pb.JobRequest(id=job_id)).files
        return tuple(CutFile(file.name, file.bytes, file.sha256) for file in found)

    def read_cut_file(
        self, job_id: str, name: str, *, offset: int = 0, patience_s: float = PATIENCE_S
    ) -> Iterator[bytes]:
        """One of these files in parts, from a byte `offset` on; a connection that is lost is made again.

        Raises NoSuchJobError; JobConflictError if there is no such file any more; ServerUnreachableError if the service does
        not answer for `patience_s` seconds.
        """
        read = offset

        def request() -> Message:
            return pb.ReadCutFileRequest(id=job_id, name=name, offset=read)

        for part in self._stream("ReadCutFile", request, patience_s):
            read += len(part.content)
            yield part.content

    def reshard(
        self, job_id: str, shards: int | None = None, trainers: int | None = None, timeout_s: float = 600.0
    ) -> Moved:
        """Give a running job other numbers of shards and trainers, and wait until it trains there.

        Raises NoSuchJobError, JobConflictError if it does not train, UsageError if it can't be moved there.
        """
        request = pb.ReshardRequest(id=job_id, shards=shards or 0, trainers=trainers or 0)
        moved = self._ask("Reshard", request, timeout_s)
        return Moved(moved.shards, moved.trainers, moved.pause_seconds)

    def cluster(self) -> ClusterLoad:
        """What the cluster has, and what is taken."""
        found = self._ask("Cluster", pb.ClusterRequest())
        hosts = tuple(map(resources_of, found.hosts))
        return ClusterLoad(hosts, resources_of(found.taken), found.jobs_waiting, found.jobs_active)

    def watch(self, job_id: str, patience_s: float = PATIENCE_S) -> Iterator[JobUpdate]:
        """The job as it is, then again whenever it changes or gets on, until it has ended.

        A connection that is lost is made again, and no change told twice or left out. Raises NoSuchJobError;
        ServerUnreachableError if the service does not answer for `patience_s` seconds.
        """
        seen, told = 0, None

        def request() -> Message:
            return pb.WatchRequest(id=job_id, changes_seen=seen)

        for update in self._stream("Watch", request, patience_s):
            seen = update.changes_seen
            progress = progress_of(update.progress) if update.HasField("progress") else None
            found = JobUpdate(
                job_of(update.job),
                tuple(map(change_of, update.changes)),
                progress,
                tuple(map(load_of, update.shards)),
            )
            if told is None or found.changes or replace(found, changes=told.changes) != told:
                told = found  # a new connection begins with what is known
                yield found

    def logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        offset: int | None = None,
        tail: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Iterator[bytes]:
        """What the job's processes have printed, in parts: all, from a byte `offset` on, or the last `tail` lines.

        With `follow`, until the job has ended; a connection that is lost is made again, and nothing told twice or left out.
        Raises NoSuchJobError; ServerUnreachableError if the service does not answer for `patience_s` seconds.
        """
        heard = offset

        def request() -> Message:
            if heard is None and tail is not None:
                return pb.LogsRequest(id=job_id, tail=tail, follow=follow)
            return pb.LogsRequest(id=job_id, offset=heard or 0, follow=follow)

        for part in self._stream("Logs", request, patience_s):
            heard = part.next_offset
            if part.text:
                yield part.text

    def _stream(self, method: str, request: Callable[[], Message], patience_s: float) -> Iterator[Any]:
        """The answers to a request, which is made anew, from where it was, whenever the connection is lost."""
        lost = None
        while True:
            try:
                for answer in self._method(method)(request(), metadata=self._metadata):
                    lost = None
                    yield answer
                return
            except grpc.RpcError as error:
                explained = self._explain(error)
                lost = lost or time.monotonic()
                if not isinstance(explained, ServerUnreachableError) or time.monotonic() > lost + patience_s:
                    raise explained from None
            time.sleep(_PAUSE_S)

    def _ask(self, method: str, request: Message, timeout_s: float | None = None) -> Any:
        try:
            return self._method(method)(
                request, timeout=timeout_s or self._timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _method(self, name: str) -> Any:
        found = SERVICE.methods_by_name[name]
        make = self._channel.unary_stream if found.server_streaming else self._channel.unary_unary
        return make(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=getattr(pb, found.input_type.name).SerializeToString,
            response_deserializer=getattr(pb, found.output_type.name).FromString,
        )

    def _explain(self, error: grpc.RpcError) -> PkmError:
        code, said = error.code(), error.details()
        kind = _ERRORS.get(code, ServiceError)
        if kind is ServerUnreachableError:
            return kind(
                f"The service at {self.server} does not answer; is it running, and is that its address?"
            )
        return kind(said)
