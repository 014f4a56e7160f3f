"""A real service as a process of its own, with a real Ray, asked through the command line; it can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.small_job import small_job

TIMEOUT_S = 120.0


@dataclass
class Served:
    """The service on the files in `folder`."""

    folder: Path
    cpus: int
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    others: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PKM_FOLDER": str(self.folder),
            "PKM_SERVER": f"127.0.0.1:{self.port}",
            "PKM_PROFILE": "",
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def start(self) -> None:
        """Start the service, and wait until it answers."""
        command = [
            sys.executable,
            "-m",
            "service.cli",
            "serve",
            "--port",
            str(self.port),
            "--http-port",
            "0",
            "--cpus",
            str(self.cpus),
        ]
        with open(self.folder / "service.log", "ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until(
            lambda: (
                self.process is None or self.process.poll() is not None or self.pkm("list").returncode == 0
            )
        )
        assert self.process.poll() is None, (self.folder / "service.log").read_text()[-2000:]

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        for other in self.others:
            other.kill()
            other.communicate()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(TIMEOUT_S) == 0
        assert self.pkm("serve", "--end-ray").returncode == 0

    def pkm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on."""
        command = [sys.executable, "-m", "service.cli", *arguments]
        begun = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.others.append(begun)
        return begun

    def job_file(self, **changes: Any) -> str:
        """A small job, as a file; see tests/small_job.py."""
        corpus = self.folder / "data" / "shared" / "corpus"
        job = small_job(corpus, **{"store__carrier": "auto", "store__lookup": "fetch", **changes})
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
        return str(path)

    def submit(self, **changes: Any) -> str:
        """Submit a small job; its id."""
        submitted = self.pkm("submit", self.job_file(**changes), "-o", "json")
        assert submitted.returncode == 0, submitted.stderr
        return str(json.loads(submitted.stdout)["id"])

    def details(self, job: str) -> dict[str, Any]:
        found = self.pkm("status", job, "-o", "json")
        assert found.stdout, found.stderr
        answer: dict[str, Any] = json.loads(found.stdout)
        return answer

    def state(self, job: str) -> str:
        return str(self.details(job)["job"]["state"])

    def wait_for(self, job: str, *states: str) -> None:
        until(lambda: self.state(job) in states)

    def steps(self, job: str) -> int:
        path = Path(self.details(job)["run"]) / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
