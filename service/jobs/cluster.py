"""The Ray cluster as a service sees it: its hosts, and the processes of jobs, which are Ray Jobs.

All goes by way of the HTTP port of the cluster's dashboard, with Ray's own token. The service holds no connection: it may die
and come back, and the cluster does not notice.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from memory_store.errors import StoreError
from service.jobs.demand import Host, Resources
from workers.host_kinds import HOSTS_LABEL, Kind, hosts_for

_HOSTS_EVERY_S = 5.0
_TIMEOUT_S = 10

_log = logging.getLogger(__name__)


class ProcessState(Enum):
    """Of a job's process, as far as the cluster knows."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class ClusterUnreachableError(StoreError):
    """The cluster does not answer now."""


class Cluster(Protocol):
    """Where jobs run. Every method raises ClusterUnreachableError if nothing is known."""

    def hosts(self) -> Sequence[Host]:
        """What each living host has, taken or free."""
        ...

    def start(self, process: str, run: Path, attempt: int, job_id: str, alone: Resources | None) -> None:
        """Start the process of a job by this name, unless there is or was one; with the resources `alone`, if not None."""

    def processes(self) -> Mapping[str, ProcessState]:
        """All processes that were started, by name."""
        ...

    def stop(self, process: str) -> None:
        """End a process, with all that it has started."""


class RayCluster:
    """The cluster whose dashboard answers at `dashboard`, "http://HOST:PORT"."""

    def __init__(self, dashboard: str) -> None:
        self._dashboard = dashboard
        self._hosts: list[Host] = []
        self._hosts_until = 0.0

    def hosts(self) -> Sequence[Host]:
        from ray.util.state import list_nodes

        if time.monotonic() >= self._hosts_until:
            try:
                nodes: list[Any] = list_nodes(self._dashboard, detail=True, timeout=_TIMEOUT_S, limit=10_000)
            except Exception as error:
                raise _unreachable(error) from error
            self._hosts = [
                Host(
                    cpus=node.resources_total.get("CPU", 0),
                    gpus=node.resources_total.get("GPU", 0),
                    memory_bytes=int(node.resources_total.get("memory", 0)),
                    kept_for=_kind(node.labels.get(HOSTS_LABEL)),
                )
                for node in nodes
                if node.state == "ALIVE" and node.resources_total
            ]
            self._hosts_until = time.monotonic() + _HOSTS_EVERY_S
        return self._hosts

    def start(self, process: str, run: Path, attempt: int, job_id: str, alone: Resources | None) -> None:
        command = [sys.executable, "-m", "workers.job_process", str(run), str(attempt), job_id]
        try:
            client = self._client()
            if any(job.submission_id == process for job in client.list_jobs()):
                return
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=process,
                entrypoint_num_cpus=alone.cpus if alone else None,
                entrypoint_num_gpus=alone.gpus if alone else None,
                entrypoint_memory=alone.memory_bytes if alone else None,
                entrypoint_label_selector=hosts_for("trainers") if alone else None,
            )
        except Exception as error:
            raise _unreachable(error) from error

    def processes(self) -> Mapping[str, ProcessState]:
        try:
            jobs = self._client().list_jobs()
        except Exception as error:
            raise _unreachable(error) from error
        return {job.submission_id: _state(job.status.value) for job in jobs if job.submission_id}

    def stop(self, process: str) -> None:
        try:
            self._client().stop_job(process)
        except Exception as error:
            raise _unreachable(error) from error

    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self._dashboard)


def _kind(label: str | None) -> Kind | None:
    kinds: dict[str | None, Kind] = {"shards": "shards", "trainers": "trainers"}
    return kinds.get(label)


def _state(status: str) -> ProcessState:
    known = {"PENDING": ProcessState.WAITING, "RUNNING": ProcessState.RUNNING}
    return known.get(status, ProcessState.ENDED)


def _unreachable(error: Exception) -> ClusterUnreachableError:
    _log.warning("the cluster does not answer: %s: %s", type(error).__name__, error)
    return ClusterUnreachableError("The Ray cluster of the service does not answer now; try again later.")
