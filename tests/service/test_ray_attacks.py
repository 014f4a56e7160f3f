"""The ports of the Ray that a service starts, attacked without its token: all that its processes listen on, and each call
that Ray's own descriptors know.

Attack 3 of docs/security.md. What a stranger can't call he can't send names, updates or cuts to: attacks 4, 5, 6 and 8 have
no meaning here. Nor is 2 tried: Ray has one token, and knows no tenants.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import grpc
import psutil
import pytest
import ray.core.generated

from service.jobs.folder import ServiceFolder
from service.jobs.ray_head import end
from workers.leftovers import MARK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TIMEOUT_S = 60.0
START = """
import sys
from pathlib import Path
from service.jobs.folder import ServiceFolder
from service.jobs.ray_head import find_or_start
print(find_or_start(ServiceFolder(Path(sys.argv[1])), 1)[0])
"""
GUESSES = [[], [("authorization", "Bearer guessed")], [("authentication", "guessed")]]
GCS = "ray.rpc.JobInfoGcsService"
PATHS = [
    "/api/jobs/",
    "/nodes",
    "/logs/",
    "/metrics",
    "/api/version",
    "/api/cluster_status",
    "/api/v0/actors",
    "/no-such",
]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a service, and the address of its Ray's dashboard. Started by a process of its own: whoever starts it has
    its token from then on."""
    folder = tmp_path_factory.mktemp("service")
    try:
        started = subprocess.run(
            [sys.executable, "-c", START, str(folder)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        yield folder, started.stdout.strip()
    finally:
        end(ServiceFolder(folder))


def listening(folder: Path) -> set[int]:
    """The TCP ports of all processes of that Ray."""
    ports = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder):
                found = process.net_connections(kind="tcp")
                ports |= {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}
        except psutil.Error:  # it has ended, or is not ours
            continue
    return ports


def ray_methods() -> list[str]:
    names = [found.name for found in pkgutil.iter_modules(ray.core.generated.__path__)]
    files = [importlib.import_module(f"ray.core.generated.{name}") for name in names if name.endswith("_pb2")]
    return [
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def speaks_grpc(port: int) -> bool:
    """Whether the answer to an unknown call is one of gRPC."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/no.such/Call").future(b"", timeout=TIMEOUT_S)
        code = call.code()
    return code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


def test_no_call_of_any_grpc_port_of_ray_is_answered_without_its_token(head: tuple[Path, str]) -> None:
    methods, refused = ray_methods(), set()
    assert len(methods) > 50
    ports = [port for port in listening(head[0]) if speaks_grpc(port)]
    assert ports
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in methods:
                for metadata in GUESSES:
                    call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=TIMEOUT_S)
                    code = call.code()
                    assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED), (
                        port,
                        method,
                    )
                    if code == grpc.StatusCode.UNAUTHENTICATED:
                        refused.add(method)
    gcs = {method for method in methods if method.startswith(f"/{GCS}/")}
    assert gcs
    assert gcs <= refused


def test_no_http_port_of_ray_tells_anything_but_figures(head: tuple[Path, str]) -> None:
    folder, dashboard = head
    job = f'{{"entrypoint": "touch {folder}/broken-in"}}'.encode()
    ports = [port for port in listening(folder) if not speaks_grpc(port)]
    assert int(dashboard.rpartition(":")[2]) in ports
    for port in ports:
        for path in PATHS:
            for data in (None, job):
                status, content = ask(f"http://127.0.0.1:{port}{path}", data)
                assert status in (None, 401, 403, 404, 405) or content.startswith(b"# HELP"), (
                    port,
                    path,
                    status,
                    content,
                )
    assert not (folder / "broken-in").exists()
    assert ask(f"{dashboard}/api/jobs/", job)[0] in (401, 403)


def ask(address: str, data: bytes | None) -> tuple[int | None, bytes]:
    """The status and the begin of the answer; None where nothing speaks HTTP."""
    request = urllib.request.Request(
        address, data, {"Content-Type": "application/json", "Authorization": "Bearer guessed"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read(100)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(100)
    except (OSError, HTTPException):
        return None, b""
