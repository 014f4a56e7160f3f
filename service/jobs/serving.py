"""A running service: its port, and the runner that looks after its jobs, on one database."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.jobs.api import JobApi
from service.jobs.cluster import RayCluster
from service.jobs.database import JobDatabase
from service.jobs.folder import ServiceFolder
from service.jobs.runner import Runner
from service.jobs.scheduling import Quotas
from service.jobs.server import Certificate, start_server
from service.jobs.tokens import Tokens

_GRACE_S = 1.0


@dataclass(frozen=True)
class Settings:
    """Where a service answers, for whom, and where its jobs run: `dashboard` is that of a Ray cluster."""

    folder: ServiceFolder
    host: str
    port: int
    tokens: Tokens
    quotas: Quotas
    dashboard: str
    certificate: Certificate | None = None


def serve(settings: Settings, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the port when it answers. Jobs go on after that.

    Raises UsageError for an address, a certificate or a folder that can't be used.
    """
    database = JobDatabase(settings.folder.database)
    try:
        asyncio.run(_serve(settings, database, ready))
    finally:
        database.close()


async def _serve(settings: Settings, database: JobDatabase, ready: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, NotImplementedError):  # not in the main thread: a test
            loop.add_signal_handler(number, stopped.set)
    cluster = RayCluster(settings.dashboard)
    runner = Runner(database, cluster, settings.folder, settings.quotas)
    api = JobApi(database, settings.tokens, settings.folder, cluster.hosts, settings.quotas)
    runner.on_progress = api.progressed
    server, port = await start_server(
        api, settings.tokens, settings.host, settings.port, settings.certificate
    )
    thread = threading.Thread(target=runner.run, name="runner", daemon=True)
    thread.start()
    try:
        ready(port)
        await stopped.wait()
    finally:
        runner.stop()
        await server.stop(_GRACE_S)
        await asyncio.to_thread(thread.join)


def read_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """The certificate of a service that was given both files, or neither."""
    return Certificate(chain, key) if chain is not None and key is not None else None
