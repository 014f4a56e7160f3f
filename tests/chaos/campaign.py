"""A real job on real text, once undisturbed and once with its processes killed at random times; then bytes are compared."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from memory_store.cuts import complete_cuts
from memory_store.durable_files import replace_file
from tests.chaos.victims import kill, victims
from tests.small_job import dense_weights, small_corpus, small_job, table_content
from workers.events import count_events
from workers.move import Move
from workers.report import Report, StepRecord, read_records

STEPS_PER_KILL = 25
KILLS_PER_MOVE = 5
DIFFERENT_MAX = 10
_IN_RECOVERY = 0.2  # share of the kills that do not wait for new steps
_TIMES = {"seconds", "tokens_per_second"}


@dataclass
class Findings:
    """What a campaign has shown; `lost`, `doubled` and `corrupted` must be 0."""

    seed: int
    durability: str
    kills_fired: int = 0
    moves_asked: int = 0
    moves_made: int = 0  # a kill may come before it, or make it necessary once more
    kills_by_kind: Counter[str] = field(default_factory=Counter)
    finished: bool = False
    lost: int = 0  # steps that the log of the run lacks
    doubled: int = 0  # steps that it has twice
    corrupted: int = 0  # buckets, dense files and lines of metrics that differ
    compared: int = 0  # how many of these there were
    restarts: int = 0
    different: list[str] = field(default_factory=list)  # the first of what differs
    recovery_seconds: list[float] = field(default_factory=list)

    @property
    def bytes_equal(self) -> bool:
        return self.finished and self.compared > 0 and not (self.lost or self.doubled or self.corrupted)

    def summary(self) -> dict[str, Any]:
        seconds = self.recovery_seconds or [0.0]
        return {
            **{name: value for name, value in vars(self).items() if name != "recovery_seconds"},
            "kills_by_kind": dict(self.kills_by_kind),
            "bytes_equal": self.bytes_equal,
            "recovery_seconds_p50": round(statistics.median(seconds), 1),
            "recovery_seconds_max": round(max(seconds), 1),
        }


def chaos(
    folder: Path, kills: int, seed: int, kinds: Sequence[str], durability: str, timeout_s: float
) -> Findings:
    """Run a campaign in `folder`: `kills` kills of processes of `kinds`, drawn from `seed`."""
    settings: dict[str, Any] = {"train__steps": STEPS_PER_KILL * (kills + 2), "train__cut_every": 10}
    settings |= {"train__evaluate_every": 60, "store__lookup": "fetch"}
    corpus = small_corpus(folder)
    alone = _write_job(folder, "undisturbed", small_job(corpus, **settings))
    disturbed = _write_job(
        folder,
        "disturbed",
        small_job(corpus, **settings, store__carrier="auto", store__durability=durability),
    )
    findings = Findings(seed, durability)
    assert _start(alone, folder / "undisturbed").wait(timeout_s) == 0
    run = folder / "disturbed"
    job = _start(disturbed, run)
    try:
        _kill_at_random(findings, run, job, kills, Random(seed), kinds, time.monotonic() + timeout_s)
        findings.finished = job.wait(timeout_s) == 0
    finally:
        job.kill()
        job.wait()
    if findings.finished:
        _compare(findings, folder / "undisturbed", run)
    return findings


def _write_job(folder: Path, name: str, job: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return path


def _start(job: Path, run: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(run.with_suffix(".log"), "wb") as log:
        command = [sys.executable, "-m", "service.cli", "train", str(job), "--run", str(run)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


# ---- killing -------------------------------------------------------------------------------------------------------


def _kill_at_random(
    findings: Findings,
    run: Path,
    job: subprocess.Popen[bytes],
    kills: int,
    random: Random,
    kinds: Sequence[str],
    deadline: float,
) -> None:
    """Kill processes until enough have died or the job has ended. The first kill of each kind comes in turn."""
    order = list(kinds)
    while findings.kills_fired < kills and job.poll() is None and time.monotonic() < deadline:
        if findings.kills_fired and random.random() < _IN_RECOVERY:
            time.sleep(3 * random.random())
        else:
            _wait_for_steps(run, job, random.randint(2, STEPS_PER_KILL - 8), deadline)
        if findings.kills_fired % KILLS_PER_MOVE == KILLS_PER_MOVE - 1:
            move = Move(shards=random.randint(1, 3), trainers=1)
            replace_file(run / "move.json", move.model_dump_json().encode())
            findings.moves_asked += 1
            time.sleep(random.random())
        kind = order.pop(0) if order else random.choice(list(kinds))
        found = victims(run, kind)
        if not found or not kill(random.choice(found)):
            if kind not in findings.kills_by_kind:
                order.insert(0, kind)
            continue
        findings.kills_fired += 1
        findings.kills_by_kind[kind] += 1
        print(f"kill {findings.kills_fired}: {kind} after step {_steps(run)}", file=sys.stderr, flush=True)
        begun, before = time.monotonic(), _steps(run)
        if random.random() > _IN_RECOVERY:
            _wait_for_steps(run, job, 1, deadline, before=before)
            findings.recovery_seconds.append(time.monotonic() - begun)


def _wait_for_steps(
    run: Path, job: subprocess.Popen[bytes], steps: int, deadline: float, before: int | None = None
) -> None:
    """Until the run has logged `steps` more steps than it had (or than `before`), ends, or time is up."""
    seen = _steps(run) if before is None else before
    while job.poll() is None and time.monotonic() < deadline:
        if (now := _steps(run)) >= seen + steps:
            return
        seen = min(seen, now) if before is None else seen
        time.sleep(0.02)


def _steps(run: Path) -> int:
    records = read_records(run / "metrics.jsonl")
    return records[-1].step if records else 0


# ---- comparing -----------------------------------------------------------------------------------------------------


def _compare(findings: Findings, alone: Path, disturbed: Path) -> None:
    cuts = [complete_cuts(run / "cuts")[-1] for run in (alone, disturbed)]
    for contents in (table_content, dense_weights):
        ours, theirs = (contents(cut) for cut in cuts)
        _count(findings, ours, theirs)
    records = [read_records(run / "metrics.jsonl") for run in (alone, disturbed)]
    steps = Counter(record.step for record in records[1])
    findings.lost = sum(record.step not in steps for record in records[0])
    findings.doubled = sum(count - 1 for count in steps.values())
    ours, theirs = ({record.step: _without_times(record) for record in each} for each in records)
    _count(findings, ours, {step: theirs.get(step) for step in ours})
    report = Report.model_validate_json((disturbed / "report.json").read_text())
    findings.restarts = report.restarts
    findings.moves_made = count_events(disturbed / "events.jsonl", "reshard")


def _count(findings: Findings, ours: Any, theirs: Any) -> None:
    for key in ours.keys() | theirs.keys():
        findings.compared += 1
        if ours.get(key) != theirs.get(key):
            findings.corrupted += 1
            if len(findings.different) < DIFFERENT_MAX:
                findings.different.append(f"{key}: {ours.get(key)!r:.400} / {theirs.get(key)!r:.400}")


def _without_times(record: StepRecord) -> dict[str, Any]:
    return record.model_dump(exclude=_TIMES)
