"""`pkm serve`: a service for jobs, and a Ray for them where none runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.output import messages

if TYPE_CHECKING:
    from service.jobs.folder import ServiceFolder
    from service.jobs.tokens import Tokens

CPUS_MIN = 4


def serve(
    folder: Annotated[
        Path | None,
        typer.Option(help="Where jobs, runs and tokens are kept; ~/.pkm unless given.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to answer on; any but this machine's own needs TLS and tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to answer on; 0 for any.")] = 7070,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page (pkm ui), on the same address; 0 for any.")
    ] = 7071,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpora that all jobs may read; FOLDER/data/shared unless given.", show_default=False
        ),
    ] = None,
    ray_dashboard: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="Dashboard of the Ray cluster to run jobs on; one is started here unless given.",
            show_default=False,
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Processes for which a Ray started here has room; this machine's cores, or {CPUS_MIN}.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="File of tenants and digests of tokens: TENANT SHA256.", show_default=False),
    ] = None,
    quotas: Annotated[
        Path | None, typer.Option(help="YAML file of what each tenant may take.", show_default=False)
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate of the service, in PEM.", show_default=False)
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key of the certificate, in PEM.", show_default=False)
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for Prometheus: /metrics, and /targets for those of jobs; none unless given.",
            show_default=False,
        ),
    ] = None,
    end_ray: Annotated[
        bool,
        typer.Option("--end-ray", help="End the Ray that was started for FOLDER, and its jobs; then stop."),
    ] = False,
) -> None:
    """Take jobs and run them on a Ray cluster, until Ctrl-C. Jobs go on after that."""
    import logging

    from memory_store.durable_files import replace_file
    from memory_store.errors import UsageError
    from memory_store.loopback import is_loopback
    from service.jobs import ray_head
    from service.jobs.folder import ServiceFolder
    from service.jobs.scheduling import Quotas
    from service.jobs.server import Certificate
    from service.jobs.serving import Settings
    from service.jobs.serving import serve as serve_jobs
    from service.profile import default_folder

    os.umask(0o077)
    console = messages()
    files = ServiceFolder(folder or default_folder(), data)
    if end_ray:
        ended = ray_head.end(files)
        console.print("Ray has ended." if ended else "No Ray was started here.")
        return
    if (certificate is None) != (key is None):
        raise UsageError("TLS needs both --certificate and --key.")
    if not is_loopback(host) and (certificate is None or tokens is None):
        raise UsageError(
            f"The address {host} can be reached from other machines, which needs TLS (--certificate, --key) and tokens "
            "(--tokens); give them, or use 127.0.0.1."
        )
    settings = Settings(
        folder=files,
        host=host,
        port=port,
        page_port=http_port,
        tokens=_tokens(files, tokens),
        quotas=Quotas.read(quotas) if quotas is not None else Quotas(),
        certificate=Certificate(certificate, key) if certificate is not None and key is not None else None,
        metrics_port=metrics_port,
    )
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("ray").setLevel(logging.WARNING)

    def ready(bound: int, page: int) -> None:
        scheme, name = "http" if certificate is None else "https", f"[{host}]" if ":" in host else host
        replace_file(files.page, f"{scheme}://{name}:{page}\n".encode())
        console.print(
            f"pkm serves on {host}:{bound}; files are in {files.path}", markup=False, soft_wrap=True
        )
        console.print("Next: pkm submit JOB.yaml    pkm list    pkm watch JOB    pkm ui", markup=False)

    serve_jobs(settings, lambda: _dashboard(files, ray_dashboard, cpus), ready)
    console.print("The service has ended; jobs go on. End them too with: pkm serve --end-ray", markup=False)


def _dashboard(files: ServiceFolder, given: str | None, cpus: int | None) -> str:
    from service.jobs import ray_head

    if given is not None:
        return given
    dashboard, started = ray_head.find_or_start(files, cpus or max(CPUS_MIN, os.cpu_count() or 1))
    messages().print(
        f"Ray {'started' if started else 'found'}; its dashboard is {dashboard}", markup=False, soft_wrap=True
    )
    return dashboard


def _tokens(files: ServiceFolder, given: Path | None) -> Tokens:
    from getpass import getuser

    from service.jobs.tokens import TENANT, Tokens, digest_of, own_token

    if given is not None:
        return Tokens.read(given)
    user = getuser().lower()
    return Tokens({digest_of(own_token(files.token)): user if TENANT.fullmatch(user) else "owner"})
