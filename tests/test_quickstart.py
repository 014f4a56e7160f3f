"""The quickstart learns, its memory matters, and it beats both dense twins at equal tokens.

Speed is measured in benchmarks/, not here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers.evaluation import evaluate
from workers.memory_layer import MemoryLayer
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def pkm(*arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "pkm"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart and its two twins, trained through the command."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = folder / "sotu"
    pkm("data", "prepare", "examples/data/sotu.parquet", "--vocab-size", "4096", "--out", str(corpus))
    for name, extra in (("memory", []), ("dense", ["--twin", "dense"]), ("deep", ["--twin", "deep"])):
        pkm(
            *("train", "examples/quickstart.yaml", "--json", "--run", str(folder / name)),
            *("--set", f"data.corpus={corpus}", *extra),
        )
    return folder


def perplexity(run: Path) -> float:
    return float(json.loads((run / "report.json").read_text())["test_perplexity"])


def test_memory_beats_both_dense_twins(runs: Path) -> None:
    assert perplexity(runs / "memory") < perplexity(runs / "dense")
    assert perplexity(runs / "memory") < perplexity(runs / "deep")


def test_report_describes_a_used_memory(runs: Path) -> None:
    report = json.loads((runs / "memory" / "report.json").read_text())
    assert report["memory_usage"] > 0.3
    assert 0 < report["kl_to_uniform"] < 5
    assert 0.01 < report["top1_share"] < 1
    assert report["tokens_per_second"] > 0


@pytest.mark.parametrize("ablation", ["zero", "shuffle"])
def test_without_its_memory_the_model_is_clearly_worse(runs: Path, ablation: str) -> None:
    trained = load_trained_model(RunFolder(runs / "memory"))

    def test_perplexity() -> float:
        report = evaluate(
            trained.model, trained.store, trained.corpus, trained.job, "test", tokens_max=40_000
        )
        return report.perplexity

    whole = test_perplexity()
    for module in trained.model.modules():
        if isinstance(module, MemoryLayer):
            module.ablation = ablation  # type: ignore[assignment]
    assert test_perplexity() > 1.2 * whole
