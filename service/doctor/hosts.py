"""Looks at every host of the Ray cluster that this process belongs to, and prints what it finds (cluster.py reads it).

python -m service.doctor.hosts FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.doctor.cluster import MARK, REPORTS, HostReport
from service.doctor.finding import Finding, wrong

_TIMEOUT_S = 60.0


def look(folder: str) -> list[Finding]:
    """The findings on the host that this runs on."""
    from service.doctor.checks import check_machine

    return list(check_machine(Path(folder)))


def clock_here() -> float:
    """Seconds since 1970, on the host that this runs on."""
    return time.time()


def report(node: str, name: str, folder: str) -> HostReport:
    """What is found on one host. Its clock is read between two looks at our own."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    at = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
    try:
        findings = ray.get(ray.remote(look).options(**at).remote(folder), timeout=_TIMEOUT_S)
        before = time.time()
        clock = ray.get(ray.remote(clock_here).options(**at).remote(), timeout=_TIMEOUT_S)
        after = time.time()
    except RayError as error:
        lost = wrong(
            "host",
            f"it does not answer: {type(error).__name__}",
            "Is it overloaded, or gone from the network?",
        )
        return HostReport(host=name, ahead_s=0, unsure_s=0, findings=(lost,))
    return HostReport(
        host=name,
        ahead_s=clock - (before + after) / 2,
        unsure_s=(after - before) / 2,
        findings=tuple(findings),
    )


def main(folder: str) -> None:
    ray.init(log_to_driver=False)
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in known if node["Alive"]]
    reports = tuple(report(node["NodeID"], node["NodeManagerAddress"], folder) for node in nodes)
    print(MARK + REPORTS.dump_json(reports).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
