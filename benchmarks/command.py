"""The command line of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
import time
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.results import BenchmarkRun, joined, load_run
from benchmarks.tables import print_run
from benchmarks.targets import BENCHMARKS
from memory_store.errors import UsageError

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/performance.md")


class Name(StrEnum):
    """What can be asked for: a benchmark, all of them, or the report."""

    KERNELS = "kernels"
    SELECTION = "selection"
    TRANSPORT = "transport"
    STEP = "step"
    SCALING = "scaling"
    DURABILITY = "durability"
    SERVICE = "service"
    PLAN = "plan"
    DATA = "data"
    GPU = "gpu"
    HIT_RATES = "hit_rates"
    ALL = "all"
    REPORT = "report"


def run_benchmark(name: str, *, quick: bool, **settings: Any) -> BenchmarkRun:
    """Run one benchmark in this process; that of the GPU has settings of its own (benchmarks/gpu.py)."""
    module = import_module(f"benchmarks.{name}")
    run: BenchmarkRun = module.run(module.QUICK if quick else module.FULL, quick=quick, **settings)
    return run


def run_all(folder: Path, *, quick: bool) -> BenchmarkRun:
    """Run every benchmark in a process of its own, each writing its file into `folder`; the runs as one.

    Raises subprocess.CalledProcessError if one fails; its own output says why.
    """
    for name in BENCHMARKS:
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(folder / f"{name}.json")]
        subprocess.run(command + ["--quick"] * quick, check=True)
    return joined([load_run(folder / f"{name}.json") for name in BENCHMARKS], quick=quick)


def benchmark(
    name: Annotated[
        Name, typer.Argument(help="A benchmark; all of them; or the report of the last results.")
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer repeats, fewer sizes: under 50 s each, with more spread."),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
    device: Annotated[
        str, typer.Option(help="Where `gpu` runs: cuda, or cpu at tiny sizes, to show that it works.")
    ] = "cuda",
    host_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="For `gpu`: memory of a machine that shows less until it is used."),
    ] = None,
    results: Annotated[
        Path, typer.Option(help="The folder where `all` writes and `report` reads.")
    ] = RESULTS,
) -> None:
    """Measure this project against its peers and against the limits of this machine."""
    console = Console()
    if name == Name.REPORT:
        from benchmarks.report import write_report  # draws pictures, which nothing else needs

        console.print(f"Written: {write_report(results, PAGE)}")
        return
    begun = time.perf_counter()
    if name == Name.ALL:
        run = run_all(results, quick=quick)
    else:
        settings: dict[str, Any] = {}
        if name == Name.GPU:
            settings = {
                "device_name": device,
                "host_bytes": None if host_memory is None else int(host_memory * 1e9),
                "keep": (lambda run: None) if json is None else (lambda run: run.save(json)),
            }
        run = run_benchmark(name, quick=quick, **settings)
        print_run(run, console)
    console.print(f"{name}: {time.perf_counter() - begun:.0f} s")
    if json is not None:
        run.save(json)


def main() -> None:
    """Run the command of sys.argv; a mistake of its user ends it with status 2."""
    try:
        typer.run(benchmark)
    except UsageError as error:
        Console(stderr=True).print(str(error))
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
