"""Hosts on one machine, each a network namespace with an address, a loopback and a shared memory of its own; a Ray on them,
and a service on the first, with TLS and tokens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.limited_links import LimitedLinks
from service.client import Client
from service.jobs.tokens import digest_of, own_token
from workers.ray_cluster import ray_environment

HEAD, CPUS = 0, 2  # of each host: those that are left when one dies must hold all processes of a job
_GCS_PORT, _DASHBOARD_PORT, _PORT = 6379, 8265, 7070  # no other host has a part in them
_TRIES = 4  # Ray gives up a host whose agent takes more than some seconds to start
_OBJECT_STORE_BYTES = 80 << 20
_WAIT_S = 300.0


class RayHosts:
    """`count` hosts; files are in `folder`, which all of them see. A context manager: nothing is left when it ends."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._links = LimitedLinks(count)
        self._began: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def client(self) -> Client:
        """Asks the service, from this machine."""
        address = f"{self._links.address(HEAD)}:{_PORT}"
        token = (self.folder / "token").read_text().strip()
        return Client(address, token, (self.folder / "chain.pem").read_bytes(), timeout_s=60)

    def address(self, host: int) -> str:
        return self._links.address(host)

    def titles(self, host: int) -> list[str]:
        """The command lines of all processes on a host."""
        found = []
        for process in self._links.processes(host):
            with suppress(OSError):
                found.append(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip())
        return found

    def kill(self, host: int) -> None:
        """The host dies, with all that runs on it."""
        self._links.kill(host)

    def _start(self) -> None:
        head = self._links.address(HEAD)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=pkm", "-addext", f"subjectAltName=IP:{head}",
             "-out", self.folder / "chain.pem", "-keyout", self.folder / "key.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        token = own_token(self.folder / "token")
        own_token(self.folder / "ray-token")
        (self.folder / "tokens.txt").write_text(f"ann {digest_of(token)}\n")
        self._ray(HEAD, "--head", "--port", str(_GCS_PORT), "--include-dashboard", "true",
                  "--dashboard-host", head, "--dashboard-port", str(_DASHBOARD_PORT))  # fmt: skip
        for host in range(1, self.count):
            self._ray(host, "--address", f"{head}:{_GCS_PORT}")
        self._begin(
            HEAD, "service.cli", "serve", "--folder", str(self.folder / "service"), "--host", head, "--port", str(_PORT),
            "--certificate", str(self.folder / "chain.pem"), "--key", str(self.folder / "key.pem"),
            "--tokens", str(self.folder / "tokens.txt"), "--ray-dashboard", f"http://{head}:{_DASHBOARD_PORT}",
        )  # fmt: skip
        until(self._all_are_there, self._said)

    def _all_are_there(self) -> bool:
        with suppress(Exception), self.client() as client:
            return len(client.cluster().hosts) == self.count
        return False

    def _ray(self, host: int, *arguments: str) -> None:
        """Have a host be one of the cluster."""
        assert any(self._ray_starts(host, *arguments) for _ in range(_TRIES)), self._said()

    def _ray_starts(self, host: int, *arguments: str) -> bool:
        log = self._log(host)
        ray = self._begin(
            host, "ray.scripts.scripts", "start", *arguments, "--block", "--disable-usage-stats",
            "--node-ip-address", self._links.address(host), "--num-cpus", str(CPUS),
            "--object-store-memory", str(_OBJECT_STORE_BYTES),
            *(("--temp-dir", str(self.folder / "r")) if host == HEAD else ()),
        )  # fmt: skip
        until(lambda: ray.poll() is not None or "runtime started" in log.read_text(), self._said)
        if ray.poll() is not None:
            self._links.kill(host)  # what is left of it
        return ray.poll() is None

    def _log(self, host: int) -> Path:
        return self.folder / f"host-{host}.log"

    def _begin(self, host: int, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command on a host, which has a shared memory of its own."""
        environment = os.environ | ray_environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "ray-token"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        alone = ["sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]
        command = [*self._links.launcher(host), *alone, sys.executable, "-m", module, *arguments]
        with open(self._log(host), "ab") as log:
            begun = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._began.append(begun)
        return begun

    def _said(self) -> str:
        logs = (self._log(host) for host in range(self.count))
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs if log.exists())

    def _end(self) -> None:
        self._links.__exit__(None, None, None)
        for process in self._began:
            process.kill()
            process.wait()


def until(true: Callable[[], bool], why: Callable[[], Any] = lambda: "") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + _WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"it did not come true; {why()}"
        time.sleep(0.5)
