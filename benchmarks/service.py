"""The `service` benchmark: how the job service answers when its database is full and many are asking.

The service is a process of its own. Requests are sent at fixed times, whether or not those before them have been answered,
and each answer's time counts from when its request was due: so waiting in a line is not left out. Meanwhile watchers
wait for jobs of their own; at the end all these jobs are cancelled, and every watcher has to be told. A burst of jobs is
submitted at once, each of them twice as after a lost answer, and counted afterwards. Last, another tenant floods the service
(flood.py), and a few requests are sent as before.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import numpy as np
from google.protobuf.message import Message

from benchmarks.job_server import DATABASE, TENANT, TOKEN
from benchmarks.results import BenchmarkRun, Recorder
from protos import jobs_pb2 as pb
from service.jobs.api import SERVICE
from service.jobs.database import JobDatabase, NewJob
from service.jobs.demand import demand_of
from service.jobs.folder import ServiceFolder
from service.jobs.tokens import bearer
from workers.corpus import prepare_corpus
from workers.job_spec import JobSpec

_ADDRESSES = Path(__file__).parent.parent / "examples" / "data" / "sotu.parquet"
_TIMEOUT_S = 60.0
_END_S = 20.0
_CONNECTIONS = 20
_KINDS = ("list", "list by state", "status")
_BESIDE_FLOOD_PER_S = 20
_FLOOD_BEGINS_S = 20.0  # what comes at once at its begin is not what lasts
_FILL = """
WITH RECURSIVE counted(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM counted WHERE i < :jobs)
INSERT INTO jobs (id, tenant, request_id, digest, name, priority, demand, state, reason, wanted, attempt,
                  submitted_at, changed_at, started_at, ended_at)
SELECT lower(hex(randomblob(6))), tenant, 'filled-' || i, digest, 'job-' || (i % 1000), 0, demand,
       CASE i % 50 WHEN 0 THEN 'cancelled' WHEN 1 THEN 'failed' ELSE 'succeeded' END, 'as it was filled in', 'run', 1,
       submitted_at, submitted_at, submitted_at, submitted_at
