"""`python -m benchmarks.quickstart [--json FILE]`: the quickstart against its dense twins, through the pkm command.

Five runs, one after the other: the quickstart; its twins with equal layers and with twice the layers, at equal tokens;
and both again for as many steps as fit into the quickstart's training time. Prints perplexity, speed, usage and KL,
with the wall time of each run. About fifteen minutes on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine, this_machine
from workers.report import Report

JOB = Path("examples/quickstart.yaml")
TEXT = Path("examples/data/sotu.parquet")
VOCABULARY = 4096


class Comparison(BaseModel):
    """The reports of all runs, by what they are."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    runs: dict[str, Report]


def pkm(*arguments: str) -> str:
    """Run the pkm command of this environment; returns what it prints."""
    command = [str(Path(sys.executable).parent / "pkm"), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare(folder: Path) -> Comparison:
    """Train all models in `folder`."""
    corpus = folder / "corpus"
    pkm("data", "prepare", str(TEXT), "--vocab-size", str(VOCABULARY), "--out", str(corpus))

    def train(name: str, *extra: str) -> Report:
        settings = ("--set", f"data.corpus={corpus}", "--run", str(folder / name), "--json")
        return Report.model_validate_json(pkm("train", str(JOB), *settings, *extra))

    memory = train("memory")
    runs = {"memory": memory}
    for kind in ("dense", "deep"):
        twin = runs[f"{kind}, equal tokens"] = train(kind, "--twin", kind)
        steps = max(1, round(memory.train_seconds / twin.train_seconds * twin.steps))
        runs[f"{kind}, equal time"] = train(f"{kind}-time", "--twin", kind, "--set", f"train.steps={steps}")
    return Comparison(machine=this_machine(), runs=runs)


def show(comparison: Comparison, console: Console) -> None:
    table = Table(title="The quickstart and its dense twins")
    for heading in ("model", "steps", "test perplexity", "tokens/s", "train s", "wall s", "usage", "KL"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, report in comparison.runs.items():
        usage, kl = report.memory_usage, report.kl_to_uniform
        table.add_row(
            name,
            str(report.steps),
            f"{report.test_perplexity:.1f}",
            f"{report.tokens_per_second:,.0f}",
            f"{report.train_seconds:.0f}",
            f"{report.wall_seconds:.0f}",
            "" if usage is None else f"{usage:.1%}",
            "" if kl is None else f"{kl:.2f}",
        )
    console.print(table)


def main(
    output: Annotated[
        Path | None, typer.Option("--json", help="Also write the reports to this file.")
    ] = None,
) -> None:
    """Train the quickstart and its dense twins, and compare them at equal tokens and at equal time."""
    with tempfile.TemporaryDirectory() as folder:
        comparison = compare(Path(folder))
    show(comparison, Console())
    if output is not None:
        output.write_text(json.dumps(comparison.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
