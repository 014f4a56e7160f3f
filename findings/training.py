"""Trains what a finding compares and has not been trained yet, each job in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import this_machine
from findings.cases import BASE, COMPARISONS, CORPUS, TEXT, Case
from findings.results import Finding, Run, load_finding
from workers.report import Report

VOCABULARY = 1024
HELD_OUT = ("--validation-share", "0.01", "--test-share", "0.008")
# One thread: the figures do not depend on it, and runs leave the other cores of the machine alone.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

Train = Callable[[Case, int], Report]


def pkm(*arguments: str) -> str:
    """Run the pkm command of this environment; returns what it prints. Raises subprocess.CalledProcessError."""
    command = [str(Path(sys.executable).parent / "pkm"), *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def prepare_text() -> None:
    """Make the corpus, if it is not there yet."""
    pkm("data", "prepare", str(TEXT), "--vocab-size", str(VOCABULARY), *HELD_OUT, "--out", str(CORPUS))


def train(case: Case, seed: int) -> Report:
    """One `pkm train`, whose folder is not kept."""
    settings = [part for override in case.overrides(seed) for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        return Report.model_validate_json(pkm("train", str(BASE), *settings, "--run", run, "--json"))


def current_commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def record_trainings(
    name: str,
    seed: int,
    folder: Path,
    *,
    commit: str,
    train: Train = train,
    say: Callable[[str], None] = lambda line: None,
) -> Finding:
    """Train the cases of the finding `name` that have not been trained with `seed`, and keep each run in `folder` as
    soon as it is done. A job that another finding has trained is taken from there.
    """
    finding = load_finding(folder, name)
    others = [load_finding(folder, other) for other in COMPARISONS if other != name]
    for case in COMPARISONS[name].cases:
        job = case.job(seed)
        if finding.training(job):
            continue
        elsewhere = next((run for other in others if (run := other.training(job))), None)
        if elsewhere:
            run = elsewhere.model_copy(update={"case": case.name})
        else:
            machine = this_machine()
            run = Run(
                kind="training",
                case=case.name,
                job=job,
                commit=commit,
                seed=seed,
                machine=machine,
                figures=figures_of(train(case, seed)),
            )
        finding = finding.with_run(run)
        finding.save(folder)
        say(f"{name}: {case.name}, seed {seed}: perplexity {run.figures['test_perplexity']:.1f}")
    return finding


def figures_of(report: Report) -> dict[str, float]:
    """What is kept of a report: its numbers, but for those that are settings of the job."""
    kept = (
        *("test_perplexity", "final_loss", "memory_usage", "kl_to_uniform", "top1_share", "dead_slots"),
        *("tokens_per_second", "train_seconds", "wall_seconds", "tokens", "dense_parameters"),
        *("table_rows", "table_bytes", "test_tokens"),
    )
    return {name: value for name in kept if (value := getattr(report, name)) is not None}
