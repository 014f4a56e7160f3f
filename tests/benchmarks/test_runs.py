"""Every benchmark at a tiny size: it runs, its file has the agreed shape, and the report can be made of it."""

import json
from pathlib import Path

import pytest

from benchmarks import data, durability, kernels, plan, scaling, selection, service, step, transport
from benchmarks.kernel_bandwidth import BandwidthSize
from benchmarks.misses import WHY
from benchmarks.report import write_report
from benchmarks.results import BenchmarkRun
from benchmarks.targets import TARGETS
from memory_store.errors import UsageError
from workers.job_spec import ModelSpec
from workers.memory_spec import MemorySpec

pytestmark = pytest.mark.timeout(600)  # whatever is compiled for the first time, is so here
KERNELS = kernels.KernelsSize(4096, 32, 16, 8, 2, 2, BandwidthSize(1 << 20, (32, 64), (64,), 1 << 16, 2))
SELECTION = selection.SelectionSize(32, 2, 4, 16, (16, 32), 16, (16,), 2)
TRANSPORT = transport.TransportSize(4096, 64, (100, 1000), 2, 64, 32, 4)
STEP = step.StepSize(
    step.ModelKind(
        ModelSpec(layers=2, dim=64, heads=2, feed_forward_dim=64),
        MemorySpec(layers=(2,), sub_keys=32, heads=2, k=4, query_dim=16),
        vocabulary_size=100,
    ),
    *(2, 16, 2, 1, 2, True),
)
PLAN = plan.PlanSize((plan.PlannedKind("tiny", STEP.kind, 1, (2,)),), (1000,), 1, 1)
DURABILITY = durability.DurabilitySize(STEP.kind, 2, 16, 1, 2, 2, 4096, 64, 4, 4096, 2, 1)
SERVICE = service.ServiceSize(50, 50, 0.5, 5, 10)
DATA = data.DataSize(300_000, 200_000, 400, 2)
SCALING = scaling.ScalingSize((2**12, 2**14), (2**12, 2**14), 0, 64, 64, 2, (2,), 2**12)


def check(run: BenchmarkRun, folder: Path) -> None:
    """The file has the machine, every measurement with its spread, and the benchmark's ratios, or why not."""
    run.save(folder / f"{run.benchmark}.json")
    found = json.loads((folder / f"{run.benchmark}.json").read_text())
    assert {"cpu", "cores", "memory_gib", "versions"} <= found["machine"].keys()
    names = [measurement["name"] for measurement in found["measurements"]]
    assert names
    assert len(set(names)) == len(names)
    for measurement in found["measurements"]:
        assert {"name", "unit", "median", "low", "high", "repeats"} <= measurement.keys()
        assert 0 < measurement["low"] <= measurement["median"] <= measurement["high"]
    wanted = {target.ratio for target in TARGETS if target.benchmark == run.benchmark}
    assert found["ratios"].keys() | found["missing"].keys() == wanted
    assert all(isinstance(ratio, float) for ratio in found["ratios"].values())

    page = write_report(folder, folder / "docs" / "performance.md")
    text = page.read_text()
    assert f"## {run.benchmark.capitalize()}" in text
    assert all(f"`{name}`" in text for name in wanted)
    assert (page.parent / "performance" / f"{run.benchmark}.png").stat().st_size > 1000
    missed = {
        target.ratio for target in TARGETS if not target.met(found["ratios"].get(target.ratio, target.bound))
    }
    assert {name for name in WHY if f"\n`{name}`: " in text} == missed & WHY.keys()


def test_kernels(tmp_path: Path):
    check(kernels.run(KERNELS, quick=True), tmp_path)


def test_selection(tmp_path: Path):
    check(selection.run(SELECTION, quick=True), tmp_path)


@pytest.mark.slow
def test_data(tmp_path: Path):
    check(data.run(DATA, quick=True), tmp_path)


@pytest.mark.slow
def test_service(tmp_path: Path):
    run = service.run(SERVICE, quick=True)
    check(run, tmp_path)
    assert run.ratios["service_watchers_told"] == 1
    assert run.ratios["service_submits_lost_or_doubled"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "size"),
    [(transport, TRANSPORT), (step, STEP), (scaling, SCALING), (durability, DURABILITY), (plan, PLAN)],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_benchmarks_with_shards(module, size, tmp_path: Path):
    check(module.run(size, quick=True), tmp_path)


def test_a_report_of_nothing_says_what_to_do(tmp_path: Path):
    with pytest.raises(UsageError, match="python -m benchmarks all"):
        write_report(tmp_path, tmp_path / "performance.md")
