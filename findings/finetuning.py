"""Finetunes what a finding compares and has not been finetuned yet: one model of the addresses for all cases of a seed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import this_machine
from findings.cases import COMPARISONS, CORPUS, FACTS_CORPUS, Case
from findings.figures import NEW_AFTER, NEW_BEFORE, OLD_AFTER, OLD_BEFORE
from findings.results import Finding, Run, load_finding
from findings.training import pkm, train_in

STEPS = 100


def record_finetunings(
    name: str, seed: int, folder: Path, *, commit: str, say: Callable[[str], None] = lambda line: None
) -> Finding:
    """Finetune the cases of the finding `name` that have not been with `seed`, and keep each in `folder` as it is done."""
    finding = load_finding(folder, name)
    missing = [case for case in COMPARISONS[name].cases if seed not in finding.by_seed(case.name, NEW_AFTER)]
    if not missing:
        return finding
    with tempfile.TemporaryDirectory() as runs:
        base = Path(runs) / "base"
        train_in(base, missing[0], seed)
        before = {OLD_BEFORE: perplexity_of(base, CORPUS), NEW_BEFORE: perplexity_of(base, FACTS_CORPUS)}
        for case in missing:
            figures = before | finetune(base, case)
            run = Run(
                kind="finetuning",
                case=case.name,
                job=case.job(seed),
                commit=commit,
                seed=seed,
                machine=this_machine(),
                figures=figures,
            )
            finding = finding.with_run(run)
            finding.save(folder)
            say(
                f"{name}: {case.name}, seed {seed}: old {figures[OLD_BEFORE]:.1f} to {figures[OLD_AFTER]:.1f}, "
                f"new {figures[NEW_BEFORE]:.1f} to {figures[NEW_AFTER]:.1f}"
            )
    return finding


def finetune(base: Path, case: Case) -> dict[str, float]:
    """Go on from the run `base` with the facts, and evaluate what comes of it on the test parts of both texts."""
    assert case.finetuning is not None
    only = [] if case.finetuning.only_rows is None else ["--only-rows", str(case.finetuning.only_rows)]
    tuned = base.with_name(f"tuned-{case.finetuning.only_rows}")
    goes_on = ("--data", str(FACTS_CORPUS), "--steps", str(STEPS), "--run", str(tuned), "--json")
    pkm("finetune", str(base), *goes_on, *only)
    return {OLD_AFTER: perplexity_of(tuned, CORPUS), NEW_AFTER: perplexity_of(tuned, FACTS_CORPUS)}


def perplexity_of(run: Path, corpus: Path) -> float:
    """Of a run's last cut, on the test part of a corpus."""
    return float(json.loads(pkm("eval", str(run), "--data", str(corpus), "--json"))["perplexity"])
