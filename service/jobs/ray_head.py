"""The Ray of a service that finds none: started once, with Ray's token authentication, reachable from this machine alone.

It outlives the service, with all jobs on it; the next service on the same folder finds it again.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from memory_store.durable_files import replace_file
from memory_store.errors import StoreError
from service.jobs.folder import ServiceFolder
from service.jobs.tokens import own_token
from workers.leftovers import MARK, end_leftovers

_START_TIMEOUT_S = 120
_ANSWER_TIMEOUT_S = 5
_OBJECT_STORE_BYTES = 100 << 20


class RayHead(BaseModel):
    """Where the Ray answers that a service has started."""

    model_config = ConfigDict(frozen=True)

    dashboard: str


def use_ray_token(folder: ServiceFolder) -> None:
    """Have this process, and what it starts, show Ray the token of this service."""
    own_token(folder.ray_token)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder.ray_token)


def find_or_start(folder: ServiceFolder, cpus: int) -> tuple[str, bool]:
    """The address of the dashboard of this folder's Ray, and whether it had to be started. Raises StoreError."""
    use_ray_token(folder)
    from workers.ray_cluster import ray_environment  # Ray looks for its token when it is imported

    head = _known(folder)
    if head is not None and _answers(head.dashboard):
        return head.dashboard, False
    end_leftovers(folder.path)  # a Ray that does not answer any more would keep its ports and its memory
    port = _free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(_free_port()), "--num-cpus", str(cpus)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), "--include-dashboard", "true"),
        *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--temp-dir", str(_temporary(folder))),
        *("--ray-client-server-port", str(_free_port())),
        # Its usual port may be that of another Ray, and without it no job is ever started.
        *("--dashboard-agent-listen-port", str(_free_port())),
    ]
    environment = os.environ | ray_environment() | {MARK: str(folder.path)}
    try:
        subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise StoreError(f"Ray did not start: {error.stderr.strip()[-2000:]}") from None
    except subprocess.TimeoutExpired:
        raise StoreError(f"Ray did not start within {_START_TIMEOUT_S} s.") from None
    dashboard = f"http://127.0.0.1:{port}"
    replace_file(folder.ray_head, RayHead(dashboard=dashboard).model_dump_json().encode())
    return dashboard, True


def find(folder: ServiceFolder) -> str | None:
    """The dashboard of this folder's Ray, which is shown its token from now on; None if none was started."""
    head = _known(folder)
    if head is None:
        return None
    use_ray_token(folder)
    return head.dashboard


def end(folder: ServiceFolder) -> bool:
    """End the Ray of this folder, and with it all jobs that run there; whether there was one."""
    known = _known(folder) is not None
    end_leftovers(folder.path)
    folder.ray_head.unlink(missing_ok=True)
    return known


def _known(folder: ServiceFolder) -> RayHead | None:
    try:
        return RayHead.model_validate_json(folder.ray_head.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _answers(dashboard: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard}/api/version", timeout=_ANSWER_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True  # it wants its token
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _temporary(folder: ServiceFolder) -> Path:
    """Where Ray keeps its sockets, whose paths must be short, apart from any other Ray of this machine."""
    name = hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"pkm-ray-{name}"