FROM counted, jobs WHERE number = 1;
"""


@dataclass(frozen=True)
class ServiceSize:
    """Jobs in the database; requests per second and for how long; watchers; jobs submitted in a burst."""

    jobs: int
    requests_per_s: int
    seconds: float
    watchers: int
    burst: int


FULL = ServiceSize(100_000, 100, 60.0, 500, 1000)
QUICK = ServiceSize(100_000, 100, 10.0, 500, 1000)


def run(size: ServiceSize, *, quick: bool) -> BenchmarkRun:
    """Fill a database, start a service with it, and ask."""
    recorder = Recorder("service", quick=quick)
    with TemporaryDirectory(dir=Path.cwd(), prefix=".service-") as name:
        folder = Path(name)
        ids = _fill(folder, size.jobs)
        with _service(folder) as port:
            asyncio.run(_ask(recorder, size, folder, port, ids))
    return recorder.finish()


def _fill(folder: Path, jobs: int) -> list[str]:
    """A database of so many jobs; the ids of some of them."""
    database = JobDatabase(folder / DATABASE)
    spec = _job(folder)
    database.submit(NewJob(TENANT, "first", spec.name, spec.model_dump_json(), demand_of(spec)))
    database.close()
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute(_FILL, {"jobs": jobs - 1})
        connection.execute(
            "INSERT INTO specs SELECT number, (SELECT spec FROM specs) FROM jobs WHERE number > 1"
        )
        connection.execute(
            "INSERT INTO changes (job, time, state, reason) SELECT number, changed_at, state, reason FROM jobs"
        )
    ids = [found for (found,) in connection.execute("SELECT id FROM jobs ORDER BY random() LIMIT 1000")]
    connection.close()
    return ids


def _job(folder: Path) -> JobSpec:
    settings = {
        "name": "submitted",
        "data": {"corpus": str(_corpus(folder))},
        "model": {"layers": 4, "dim": 128, "heads": 4},
        "memory": {"layers": [2], "sub_keys": 128},
        "train": {"steps": 100, "batch_tokens": 2048},
    }
    return JobSpec.model_validate(settings)


def _corpus(folder: Path) -> Path:
    """A corpus that the service lets its jobs read: the addresses of the quickstart."""
    corpus, _ = ServiceFolder(folder).data_of(TENANT)
    if not corpus.exists():
        prepare_corpus([_ADDRESSES], corpus, vocab_size=512)
    return corpus


@contextmanager
def _service(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.job_server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(_END_S)


class _Caller:
    """Calls the service over several connections in turn, as several people do."""

    def __init__(self, port: int) -> None:
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", own_connection) for _ in range(_CONNECTIONS)
        ]
        self._next = cycle(self.channels)

    def call(self, method: str, request: Message) -> Any:
        found = SERVICE.methods_by_name[method]
        channel = next(self._next)
        make = channel.unary_stream if found.server_streaming else channel.unary_unary
        call = make(
            f"/{SERVICE.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(pb, found.output_type.name).FromString,
        )
        return call(request, metadata=[bearer(TOKEN)], timeout=_TIMEOUT_S + 300 * found.server_streaming)


async def _ask(recorder: Recorder, size: ServiceSize, folder: Path, port: int, ids: list[str]) -> None:
    caller = _Caller(port)
    spec = _job(folder).model_dump_json()

    async def submit(request_id: str) -> str:
        request = pb.SubmitRequest(request_id=request_id, spec=spec)
        return str((await caller.call("Submit", request)).id)

    watched = await asyncio.gather(*(submit(f"watched-{number}") for number in range(size.watchers)))
    watches = [caller.call("Watch", pb.WatchRequest(id=job)) for job in watched]
    for watch in watches:
        await watch.read()

    _record(recorder, await _answered(size, size.requests_per_s, caller, ids))

    ends = [asyncio.create_task(_end_of(watch)) for watch in watches]
    begun = time.perf_counter()
    await asyncio.gather(*(caller.call("Cancel", pb.AskRequest(id=job)) for job in watched))
    told = [await end for end in ends]
    recorder.add("all watchers are told", "s", [time.perf_counter() - begun], watchers=size.watchers)
    recorder.ratio("service_watchers_told", told.count(pb.CANCELLED) / size.watchers)

    begun = time.perf_counter()
    requests = [f"burst-{number}" for number in range(size.burst)] * 2
    accepted = await asyncio.gather(*map(submit, requests))
    recorder.add("a burst is accepted", "s", [time.perf_counter() - begun], submits=2 * size.burst)
    kept = [job.id for job in await _all_queued(caller)]
    lost = len(set(accepted) - set(kept))
    recorder.ratio("service_submits_lost_or_doubled", lost + abs(len(kept) - 1 - size.burst))
    await _measure_beside_flood(recorder, size, port, caller, ids)
    for channel in caller.channels:
        await channel.close()


async def _answered(size: ServiceSize, per_s: int, caller: _Caller, ids: list[str]) -> dict[str, list[float]]:
    """Milliseconds until each request was answered, by kind."""
    chance = random.Random(1)
    asks: dict[str, Callable[[], Message]] = {
        "list": lambda: pb.ListRequest(),
        "list by state": lambda: pb.ListRequest(states=[pb.FAILED, pb.SUCCEEDED], name=""),
        "status": lambda: pb.JobRequest(id=chance.choice(ids)),
    }
    milliseconds: dict[str, list[float]] = {kind: [] for kind in asks}

    async def ask(kind: str, due: float) -> None:
        await caller.call("Get" if kind == "status" else "List", asks[kind]())
        milliseconds[kind].append(1e3 * (time.perf_counter() - due))

    asked: list[Awaitable[None]] = []
    begun = time.perf_counter()
    for number in range(int(per_s * size.seconds)):
        due = begun + number / per_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(_KINDS[number % len(_KINDS)], due)))
    await asyncio.gather(*asked)
    return milliseconds


def _record(recorder: Recorder, milliseconds: dict[str, list[float]]) -> None:
    for kind, found in milliseconds.items():
        recorder.add("answer", "ms", found, kind=kind)
        recorder.add("answer, 99th percentile", "ms", [_p99(found)], kind=kind)
    recorder.ratio("service_list_p99_ms", _p99(milliseconds["list"] + milliseconds["list by state"]))
    recorder.ratio("service_status_p99_ms", _p99(milliseconds["status"]))


async def _measure_beside_flood(
    recorder: Recorder, size: ServiceSize, port: int, caller: _Caller, ids: list[str]
) -> None:
    quiet = await _answered(size, _BESIDE_FLOOD_PER_S, caller, ids)
    command = [sys.executable, "-m", "benchmarks.flood", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
        assert flood.stdin is not None
        assert flood.stdout is not None
        try:
            await asyncio.to_thread(flood.stdout.readline)
            await asyncio.sleep(_FLOOD_BEGINS_S)
            flooded = await _answered(size, _BESIDE_FLOOD_PER_S, caller, ids)
        finally:
            flood.stdin.close()
    both = {"no": [*chain(*quiet.values())], "yes": [*chain(*flooded.values())]}
    for name, found in both.items():
        recorder.add("answer beside a flood, 99th percentile", "ms", [_p99(found)], flood=name)
    recorder.ratio("service_flooded_p99_ms", _p99(both["yes"]))
    recorder.ratio("service_flooded_over_quiet", _p99(both["yes"]) / _p99(both["no"]))


def _p99(samples: list[float]) -> float:
    return float(np.percentile(samples, 99))


async def _end_of(watch: Any) -> int:
    """The last state that a watch tells of."""
    state = pb.JOB_STATE_UNSPECIFIED
    while (update := await watch.read()) is not grpc.aio.EOF:
        state = update.job.state
    return int(state)


async def _all_queued(caller: _Caller) -> list[pb.Job]:
    jobs: list[pb.Job] = []
    token = ""
    while True:
        request = pb.ListRequest(states=[pb.QUEUED], page_size=1000, page_token=token)
        page = await caller.call("List", request)
        jobs += page.jobs
        token = page.next_page_token
        if not token:
            return jobs
