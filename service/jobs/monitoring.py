"""The port at which a service is watched: `GET /metrics` of its own, and `GET /targets`, where those of its jobs are."""

from __future__ import annotations

from prometheus_client import make_wsgi_app

from memory_store.errors import UsageError
from memory_store.metrics_port import Door, MetricsPort
from service.jobs.database import JobDatabase
from service.jobs.folder import ServiceFolder
from service.jobs.runner import Runner
from service.jobs.server import Certificate
from service.jobs.service_metrics import Observed, ServiceMetrics
from service.jobs.targets import Targets
from service.jobs.tokens import digest_of, own_token
from workers.job_certificates import make_certificates


def scrape_digest(folder: ServiceFolder) -> str:
    """The digest of the token with which the service's Prometheus is let in, which is made if there is none yet."""
    return digest_of(own_token(folder.scrape_token))


def open_metrics_port(
    database: JobDatabase,
    folder: ServiceFolder,
    runner: Runner,
    certificate: Certificate | None,
    host: str,
    port: int,
) -> MetricsPort:
    """Serve the metrics of a service and the targets of its jobs, with the service's certificate if it has one.

    Raises UsageError for an address that can't be had, or that others could reach in the open.
    """
    try:
        chain, key = (
            (certificate.chain.read_bytes(), certificate.key.read_bytes()) if certificate else (b"", b"")
        )
    except OSError as error:
        raise UsageError(f"{error.filename} can't be read: {error.strerror}.") from None
    observed = Observed(
        count=database.count,
        queued_since=lambda: [job.changed_at for job in database.in_line()],
        folder=folder.path,
        reaches_cluster=lambda: runner.reaches_cluster,
        certificate=chain,
    )
    metrics = ServiceMetrics(observed)
    targets = Targets(database, folder, make_certificates().metrics.authority)
    pages = {"/metrics": make_wsgi_app(metrics.registry), "/targets": targets.page}
    return MetricsPort(pages, host, port, Door(scrape_digest(folder), chain, key))
