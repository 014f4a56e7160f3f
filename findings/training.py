"""Trains what a finding compares and has not been trained yet, each job in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import this_machine
from findings.cases import BASE, COMPARISONS, CORPUS, FACTS_CORPUS, TEXT, Case
from findings.facts import documents
from findings.results import Finding, Run, load_finding
from workers.report import Report

VOCABULARY = 1024
HELD_OUT = ("--validation-share", "0.01", "--test-share", "0.008")
HELD_OUT_FACTS = ("--validation-share", "0.01", "--test-share", "0.02")
# One thread: the figures do not depend on it, and runs leave the other cores of the machine alone.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

Train = Callable[[Case, int], Report]


def pkm(*arguments: str) -> str:
    """Run the pkm command of this environment; returns what it prints. Raises subprocess.CalledProcessError."""
    command = [str(Path(sys.executable).parent / "pkm"), *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def prepare_text() -> None:
    """Make the corpora, where they are not there yet: of the addresses, and of facts (facts.py) with the same tokenizer."""
    pkm("data", "prepare", str(TEXT), "--vocab-size", str(VOCABULARY), *HELD_OUT, "--out", str(CORPUS))
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.jsonl"
        facts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()), encoding="utf-8")
        pkm(
            "data",
            "prepare",
            str(facts),
            "--tokenizer",
            str(CORPUS),
            *HELD_OUT_FACTS,
            "--out",
            str(FACTS_CORPUS),
        )


def train(case: Case, seed: int) -> Report:
    """One `pkm train`, whose folder is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        return train_in(Path(folder) / "run", case, seed)


def train_in(run: Path, case: Case, seed: int) -> Report:
    """One `pkm train` whose run folder is `run`."""
    settings = [part for override in case.overrides(seed) for part in ("--set", override)]
    return Report.model_validate_json(pkm("train", str(BASE), *settings, "--run", str(run), "--json"))


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
