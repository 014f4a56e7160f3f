"""`pkm doctor`: what is wrong with this machine, or with a cluster, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.asking import OutputOption
from service.cli.output import messages, print_json

if TYPE_CHECKING:
    from service.doctor.finding import Finding

_SIGNS = {"well": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("WRONG", "red")}


def doctor(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at Ray and every host of its cluster, from inside.")
    ] = False,
    ray_dashboard: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="Dashboard of the cluster; that of this machine's pkm serve unless given.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where runs are kept, and disk speed is tried; ~/.pkm unless given.", show_default=False
        ),
    ] = None,
    output: OutputOption = "table",
) -> None:
    """Look for what is wrong with this machine or cluster, and say what to do. Exits with 1 if something is wrong."""
    from service.doctor.checks import check_machine, check_service_ports
    from service.profile import DEFAULT_PAGE_PORT, DEFAULT_PORT, default_folder

    kept = folder or default_folder()
    findings = list(check_machine(kept))
    if cluster:
        findings += _look_at_cluster(ray_dashboard, kept)
    else:
        findings.append(check_service_ports((DEFAULT_PORT, DEFAULT_PAGE_PORT)))
    if output == "json":
        print_json(findings)
    else:
        _print(findings)
        if not cluster:
            typer.echo("Ray, and its hosts with their clocks, are looked at by pkm doctor --cluster.")
    if any(finding.level == "wrong" for finding in findings):
        raise typer.Exit(1)


def _look_at_cluster(dashboard: str | None, kept: Path) -> list[Finding]:
    from service.doctor.cluster import check_cluster
    from service.jobs import ray_head
    from service.jobs.folder import ServiceFolder

    if dashboard is None:
        dashboard = ray_head.find(ServiceFolder(kept))
    messages().print("Looking at the hosts of the cluster ...")
    return check_cluster(dashboard, kept)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        sign, tone = _SIGNS[finding.level]
        typer.secho(f"{sign:<5}  ", fg=tone, nl=False)
        typer.echo(f"{finding.check:<{width}}  {finding.found}")
        if finding.advice:
            typer.echo(f"{'':<{width + 9}}-> {finding.advice}")
    amiss = sum(finding.level == "wrong" for finding in findings)
    typer.echo(f"\n{amiss} of {len(findings)} are wrong." if amiss else "\nAll is well.")
