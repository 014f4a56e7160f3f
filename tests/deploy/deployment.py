"""docker-compose.yml brought up for real, from images that are built here, with secrets of its own; all of it is taken down.

Grafana is left out: its image can't be built from packages. Prometheus is Debian's (Dockerfile.prometheus).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client import Client

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = "python:3.11-slim-bookworm"
COMPOSE = os.environ.get("PKM_COMPOSE", "docker-compose")
_PROJECT = "pkm-compose-test"
_IMAGE, _PROMETHEUS = "pkm-compose-test", "pkm-compose-test-prometheus"
_TIMEOUT_S = 300.0
_BUILD_TIMEOUT_S = 900.0


def run(*command: str | Path, timeout_s: float = _TIMEOUT_S, **environment: str) -> str:
    """What a command prints; AssertionError with its last words if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}"
    return done.stdout


def until(what: Callable[[], Any], why: Callable[[], str], timeout_s: float = _TIMEOUT_S) -> Any:
    """The first true answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.5)
    return answer


def build_images() -> None:
    """The images of pkm and of Prometheus, from layers that are there already where nothing has changed."""
    _find_base()
    build = ("docker", "build", "--network", "host")
    legacy = {"DOCKER_BUILDKIT": "0"}  # BuildKit is a package of its own
    run(*build, "--file", "deploy/Dockerfile", "--tag", _IMAGE, ".", timeout_s=_BUILD_TIMEOUT_S, **legacy)
    recipe = "tests/deploy/Dockerfile.prometheus"
    run(*build, "--file", recipe, "--tag", _PROMETHEUS, "tests/deploy", timeout_s=_BUILD_TIMEOUT_S, **legacy)


def _find_base() -> None:
    """The base image: it is there, or it is pulled, or the script in PKM_BASE_IMAGE_SCRIPT makes it."""
    for command in (["image", "inspect", BASE], ["pull", BASE]):
        if subprocess.run(["docker", *command], capture_output=True, check=False).returncode == 0:
            return
    script = os.environ.get("PKM_BASE_IMAGE_SCRIPT") or ROOT.parent / "shared" / "docker" / "local-base-image"
    assert Path(script).is_file(), (
        f"{BASE} can't be pulled; name a script that makes it in PKM_BASE_IMAGE_SCRIPT."
    )
    run(script, BASE, timeout_s=_BUILD_TIMEOUT_S)


@dataclass(frozen=True)
class Deployment:
    """A deployment with the secrets and the configuration of Prometheus in two folders, on ports that were free."""

    secrets: Path
    prometheus: Path
    port: int
    page_port: int
    prometheus_port: int

    def compose(self, *arguments: str, timeout_s: float = _TIMEOUT_S) -> str:
        """What docker-compose says to this."""
        return run(
            COMPOSE,
            "--project-name",
            _PROJECT,
            *arguments,
            timeout_s=timeout_s,
            PKM_IMAGE=_IMAGE,
            PKM_PROMETHEUS_IMAGE=_PROMETHEUS,
            PKM_PROMETHEUS_CONFIGURATION=str(self.prometheus),
            PKM_SECRETS=str(self.secrets),
            PKM_PORT=str(self.port),
            PKM_PAGE_PORT=str(self.page_port),
            PKM_PROMETHEUS_PORT=str(self.prometheus_port),
        )

    def up(self) -> None:
        """Bring up everything, with two hosts for shards; returns when all are healthy, in their order."""
        named = ("shard-host", "trainer-host", "service", "prometheus")  # what they need is started with them
        self.compose("up", "--detach", "--no-build", "--scale", "shard-host=2", *named)
        until(lambda: all(self.health(name) == "healthy" for name in self.containers()), self.logs)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def containers(self, service: str = "") -> list[str]:
        """The ids of the containers that run, of one service if named."""
        named = ["--filter", f"label=com.docker.compose.service={service}"] if service else []
        project = f"label=com.docker.compose.project={_PROJECT}"
        return run("docker", "ps", "--quiet", "--no-trunc", "--filter", project, *named).split()

    def health(self, container: str) -> str:
        return run("docker", "inspect", "--format", "{{.State.Health.Status}}", container).strip()

    def address(self, container: str) -> str:
        """On the cluster's network."""
        network = f'(index .NetworkSettings.Networks "{_PROJECT}_cluster").IPAddress'
        return run("docker", "inspect", "--format", "{{" + network + "}}", container).strip()

    def logs(self) -> str:
        """The last that every container has said."""
        return self.compose("ps") + self.compose("logs", "--no-color", "--tail=30")

    def client(self) -> Client:
        """Of the service, through its published port: with TLS, and the token that was made for who asks."""
        given = self.secrets / "client"
        token = (given / "token").read_text(encoding="ascii").strip()
        return Client(f"localhost:{self.port}", token, (given / "ca.pem").read_bytes(), 30.0)

    def query(self, expression: str) -> list[Any]:
        """The series that an expression of Prometheus gives now."""
        found: list[Any] = self.ask_prometheus("query", query=expression)["result"]
        return found

    def ask_prometheus(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of Prometheus' HTTP API."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


@contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """The whole, up; and down at the end, whatever has happened."""
    secrets = folder / "secrets"
    run(ROOT / "deploy" / "secrets", secrets)
    deployment = Deployment(secrets, _prompt_prometheus(folder), *(_free_port() for _ in range(3)))
    deployment.down()  # what a run that was killed has left
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down()


def _prompt_prometheus(folder: Path) -> Path:
    """deploy/prometheus as it is shipped, but that it looks every two seconds and alerts at once."""
    prompt = folder / "prometheus"
    prompt.mkdir()
    for path in (ROOT / "deploy" / "prometheus").iterdir():
        text = re.sub(r"(_interval|\bfor): \d+[sm]", r"\1: 2s", path.read_text(encoding="utf-8"))
        (prompt / path.name).write_text(text, encoding="utf-8")
    for path in (prompt, *prompt.iterdir()):
        path.chmod(0o755)
    return prompt


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
