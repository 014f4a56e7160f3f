"""A running service: its port, and the runner that looks after its jobs, on one database."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from service.jobs.api import JobApi
from service.jobs.cluster import RayCluster
from service.jobs.collector import collect_rarely
from service.jobs.database import JobDatabase
from service.jobs.folder import ServiceFolder
from service.jobs.monitoring import open_metrics_port, scrape_digest
from service.jobs.runner import Runner
from service.jobs.scheduling import Quotas
from service.jobs.server import Certificate, start_server
from service.jobs.tokens import Tokens
from service.web.server import start_page

_GRACE_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Where a service answers, and for whom; `page_port` is that of the page, on the same host, and `metrics_port` where the
    service is watched, if it is to be.
    """

    folder: ServiceFolder
    host: str
    port: int
    page_port: int
    tokens: Tokens
    quotas: Quotas
    certificate: Certificate | None = None
    metrics_port: int | None = None


def serve(settings: Settings, find_cluster: Callable[[], str], ready: Callable[[int, int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told its port and the page's when it answers. Jobs go on after that.

    `find_cluster` gives the address of the dashboard of the Ray cluster on which jobs run. It is asked when the folder is
    this service's alone: two services never start a Ray each.

    Raises UsageError for an address, a certificate or a folder that can't be used.
    """
    database = JobDatabase(settings.folder.database)
    try:
        asyncio.run(_serve(settings, database, RayCluster(find_cluster()), ready))
    finally:
        database.close()


async def _serve(
    settings: Settings, database: JobDatabase, cluster: RayCluster, ready: Callable[[int, int], None]
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    digest = scrape_digest(settings.folder)
    runner = Runner(database, cluster, settings.folder, settings.quotas, scrape_digest=digest)
    api = JobApi(database, settings.tokens, settings.folder, cluster.hosts, settings.quotas)
    runner.on_progress = api.progressed
    server, port = await start_server(
        api, settings.tokens, settings.host, settings.port, settings.certificate
    )
    try:
        page = await start_page(api, settings.tokens, settings.host, settings.page_port, settings.certificate)
    except BaseException:
        await server.stop(None)
        raise
    thread = threading.Thread(target=runner.run, name="runner", daemon=True)
    try:
        with _watched(settings, database, runner):
            thread.start()
            collect_rarely()
            ready(port, page.port)
            await stopped.wait()
    finally:
        runner.stop()
        await page.stop()
        await server.stop(_GRACE_S)
        if thread.is_alive():
            await asyncio.to_thread(thread.join)


def _watched(settings: Settings, database: JobDatabase, runner: Runner) -> AbstractContextManager[object]:
    if settings.metrics_port is None:
        return nullcontext()
    port = open_metrics_port(
        database, settings.folder, runner, settings.certificate, settings.host, settings.metrics_port
    )
    _log.info("metrics, and the targets of jobs, are served at %s", port.address)
    return closing(port)
