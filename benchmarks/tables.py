"""Results on a terminal: the ratios with their targets, then every measurement with its spread."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from benchmarks.results import BenchmarkRun, Measurement
from benchmarks.targets import TARGETS


def number(value: float) -> str:
    """Three significant digits, without an exponent for numbers that people read."""
    return (
        f"{value:.3g}"
        if 1e-3 <= abs(value) < 1e3
        else f"{value:,.0f}"
        if abs(value) >= 1e3
        else f"{value:.2g}"
    )


def spread(measurement: Measurement) -> str:
    """The quartiles."""
    return f"{number(measurement.low)} .. {number(measurement.high)}"


def print_run(run: BenchmarkRun, console: Console) -> None:
    """Print one run."""
    machine = run.machine
    gpu = f", {machine.gpu.name}" if machine.gpu else ""
    console.print(
        f"{run.benchmark} on {machine.cores} cores of {machine.cpu}{gpu}, load {machine.load_average} at the start"
        f"{', quick' if run.quick else ''}"
    )
    measurements = Table("measurement", "unit", *(_right("median"), _right("quartiles"), _right("repeats")))
    for found in run.measurements:
        measurements.add_row(found.name, found.unit, number(found.median), spread(found), str(found.repeats))
    console.print(measurements)

    ratios = Table("ratio", _right("measured"), _right("target"), "", _right("this machine reaches"))
    for target in TARGETS:
        if target.ratio in run.ratios:
            value = run.ratios[target.ratio]
            verdict = "[green]met" if target.met(value) else "[red]not met"
            highest = number(run.ceilings[target.ratio]) if target.ratio in run.ceilings else ""
            ratios.add_row(target.ratio, number(value), target.bound_text, verdict, highest)
        elif target.ratio in run.missing:
            ratios.add_row(
                target.ratio, "", target.bound_text, f"[yellow]missing: {run.missing[target.ratio]}"
            )
    console.print(ratios)
    named = {target.ratio for target in TARGETS}
    for name, reason in run.missing.items():
        if name not in named:
            console.print(f"left out: {name}: {reason}", markup=False)


def _right(title: str) -> Column:
    return Column(title, justify="right")
