"""How the processes of a job are scraped: under a service over TLS and with the service's token, else on this machine alone.

In the run's scrape folder, which holds no secret:

token.sha256     the digest of the token with which the service lets its Prometheus in
authority.pem    the authority that has signed the certificates of this start of the job
KIND-INDEX.json  where a process listens (memory_store/metrics_port.py)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from prometheus_client import CollectorRegistry

from memory_store.carriers.grpc_credentials import Credentials
from memory_store.durable_files import replace_file
from memory_store.metrics_port import Door, Scrape
from workers.run_folder import RunFolder

_LOOPBACK = "127.0.0.1"


def job_scrape(run: RunFolder, certificate: Credentials | None) -> Scrape:
    """How the processes of `run` are scraped in this start of it; what an earlier one has left is forgotten."""
    forget_processes(run)
    if certificate is None:
        return Scrape(run.scrape_path)
    run.scrape_path.mkdir(exist_ok=True)
    replace_file(run.scrape_authority_path, certificate.authority)
    try:
        digest = run.scrape_digest_path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        digest = secrets.token_hex(32)  # nobody is to scrape this job: of this digest nobody has the token
    return Scrape(run.scrape_path, Door(digest, certificate.certificate, certificate.key))


def host_of(scrape: Scrape) -> str:
    """The address of this host at which a process of the job answers."""
    if not scrape.door.certificate:
        return _LOOPBACK
    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return host


@contextmanager
def driver_served(run: RunFolder, scrape: Scrape, registry: CollectorRegistry) -> Iterator[None]:
    """The driver's metrics are served meanwhile; after that, the job has no process any more."""
    port = scrape.serve(registry, host_of(scrape), "driver")
    try:
        yield
    finally:
        port.close()
        forget_processes(run)


def forget_processes(run: RunFolder, *kinds: str) -> None:
    """The processes of these kinds, all without any, that have told where they listen are there no more."""
    for kind in kinds or ("*",):
        for path in run.scrape_path.glob(f"{kind}-*.json"):
            path.unlink(missing_ok=True)
