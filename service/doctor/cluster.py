"""A Ray cluster: whether it answers, and what is wrong with each of its hosts.

The hosts are looked at from inside, by a Ray Job (`python -m service.doctor.hosts`) that runs the checks of this package on
every one of them and compares their clocks; its last line of output is what it has found.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from service.doctor.finding import Finding, note, well, wrong

CLOCK_MAX_S = 1.0
_TIMEOUT_S = 180.0
_EVERY_S = 1.0
MARK = "pkm-doctor "


class HostReport(BaseModel):
    """What was found on a host, and by how many seconds its clock is ahead of the cluster's first host (+- `unsure`)."""

    model_config = ConfigDict(frozen=True)

    host: str
    ahead_s: float
    unsure_s: float
    findings: tuple[Finding, ...]


REPORTS = TypeAdapter(tuple[HostReport, ...])


def check_cluster(dashboard: str | None, folder: Path) -> list[Finding]:
    """The cluster whose dashboard this is, and each of its hosts; `folder` is where runs are kept."""
    if dashboard is None:
        return [
            wrong(
                "ray",
                "no cluster is known",
                "Start one with pkm serve, or give its dashboard: --ray-dashboard URL.",
            )
        ]
    try:
        output = _run_on_cluster(dashboard, folder)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        return [
            wrong(
                "ray", f"{dashboard} does not answer: {first or type(error).__name__}",
                "Is the address right, does Ray run there, and is its token known here (RAY_AUTH_TOKEN_PATH)?",
            )
        ]  # fmt: skip
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        last = output.strip().rpartition("\n")[2]
        return [
            wrong(
                "ray", f"{dashboard} answers, but a job can't look at its hosts: {last[:200]}",
                "See the job in Ray's dashboard; pkm must be installed on every host.",
            )
        ]  # fmt: skip
    reports = REPORTS.validate_json(lines[-1].removeprefix(MARK))
    return [well("ray", f"{dashboard} answers, {len(reports)} hosts"), *findings_of(reports)]


def findings_of(reports: Sequence[HostReport]) -> list[Finding]:
    """The findings of all hosts, each named after its host, and of their clocks and versions against each other."""
    found = []
    for report in reports:
        for finding in (*report.findings, clock_finding(report)):
            found.append(
                Finding(f"{report.host}: {finding.check}", finding.level, finding.found, finding.advice)
            )
    pythons = {
        finding.found for report in reports for finding in report.findings if finding.check == "python"
    }
    if len(pythons) > 1:
        found.append(
            wrong(
                "python",
                f"hosts run {', '.join(sorted(pythons))}",
                "Ray wants one Python everywhere; install the same.",
            )
        )
    return found


def clock_finding(report: HostReport) -> Finding:
    """Whether a host's clock goes with the others'."""
    off = abs(report.ahead_s)
    found = (
        f"{off:.2f} s {'ahead' if report.ahead_s > 0 else 'behind'} (give or take {report.unsure_s:.2f} s)"
    )
    if off - report.unsure_s > CLOCK_MAX_S:
        return wrong(
            "clock",
            found,
            "Set it by NTP (chrony or systemd-timesyncd): certificates and times of events need it.",
        )
    if report.unsure_s > CLOCK_MAX_S:
        return note("clock", found, "The host was too slow to tell; ask again when it has less to do.")
    return well("clock", found)


def _run_on_cluster(dashboard: str, folder: Path) -> str:
    """What the job prints that looks at all hosts."""
    from ray.job_submission import JobSubmissionClient

    client: Any = JobSubmissionClient(dashboard)
    job = client.submit_job(
        entrypoint=shlex.join([sys.executable, "-m", "service.doctor.hosts", str(folder)])
    )
    deadline = time.monotonic() + _TIMEOUT_S
    while client.get_job_status(job).value in ("PENDING", "RUNNING"):
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise TimeoutError(f"its hosts were not looked at within {_TIMEOUT_S:.0f} s")
        time.sleep(_EVERY_S)
    return str(client.get_job_logs(job))
