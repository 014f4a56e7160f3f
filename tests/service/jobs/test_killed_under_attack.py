"""A service that is flooded and killed at the same time: it has what it acknowledged, once, and nothing else."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import grpc
import pytest

from benchmarks.job_server import DATABASE, FLOODER_TOKEN, TENANT, TOKEN
from protos import jobs_pb2 as pb
from service.jobs.api import SERVICE
from service.jobs.database import JobDatabase
from service.jobs.folder import ServiceFolder
from service.jobs.tokens import bearer
from tests.small_job import small_corpus, small_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SUBMITTERS = 4
ACKNOWLEDGED_BEFORE_KILL = (5, 10)
LIST, SUBMIT = f"/{SERVICE.full_name}/List", f"/{SERVICE.full_name}/Submit"


@contextmanager
def job_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "benchmarks.job_server", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def flood(port: int, over: threading.Event) -> None:
    """Many calls, guessed tokens, noise and silent connections, until the service is gone."""
    silent: list[socket.socket] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls: list[grpc.Future] = []
        while not over.is_set():
            for token in (FLOODER_TOKEN, "guessed"):
                for method in (LIST, SUBMIT):
                    ask = channel.unary_unary(method)
                    calls += [ask.future(b"\xff", metadata=[bearer(token)], timeout=60) for _ in range(50)]
            try:
                silent.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                silent[-1].sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff")
            except OSError:
                pass
            for call in calls[:-200]:
                call.exception()
            calls = calls[-200:]
        for call in calls:
            call.cancel()
    for connection in silent:
        connection.close()


def test_what_was_acknowledged_under_attack_is_kept_once(tmp_path: Path) -> None:
    corpus, _ = ServiceFolder(tmp_path).data_of(TENANT)
    corpus.mkdir(parents=True)
    spec = small_job(small_corpus(corpus)).model_dump_json()
    acknowledged: dict[str, str] = {}
    numbers = count()

    def submit(port: int, request_id: str) -> str:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.SubmitRequest(request_id=request_id, spec=spec).SerializeToString()
            return pb.Job.FromString(
                channel.unary_unary(SUBMIT)(request, metadata=[bearer(TOKEN)], timeout=60)
            ).id

    sent: set[str] = set()
    for wanted in ACKNOWLEDGED_BEFORE_KILL:
        with job_server(tmp_path) as (process, port):
            over, enough = threading.Event(), threading.Event()

            def submit_many(port: int = port, wanted: int = wanted, enough: threading.Event = enough) -> None:
                while True:
                    request_id = f"request-{next(numbers)}"
                    sent.add(request_id)
                    try:
                        acknowledged[request_id] = submit(port, request_id)
                    except grpc.RpcError:
                        return  # nobody knows whether it was taken
                    if len(acknowledged) >= wanted:
                        enough.set()

            threads = [threading.Thread(target=submit_many) for _ in range(SUBMITTERS)]
            threads.append(threading.Thread(target=flood, args=(port, over)))
            for thread in threads:
                thread.start()
            assert enough.wait(500)
            process.send_signal(signal.SIGKILL)
            process.wait()
            over.set()
            for thread in threads:
                thread.join()
        database = JobDatabase(tmp_path / DATABASE)
        kept = [job.id for job in database.newest(limit=1000)]
        assert {job.tenant for job in database.newest(limit=1000)} == {TENANT}
        database.close()
        assert len(kept) == len(set(kept))
        assert set(acknowledged.values()) <= set(kept)
        assert len(kept) <= len(sent)
    with job_server(tmp_path) as (_, port):
        again = {request_id: submit(port, request_id) for request_id in sent}
    assert acknowledged.items() <= again.items()
    assert len(set(again.values())) == len(sent)
    assert set(kept) <= set(again.values())
