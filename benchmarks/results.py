"""What a benchmark found out: measurements with their spread, the ratios of targets.py, and what is missing.

A run is written as one JSON file (`BenchmarkRun`), from which docs/performance.md is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.machine import Machine, this_machine
from benchmarks.measuring import Samples
from benchmarks.targets import TARGETS

Case = Mapping[str, str | int]


class Measurement(BaseModel):
    """Median of the samples, with the quartiles as its spread.

    `name` is unique in a run; it is made of `what` was measured and of the `case` it was measured in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int
    what: str
    case: dict[str, str | int]


class BenchmarkRun(BaseModel):
    """One run of one benchmark. `missing` says for every ratio that is not in `ratios` why it is not, and for every case that
    was left out; `ceilings` has what some ratios would be with what targets.py names in the place of our code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    benchmark: str
    quick: bool
    started_at: str
    machine: Machine
    measurements: tuple[Measurement, ...]
    ratios: dict[str, float]
    ceilings: dict[str, float]
    missing: dict[str, str]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")

    def find(self, what: str, **case: str | int) -> list[Measurement]:
        """The measurements of `what` whose case has all of `case`, in the order they were made."""
        return [
            found for found in self.measurements if found.what == what and case.items() <= found.case.items()
        ]


def load_run(path: Path) -> BenchmarkRun:
    """A run as `save` wrote it. Raises pydantic.ValidationError for any other file."""
    return BenchmarkRun.model_validate_json(path.read_text(encoding="utf-8"))


def joined(runs: list[BenchmarkRun], *, quick: bool) -> BenchmarkRun:
    """Several runs as one, their measurements' names led by the benchmark's."""
    return BenchmarkRun(
        benchmark="all",
        quick=quick,
        started_at=runs[0].started_at,
        machine=runs[0].machine,
        measurements=tuple(
            measurement.model_copy(update={"name": f"{run.benchmark}: {measurement.name}"})
            for run in runs
            for measurement in run.measurements
        ),
        ratios={name: ratio for run in runs for name, ratio in run.ratios.items()},
        ceilings={name: ceiling for run in runs for name, ceiling in run.ceilings.items()},
        missing={name: reason for run in runs for name, reason in run.missing.items()},
    )


class Recorder:
    """Collects what one benchmark measures, from its start on."""

    def __init__(self, benchmark: str, *, quick: bool) -> None:
        self._benchmark, self._quick = benchmark, quick
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = this_machine()
        self._measurements: list[Measurement] = []
        self._ratios: dict[str, float] = {}
        self._ceilings: dict[str, float] = {}
        self._missing: dict[str, str] = {}

    def add(self, what: str, unit: str, samples: Samples | list[float], **case: str | int) -> Measurement:
        """Keep the median and the quartiles of `samples`."""
        low, median, high = np.percentile(np.asarray(samples, dtype=np.float64), [25, 50, 75])
        measurement = Measurement(
            name=" ".join([what, *(f"{key}={value}" for key, value in case.items())]),
            unit=unit,
            median=float(median),
            low=float(low),
            high=float(high),
            repeats=len(samples),
            what=what,
            case=dict(case),
        )
        self._measurements.append(measurement)
        return measurement

    def ratio(self, name: str, measured: Measurement | float) -> None:
        """Set one ratio of targets.py."""
        self._ratios[name] = measured.median if isinstance(measured, Measurement) else measured
        self._missing.pop(name, None)

    def ceiling(self, name: str, ratio: float) -> None:
        """Set what one ratio would be with what its target names as the ceiling."""
        self._ceilings[name] = ratio

    def missing(self, name: str, reason: str) -> None:
        """Say why a ratio of targets.py, or a case, is left out."""
        self._missing[name] = reason

    def finish(self) -> BenchmarkRun:
        """The run; every ratio of this benchmark has been set or said to be missing."""
        wanted = {target.ratio for target in TARGETS if target.benchmark == self._benchmark}
        known = self._ratios.keys() | self._missing.keys()
        assert self._ratios.keys() <= wanted <= known, (
            f"{self._benchmark} set {sorted(known)}; its targets are {sorted(wanted)}"
        )
        return self.so_far()

    def so_far(self) -> BenchmarkRun:
        """What the run has found until now."""
        return BenchmarkRun(
            benchmark=self._benchmark,
            quick=self._quick,
            started_at=self._started_at,
            machine=self._machine,
            measurements=tuple(self._measurements),
            ratios=dict(self._ratios),
            ceilings=dict(self._ceilings),
            missing=dict(self._missing),
        )
