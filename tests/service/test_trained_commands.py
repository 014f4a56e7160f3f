"""`pkm eval`, `generate`, `inspect` and `export` round the work itself, which stand-ins replace."""

import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from memory_store.access import AccessReport
from memory_store.errors import CutError
from memory_store.statistics import AgeRange
from service.cli import app
from service.cli.inspect import SHADES, coarse_map
from workers.export import ExportLoss, ExportReport
from workers.report import EvaluationReport

ACCESS = AccessReport(
    rows=4096, rows_used=3072, accesses=9000, usage=0.75, kl_to_uniform=1.25, top1_share=0.125
)

ROOT = Path(__file__).resolve().parents[2]
StandIn = Callable[..., None]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts functions in the place of a module of workers."""

    def replace(module: str, **functions: Callable[..., Any]) -> None:
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**functions))  # type: ignore[misc]

    return replace


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def evaluated(stand_in: StandIn) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def evaluate(model: str, store: str, corpus: str, job: str, split: str) -> EvaluationReport:
        calls.append((model, store, corpus, job, split))
        print("noise")
        return EvaluationReport(split=split, tokens=12345, perplexity=280.126, memory={"memory": ACCESS})

    def load_trained_model(run: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(model=run.path.name, store="store", corpus="corpus", job="job")

    stand_in("workers.trained_model", load_trained_model=load_trained_model)
    stand_in("workers.evaluation", evaluate=evaluate)
    return calls


def test_eval_prints_figures(evaluated: list[tuple[object, ...]]):
    result = pkm("eval", "runs/first")
    assert evaluated == [("first", "store", "corpus", "job", "test")]
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == [
        "test perplexity",
        "test tokens",
        "memory: usage",
        "memory: KL to uniform",
        "memory: top 1 % share",
    ]
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == [
        "280.13",
        "12,345",
        "75.0 %",
        "1.250 nats",
        "12.5 %",
    ]


def test_eval_prints_json_and_nothing_else(evaluated: list[tuple[object, ...]]):
    result = pkm("eval", "runs/first", "--split", "validation", "--json")
    figures = json.loads(result.stdout)
    assert (figures["split"], figures["perplexity"]) == ("validation", 280.126)
    assert figures["memory"]["memory"]["kl_to_uniform"] == 1.25


def test_generate_prints_the_prompt_and_the_pieces(stand_in: StandIn):
    seen: list[object] = []

    def generate(run: Any, *settings: object) -> Iterator[str]:
        seen.extend(settings)
        print("noise")
        yield from [" citizens", ",\n", "we"]

    stand_in("workers.generation", generate=generate)
    result = pkm(
        "generate",
        "runs/first",
        "--prompt",
        "My fellow",
        "--tokens",
        "3",
        "--temperature",
        "0",
        "--top-k",
        "5",
        "--seed",
        "7",
    )
    assert result.stdout == "My fellow citizens,\nwe\n"
    assert seen == ["My fellow", 3, 0.0, 5, 7]


def test_generate_prints_nothing_when_the_model_can_not_be_loaded(stand_in: StandIn):
    def generate(*_: object) -> Iterator[str]:
        raise CutError("model.safetensors is damaged.")
        yield ""

    stand_in("workers.generation", generate=generate)
    result = pkm("generate", "runs/first", "--prompt", "My fellow")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "model.safetensors is damaged." in result.stderr


SLOW_SPEAKER = """
import sys, types
from service.cli import main

def generate(*_):
    for piece in ("one", " two", " three"):
        yield piece
        assert sys.stdin.readline() == "heard\\n"  # it goes on when this piece has been read

