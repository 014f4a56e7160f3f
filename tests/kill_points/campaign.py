"""Kill at the points, then look at what is there: the log leads back to all that was acknowledged, no cut is half one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from memory_store import messages as m
from memory_store.bucket_files import check_buckets, read_buckets
from memory_store.cuts import complete_cuts, cut_step, verify_cut
from memory_store.errors import PkmError
from memory_store.log_storage import FolderStorage
from memory_store.recovery import take_over
from tests.kill_points.cycle import CUTS, STEPS_PER_CUT, content, make_step, new_core

POINTS_AT_ONCE = 50
_SOURCE = Path(__file__).with_name("kill_at_call.c")


@dataclass
class Findings:
    """`lost` acknowledged steps, `corrupted` tables or cuts, `stuck` folders from which nothing goes on: all must be 0."""

    calls: int = 0
    kills_fired: int = 0
    lost: int = 0
    corrupted: int = 0
    stuck: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.kills_fired > 0 and not (self.lost or self.corrupted or self.stuck)


def build(folder: Path) -> Path:
    """Compile the library that counts calls."""
    library = folder / "kill_at_call.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def run_points(library: Path, folder: Path, points: Sequence[tuple[int, int]]) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_points.cycle", str(library), str(folder), json.dumps(points)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def kill_everywhere(folder: Path, stride: int) -> Findings:
    """Kill at every `stride`th call, alternating between whole and torn writes (with stride 1: at each in both ways)."""
    library = build(folder)
    (undisturbed,) = run_points(library, folder / "undisturbed", [(0, 0)])
    findings = Findings(calls=_said(undisturbed)["calls"][-1])
    versions = contents()
    _judge(findings, folder / "undisturbed", undisturbed, versions)
    points = [
        (number, torn)
        for number in range(1, findings.calls + 1, stride)
        for torn in ((0, 1) if stride == 1 else (number // stride % 2,))
    ]
    groups = [points[begin : begin + POINTS_AT_ONCE] for begin in range(0, len(points), POINTS_AT_ONCE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(lambda group: run_points(library, folder / "killed", group), groups):
            for result in results:
                findings.kills_fired += result["status"] == 9
                _judge(findings, folder / "killed", result, versions)
    return findings


def contents() -> list[bytes]:
    """What the shard holds at every version, from a core that was never disturbed."""
    core = new_core(logged=False)
    core.handle(0, m.OpenGroup("session", 1, 1))
    found = [content(core)]
    for step in range(CUTS * (STEPS_PER_CUT + 1)):
        make_step(core, step)
        found.append(content(core))
    return found


def _said(result: dict[str, object]) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {"acknowledged": [0], "cut": [], "calls": []}
    for what, number in result["said"]:  # type: ignore[attr-defined]
        said[what].append(int(number))
    return said


def _judge(findings: Findings, base: Path, result: dict[str, object], versions: list[bytes]) -> None:
    number, torn = result["point"]  # type: ignore[misc]
    folder, said = base / f"{number}-{torn}", _said(result)
    before = len(findings.wrong)
    core = new_core()
    try:
        take_over(core, FolderStorage(folder / "logs"))
    except (PkmError, OSError) as error:
        findings.stuck += 1
        findings.wrong.append(f"{number}-{torn}: {error}")
    else:
        if core.version < said["acknowledged"][-1]:
            findings.lost += 1
            findings.wrong.append(
                f"{number}-{torn}: at {core.version}, {said['acknowledged'][-1]} was acknowledged"
            )
        elif content(core) != versions[core.version]:
            findings.corrupted += 1
            findings.wrong.append(f"{number}-{torn}: the table of version {core.version} is another")
    found = complete_cuts(folder / "cuts")
    if said["cut"] and (not found or cut_step(found[-1]) < said["cut"][-1]):
        findings.lost += 1
        findings.wrong.append(f"{number}-{torn}: the cut of step {said['cut'][-1]} is gone")
    for cut in found:
        part = new_core(logged=False)
        try:
            read_buckets(
                cut, check_buckets(cut, verify_cut(cut), part.tables["memory"]), part.tables["memory"]
            )
        except PkmError as error:
            findings.corrupted += 1
            findings.wrong.append(f"{number}-{torn}: {error}")
        else:
            if content(part) != versions[cut_step(cut)]:
                findings.corrupted += 1
                findings.wrong.append(f"{number}-{torn}: {cut.name} holds another table")
    assert len(findings.wrong) - before <= 1 + len(found) + 1
