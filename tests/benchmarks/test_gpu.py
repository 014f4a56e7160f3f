"""The GPU benchmark at tiny sizes on the CPU: all of it runs, and nothing that fails or has no room ends it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_kernels, gpu_steps
from benchmarks.cases import Cases
from benchmarks.command import run_benchmark
from benchmarks.device_waits import KINDS
from benchmarks.gpu_steps import CACHED, GPU, HOST, Way
from benchmarks.results import BenchmarkRun, Recorder, load_run
from memory_store.errors import UsageError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent


def tiny(**settings: Any) -> BenchmarkRun:
    return gpu.run(gpu.QUICK, quick=True, device_name="cpu", **settings)


def values(run: BenchmarkRun, what: str, key: str) -> set[str | int]:
    return {found.case[key] for found in run.find(what)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_measures_what_it_promises_and_keeps_it_case_by_case(tmp_path: Path) -> None:
    kept: list[int] = []

    def keep(run: BenchmarkRun) -> None:
        run.save(tmp_path / "gpu.json")
        kept.append(len(load_run(tmp_path / "gpu.json").measurements))

    run = run_benchmark("gpu", quick=True, device_name="cpu", host_bytes=8 * 10**9, keep=keep)
    assert kept == sorted(kept)
    assert kept[0] > 0
    for target in ("host_over_gpu_table", "kernel_share_of_floor", "waits_for_the_device"):
        assert run.missing.pop(target) == "there is no GPU here"
    assert run.missing.keys() <= {"transfers", "kernels of FBGEMM"}

    first = {"host", "cached", "gpu", "host, bfloat16", "gpu, bfloat16", "host, look-ahead"}
    assert values(run, "training rate", "placement") == first
    for bits, placements in (("2^10", first), ("2^8", {"host", "cached", "gpu"})):
        for what in ("training rate", "step", "part of a step", "host memory", "waits"):
            found = {found.case["placement"] for found in run.find(what, rows=bits)}
            assert found == placements, (what, bits)
    assert values(run, "part of a step", "part") == {"forward", "backward", "dense optimizer", "tables"}
    assert values(run, "waits", "kind") == set(KINDS)
    assert values(run, "speed over a table on the device", "placement") == first - {"gpu", "gpu, bfloat16"}
    (hits,) = (found.median for found in run.find("hit rate", rows="2^10"))
    assert 0 < hits < 1

    ours = {
        *("pool", "weight gradient", "sum by row", "selection"),
        *("row update", "row update, few rows often", "squared norm"),
    }
    assert values(run, "share of the floor", "kernel") == ours
    assert {found.case["floor"] for found in run.find("share of the floor", kernel="selection")} == {
        gpu_kernels.BYTES,
        gpu_kernels.FLOAT32,
        gpu_kernels.TF32,
    }
    assert values(run, "kernel time", "kernel") >= {
        *ours,
        "sort by row",
        "pool: EmbeddingBag",
        "selection: all scores",
    }
    assert values(run, "ceiling", "of") == {
        "copy on the device",
        *("float32 product", "tf32 product", "bfloat16 product"),
        *("host to device", "device to host"),
    }
    assert all(found.median > 0 for found in run.measurements if found.what != "waits")


def test_a_share_of_the_floor_is_the_floor_over_the_time() -> None:
    run = tiny_kernels()
    copy = run.find("ceiling", of="copy on the device")
    time, share = run.find("kernel time", kernel="pool"), run.find("share of the floor", kernel="pool")
    size = gpu.TINY.kernels
    floor_bytes = size.tokens * (size.entries * (4 * size.dim + 12) + 4 * size.dim)
    assert share[0].median == pytest.approx(
        floor_bytes / (1e9 * copy[0].median) / (time[0].median / 1e3), rel=1e-6
    )


def tiny_kernels() -> BenchmarkRun:
    cases = Cases(Recorder("gpu", quick=True), 60, lambda run: None)
    gpu._measure_kernels(cases, gpu.TINY, CPU)
    return cases.recorder.so_far()


def test_a_peer_that_fails_is_missing_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> object:
        raise RuntimeError("fbgemm_gpu has no CUDA kernels")

    monkeypatch.setattr(gpu_kernels.FbgemmRowwiseAdagrad, "installed", lambda: True)
    monkeypatch.setattr(gpu_kernels, "fbgemm_bag", refuse)
    run = tiny_kernels()
    assert run.missing["kernels of FBGEMM"] == "RuntimeError: fbgemm_gpu has no CUDA kernels"
    assert {"pool", "selection"} <= values(run, "kernel time", "kernel")


def test_waits_that_can_not_be_counted_cost_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> object:
        raise RuntimeError("no profiler")

    monkeypatch.setattr(gpu_steps, "count_waits", refuse)
    cases = Cases(Recorder("gpu", quick=True), 60, lambda run: None)
    spec = gpu.spec_with_room(8, gpu.TINY.steps.dim, 1e9)
    way, table = Way(GPU), gpu.Table(spec, CPU, on_device=True)
    assert gpu_steps.measure_steps(cases, gpu.TINY.steps, CPU, way, table) > 0
    assert cases.recorder.so_far().missing[f"waits of {way.name(spec)}"] == "RuntimeError: no profiler"


def test_a_placement_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {HOST: 3.0, GPU: 4.0}
    tried: list[tuple[str, str]] = []

    def measure(cases: object, size: object, device: object, way: Way, table: Any) -> float:
        tried.append((way.case(table.spec)["placement"], way.case(table.spec)["rows"]))
        if way == Way(GPU) and table.spec.rows == 1 << 8:
            raise torch.OutOfMemoryError("out of memory")
        return rates.get(way.placement, 1.0)

    monkeypatch.setattr(gpu, "measure_steps", measure)
    monkeypatch.setattr(gpu, "_measure_kernels", lambda *arguments: None)
    run = tiny()
    assert run.missing["steps placement=gpu rows=2^8"] == "OutOfMemoryError: out of memory"
    assert tried[-1] == ("cached", "2^8")
    (ratio,) = run.find("speed over a table on the device", placement="host", rows="2^10")
    assert ratio.median == 0.75
    assert not run.find("speed over a table on the device", rows="2^8")


def test_the_deciding_ratio_is_of_the_largest_size_that_both_have() -> None:
    recorder, cuda = Recorder("gpu", quick=True), torch.device("cuda")
    rates = {(Way(HOST), 20): 9.0, (Way(GPU), 20): 10.0, (Way(HOST), 24): 7.0, (Way(GPU), 16): 1.0}
    spec = gpu.spec_with_room(24, 8, 1e12)
    gpu._compare(recorder, gpu._Measured(rates), spec, 24, cuda)
    assert recorder.so_far().ratios == {"host_over_gpu_table": 0.9}
    alone = Recorder("gpu", quick=True)
    gpu._compare(alone, gpu._Measured({(Way(GPU), 20): 1.0}), spec, 24, cuda)
    assert alone.so_far().ratios == {}


def test_the_worst_kernel_and_the_worst_way_decide() -> None:
    recorder, cuda = Recorder("gpu", quick=True), torch.device("cuda")
    for kernel, floor, share in [
        ("pool", gpu_kernels.BYTES, 0.9),
        ("selection", gpu_kernels.BYTES, 0.1),
        ("selection", gpu_kernels.TF32, 0.7),
        ("selection", gpu_kernels.FLOAT32, 1.5),
    ]:
        recorder.add("share of the floor", "share", [share], kernel=kernel, floor=floor)
    for placement, calls in (("host", (7, 0, 1)), ("gpu", (1, 2, 3))):
        for kind, count in zip(KINDS, calls, strict=True):
            recorder.add("waits", "calls", [float(count)], kind=kind, placement=placement, rows="2^20")
    gpu._set_ratios(recorder, cuda)
    assert recorder.so_far().ratios == {"kernel_share_of_floor": 0.7, "waits_for_the_device": 5}


def test_without_time_everything_is_missing(tmp_path: Path) -> None:
    run = tiny(limit_s=0, keep=lambda run: run.save(tmp_path / "gpu.json"))
    assert run.measurements == ()
    assert {
        "kernels",
        "steps placement=host rows=2^10",
        "steps placement=cached rows=2^8",
    } <= run.missing.keys()
    assert "no time was left" in json.loads((tmp_path / "gpu.json").read_text())["missing"]["kernels"]


def test_a_table_is_filled_once_for_all_ways_of_its_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[bool, int]] = []

    class Counted(gpu.Table):
        def store(self) -> Any:
            if self.seconds_to_fill is None:
                filled.append((self._on_device, self.spec.rows))
            return super().store()

    monkeypatch.setattr(gpu, "Table", Counted)
    monkeypatch.setattr(gpu, "measure_steps", lambda *arguments: 1.0)
    monkeypatch.setattr(gpu, "_measure_kernels", lambda *arguments: None)
    tiny()
    assert filled == [(True, 1 << 10), (False, 1 << 10), (True, 1 << 8), (False, 1 << 8)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_copies_of_hot_rows_come_last(every: bool, compiled: bool) -> None:
    on_host = gpu.ways_of(HOST, every=every, compiled=compiled)
    assert on_host[-1] == Way(CACHED)
    on_device = gpu.ways_of(GPU, every=every, compiled=compiled)
    others = [(way.precision, way.dense) for way in on_host[:-1] if not way.look_ahead]
    assert len(on_host) == len(others) + 1 + every
    assert others == [(way.precision, way.dense) for way in on_device]
    assert len(others) == (4 if every and compiled else 2 if every else 1)
    assert {way.placement for way in on_host[:-1]} == {HOST}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        gpu.run(gpu.QUICK, quick=True)


def test_a_table_without_room_for_adam_is_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available_bytes", lambda: 10**9)
    room = gpu.room_on_host(None)
    found = [gpu.spec_with_room(bits, 512, room) for bits in (16, 18, 19)]  # Adam: 6 kB a row
    assert [(spec.dtype, spec.optimizer.kind) for spec in found] == [
        ("float32", "adam"),
        ("bfloat16", "rowwise_adam"),
        ("bfloat16", "rowwise_adagrad"),
    ]
    assert gpu.room_on_host(300 * 10**9) > 100e9  # as one has told, not Linux


def test_a_table_without_any_room_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available_bytes", lambda: 1000)
    monkeypatch.setattr(gpu, "_measure_kernels", lambda *arguments: None)
    run = tiny()
    assert not run.measurements
    assert "MemoryError: it takes 0 GB, and the host has 0 GB for it" in set(run.missing.values())


def test_it_needs_few_packages() -> None:
    """Those that docs/gpu.md names: machines with a GPU may have no registry within reach."""
    program = (
        "import sys\n"
        "refused = {'ray', 'matplotlib', 'cryptography', 'aiohttp', 'tokenizers', 'safetensors', 'opentelemetry'}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in refused:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from benchmarks.command import run_benchmark\n"
        "import benchmarks.gpu\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    page = (ROOT / "docs/gpu.md").read_text()
    table = page.partition("| package | why |")[2].partition("\n\n")[0]
    named = {
        *re.findall(r"[a-z][a-z-]+", table),
        "pkm",
        "torch",
        "triton",
        "setuptools",
        "tqdm",
    }  # the last of torch
    named |= {
        "grpcio-health-checking",
        "grpcio-reflection",
        "grpcio-tools",
    }  # which grpc loads where they are
    unnamed = {
        module: packages
        for module, packages in packages_distributions().items()
        if module in found and not named & {name.lower().replace("_", "-") for name in packages}
    }
    assert unnamed == {}