sys.modules["workers.generation"] = types.SimpleNamespace(generate=generate)
sys.argv = ["pkm", "generate", "runs/first", "--prompt", "Zero "]
main()
"""


def test_generate_prints_each_piece_as_it_comes():
    """Through a pipe, which is buffered unless it is flushed: a piece that stayed behind would be waited for forever."""
    command = [sys.executable, "-c", SLOW_SPEAKER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as speaker:
        assert speaker.stdin is not None
        assert speaker.stdout is not None
        for piece in (b"Zero one", b" two", b" three"):
            assert speaker.stdout.read(len(piece)) == piece
            speaker.stdin.write(b"heard\n")
            speaker.stdin.flush()
        assert speaker.stdout.read() == b"\n"
    assert speaker.returncode == 0


@pytest.fixture
def inspected(stand_in: StandIn) -> None:
    def inspect_run(run: object, split: str) -> types.SimpleNamespace:
        ages = [AgeRange(1, 1000), AgeRange(10, 3000), AgeRange(None, 96)]
        table = types.SimpleNamespace(name="memory", access=ACCESS, ages=ages, access_map=np.eye(64))
        return types.SimpleNamespace(name="first", step=600, tables=[table])

    stand_in("workers.inspection", inspect_run=inspect_run, draw_inspection=lambda inspection, file: [file])


@pytest.mark.usefixtures("inspected")
def test_inspect_prints_figures_and_a_map():
    result = pkm("inspect", "runs/first", "--picture", "map.png")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^dead slots +1,024$", result.stdout, re.MULTILINE)
    assert re.search(r"^updated 10 steps ago +3,000\nnever updated +96$", result.stdout, re.MULTILINE)
    assert "Drew map.png" in result.stderr
    assert result.stdout.rstrip("\n").splitlines()[-32:] == coarse_map(np.eye(64))


@pytest.mark.usefixtures("inspected")
def test_inspect_prints_json_and_nothing_else():
    figures = json.loads(pkm("inspect", "runs/first", "--json").stdout)
    assert (figures["split"], figures["step"], figures["pictures"]) == ("validation", 600, [])
    assert figures["tables"]["memory"]["dead_slots"] == 1024
    assert figures["tables"]["memory"]["ages"][-1] == {"steps": None, "rows": 96}


def test_export_writes_where_it_is_told_and_measures_if_asked(stand_in: StandIn):
    def export_model(trained: str, folder: Path, table: str) -> ExportReport:
        print("noise")
        return ExportReport(
            folder=folder, step=6, table=table, parameters=1234, bytes=2_000_000, files=("model.safetensors",)
        )  # type: ignore[arg-type]

    def measure_loss(trained: str, folder: Path) -> ExportLoss:
        return ExportLoss(split="test", tokens=100, trained=200.0, exported=201.0)

    stand_in("workers.trained_model", load_trained_model=lambda run: run.path.name)
    stand_in("workers.export", export_model=export_model)
    stand_in("workers.export_loss", measure_loss=measure_loss)
    shown = pkm("export", "runs/first", "model").stdout
    assert [line.split(maxsplit=1)[1] for line in shown.splitlines()] == [
        "model",
        "float32",
        "1,234",
        "2.0 MB",
    ]
    shown = pkm("export", "runs/first", "model", "--table", "bfloat16", "--measure").stdout
    assert [line.split("  ")[-1] for line in shown.splitlines()[-2:]] == ["200.0000", "201.0000 (+0.5000 %)"]

    figures = json.loads(
        pkm("export", "runs/first", "model", "--table", "int8", "--measure", "--json").stdout
    )
    assert (figures["table"], figures["loss"]["exported"], figures["files"]) == (
        "int8",
        201.0,
        ["model.safetensors"],
    )


# ---- the map in the terminal -------------------------------------------------------------------------------


def test_the_map_has_a_character_for_each_block():
    weights = np.zeros((64, 64))
    weights[10:12, 20] = 1.0
    lines = coarse_map(weights)
    assert (len(lines), {len(line) for line in lines}) == (32, {64})
    assert [
        (row, column) for row, line in enumerate(lines) for column in range(64) if line[column] != " "
    ] == [(5, 20)]
    assert lines[5][20] == SHADES[-1]


@pytest.mark.parametrize("side", [1, 3, 33, 100, 512])
def test_maps_of_any_side_are_drawn(side: int):
    lines = coarse_map(np.ones((side, side)))
    assert lines == [SHADES[-1] * min(side, 64)] * min(side, 32)


def test_shades_are_logarithmic_and_blank_only_without_access():
    weights = np.array([[1000.0, 100.0, 10.0, 1.0, 1e-9, 0.0]])
    ((heaviest, second, third, thousandth, trace, none),) = coarse_map(weights)
    assert (heaviest, none) == (SHADES[-1], " ")
    assert SHADES.index(second) - SHADES.index(third) == 3
    assert thousandth == trace == SHADES[1]
    assert coarse_map(np.zeros((2, 2))) == ["  ", "  "]
