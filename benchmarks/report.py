"""docs/performance.md: the ratios with their targets, and for every benchmark its tables and its picture.

Everything in it comes from the result files; a number that was not measured can't get in. The words about a
benchmark are those at the top of its module.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from itertools import groupby
from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.misses import WHY
from benchmarks.plots import draw
from benchmarks.results import BenchmarkRun, Measurement, load_run
from benchmarks.tables import number
from benchmarks.targets import BENCHMARKS, TARGETS
from memory_store.errors import UsageError

_HEAD = """# Performance

`make bench` measures all of this and writes this page; nothing in it is typed by hand. Only ratios carry over
to another machine. What is compared runs in turn in one process or one group of processes, on the same work,
and results are found equal before anything is timed. Numbers are medians, with quartiles in brackets; a ratio
is the median over pairs of neighbouring samples.
"""

_CEILINGS = """The last column has what the ratio is with something in the place of our code that has nothing left to save,
measured in the same rounds: where that misses the target too, the target is out of reach on this machine.
"""


def write_report(results: Path, page: Path) -> Path:
    """Write the page from the files NAME.json in `results`. Raises UsageError if there is none."""
    paths = [results / f"{name}.json" for name in BENCHMARKS]
    runs = [load_run(path) for path in paths if path.is_file()]
    if not runs:
        raise UsageError(f"{results} has no results; run `python -m benchmarks all` first.")
    pictures = page.with_suffix("")
    parts = [
        _HEAD,
        _ratios(runs),
        *(_section(run, pictures) for run in runs),
        machine_section(runs[0].machine),
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _ratios(runs: list[BenchmarkRun]) -> str:
    ratios = {name: value for run in runs for name, value in run.ratios.items()}
    missing = {name: reason for run in runs for name, reason in run.missing.items()}
    ceilings = {name: value for run in runs for name, value in run.ceilings.items()}
    rows = []
    for target in TARGETS:
        if target.ratio in ratios:
            value = ratios[target.ratio]
            highest = (
                f"{number(ceilings[target.ratio])}: {target.ceiling}" if target.ratio in ceilings else ""
            )
            outcome = [number(value), "met" if target.met(value) else "**not met**", highest]
        else:
            outcome = ["", f"missing: {missing.get(target.ratio, 'not run')}", ""]
        rows.append([f"`{target.ratio}`", target.says, target.bound_text, *outcome])
    table = markdown_table(
        ["ratio", "what it is", "target", "measured", "", "what this machine reaches"], rows
    )
    missed = [
        target.ratio for target in TARGETS if target.ratio in ratios and not target.met(ratios[target.ratio])
    ]
    return f"## Targets\n\n{_CEILINGS}\n{table}\n{_reasons(missed)}"


def _reasons(missed: list[str]) -> str:
    """Why these targets were missed, of those of which it is known."""
    reasons = [f"`{ratio}`: {WHY[ratio].strip()}\n" for ratio in missed if ratio in WHY]
    return "\n".join(["### Why some are not met\n", *reasons]) if reasons else ""


def _section(run: BenchmarkRun, pictures: Path) -> str:
    """One benchmark: what it is, its picture, and all its measurements."""
    said = inspect.getdoc(import_module(f"benchmarks.{run.benchmark}")) or ""
    _, _, explanation = said.partition("\n\n")
    picture = draw(run, pictures / f"{run.benchmark}.png")
    kind = "Quick run" if run.quick else "Run"
    parts = [
        f"## {run.benchmark.capitalize()}\n",
        f"{explanation}\n",
        f"{kind} of {run.started_at}; load of the machine before it: {run.machine.load_average}.\n",
        f"![{run.benchmark}]({pictures.name}/{picture.name})\n",
    ]

    def layout(measurement: Measurement) -> tuple[str, tuple[str, ...]]:
        return measurement.unit, tuple(measurement.case)

    layouts = list(dict.fromkeys(map(layout, run.measurements)))
    ordered = sorted(run.measurements, key=lambda measurement: layouts.index(layout(measurement)))
    parts += [_measurements(list(group)) for _, group in groupby(ordered, layout)]
    return "\n".join(parts)


def _measurements(group: list[Measurement]) -> str:
    """Measurements of one unit and of cases alike as one table; the last part of the case goes across."""
    keys = list(group[0].case)
    across = list(dict.fromkeys(measurement.case[keys[-1]] for measurement in group)) if keys else [""]
    cells: dict[tuple[str, ...], dict[str | int, str]] = {}
    for measurement in group:
        row = (measurement.what, *(str(measurement.case[key]) for key in keys[:-1]))
        column = measurement.case[keys[-1]] if keys else ""
        cells.setdefault(row, {})[column] = _cell(measurement)
    titles = (
        [f"{keys[-1]} {value}" if isinstance(value, int) else str(value) for value in across]
        if keys
        else [""]
    )
    header = [group[0].unit, *keys[:-1], *titles]
    return markdown_table(
        header, [[*row, *(found.get(column, "") for column in across)] for row, found in cells.items()]
    )


def _cell(measurement: Measurement) -> str:
    if measurement.repeats == 1:
        return number(measurement.median)
    return f"{number(measurement.median)} ({number(measurement.low)} to {number(measurement.high)})"


def machine_section(machine: Machine) -> str:
    """The last section of a page of figures."""
    rows = [
        ["processor", f"{machine.cores} cores of {machine.cpu}"],
        ["memory", f"{machine.memory_gib} GiB"],
        *_gpu_rows(machine),
        ["last-level cache", f"{machine.last_level_cache_mib or 'unknown'} MiB"],
        ["huge pages", machine.huge_pages],
        ["system", f"Linux {machine.kernel}, Python {machine.python}"],
        *([package, found] for package, found in machine.versions.items()),
    ]
    return "## Machine\n\n" + markdown_table(["", ""], rows)


def _gpu_rows(machine: Machine) -> list[list[str]]:
    if (gpu := machine.gpu) is None:
        return []
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_gib} GiB"
    return [["GPU", found], ["driver, CUDA", f"{gpu.driver}, {gpu.cuda}"]]


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
