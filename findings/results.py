"""What the runs of a finding gave: one file for each finding, docs/results/NAME.json, written anew after every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.machine import Machine
from memory_store.durable_files import replace_file
from workers.job_spec import JobSpec

RESULTS = Path("docs/results")

Kind = Literal["training", "finetuning", "speed"]


class Run(BaseModel):
    """One job and the figures it gave. `case` is what the finding calls it; `job` is all of its settings, with the
    folder of the corpus as seen from the project's root.

    A `training` is a whole `pkm train`, its figures from the report. A `finetuning` goes on from such a run, of `job`,
    with other text. A `speed` is one sample of every rate, taken in turn with those of the other cases in the same `round`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    case: str
    job: JobSpec
    commit: str
    seed: int
    round: int = 0
    machine: Machine
    figures: dict[str, float]


class Finding(BaseModel):
    """The content of docs/results/NAME.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    finding: str
    runs: tuple[Run, ...] = ()

    def save(self, folder: Path) -> None:
        """Write the file in one step: a reader, or a run that is stopped, finds the old one or the new one, whole."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.model_dump(mode="json"), indent=1) + "\n"
        replace_file(folder / f"{self.finding}.json", text.encode())

    def training(self, job: JobSpec) -> Run | None:
        """The training of `job`, its seed included, if there was one."""
        return next((run for run in self.runs if run.kind == "training" and run.job == job), None)

    def with_run(self, run: Run) -> Finding:
        return self.model_copy(update={"runs": (*self.runs, run)})

    def by_seed(self, case: str, figure: str) -> dict[int, float]:
        """One figure of the trainings, or finetunings, of a case."""
        return {
            run.seed: run.figures[figure]
            for run in self.runs
            if run.kind != "speed" and run.case == case and figure in run.figures
        }

    def by_round(self, case: str, figure: str) -> dict[int, float]:
        """One rate of a case, as sampled."""
        return {
            run.round: run.figures[figure]
            for run in self.runs
            if run.kind == "speed" and run.case == case and figure in run.figures
        }


def load_finding(folder: Path, name: str) -> Finding:
    """A finding as `save` wrote it; one without runs if there is no file.

    Raises pydantic.ValidationError for any other file.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        return Finding(finding=name)
    return Finding.model_validate_json(path.read_text(encoding="utf-8"))
