"""The `gpu` benchmark: tokens/s by placement of the table and by its size, and the kernels against their floors.

First all ways to train at the size that decides `host_over_gpu_table`; then the ceilings of the device and the bus, and the
kernels; then the other sizes. A table that has no room as float32 with Adam is one of bfloat16 with row-wise Adam, half as
large, or else with row-wise Adagrad, a sixth. What has no room, what fails, and what would end after eight minutes (as the
cases before it let expect: none is broken off) is left out and named as missing; after each case the results so far are
kept. gpu_steps.py, gpu_kernels.py and gpu_ceilings.py say what is measured.

Without a GPU there are no figures. `--device cpu --quick` runs all of it at tiny sizes on the CPU, only to show that it
works.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from dataclasses import dataclass, field, replace

import torch

from benchmarks.cases import Cases, Keep
from benchmarks.device_waits import ONE_COPY
from benchmarks.gpu_ceilings import measure_ceilings
from benchmarks.gpu_kernels import FLOAT32, KernelSize, measure_kernels
from benchmarks.gpu_steps import CACHED, GPU, HOST, StepSize, Table, Way, measure_steps
from benchmarks.machine import available_bytes, resident_bytes
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.training_steps import VALUES
from memory_store.errors import UsageError
from memory_store.placement import Placement
from memory_store.table import part_bytes
from memory_store.table_spec import OptimizerSpec, TableSpec

LIMIT_S = 450.0  # of eight minutes; Python and the device take some seconds to start
RATIO, SHARE, WAITS = "host_over_gpu_table", "kernel_share_of_floor", "waits_for_the_device"
_NO_GPU = "there is no GPU here"
_SHARE_OF_ROOM = 0.9  # the model and its activations need some too
_FIRST_CASE_S = 30.0  # kernels are compiled in it


@dataclass(frozen=True)
class GpuSize:
    """The steps and kernels that are measured; powers of two of rows, the deciding one first."""

    steps: StepSize
    kernels: KernelSize
    table_bits: tuple[int, ...]
    copy_bytes: int
    matrix: int


_STEPS = StepSize(512, 8, 32_000, 32, 512, cached_rows=1 << 16, steps=12, steps_in_parts=5)
_KERNELS = KernelSize(32 * 512, 128, 1 << 20, 512, heads=4, sub_keys=512, width=64, k=32, repeats=20)
FULL = GpuSize(_STEPS, _KERNELS, (20, 16, 18, 22, 24, 26), 1 << 30, 8192)
QUICK = GpuSize(_STEPS, _KERNELS, (20, 16), 1 << 30, 8192)
TINY = GpuSize(
    StepSize(
        32, 2, 300, 2, 32, cached_rows=200, steps=22, steps_in_parts=1
    ),  # past the first two choices of copies
    KernelSize(64, 8, 1 << 10, 32, heads=4, sub_keys=32, width=8, k=4, repeats=1),
    (10, 8),
    1 << 20,
    64,
)


def ways_of(placement: str, *, every: bool, compiled: bool) -> list[Way]:
    """The ways to train that share a table, on the device (GPU) or on the host (HOST).

    Copies of hot rows come last: a table whose rows have been copied goes on with copying them.
    """
    precisions = ("float32", "bfloat16") if every else ("float32",)
    kinds = ("eager", "compiled") if every and compiled else ("eager",)
    ways = [Way(placement, precision, dense) for dense in kinds for precision in precisions]
    if placement == GPU:
        return ways
    return [*ways, *[Way(HOST, look_ahead=True)] * every, Way(CACHED)]


@dataclass
class _Measured:
    """Tokens/s by way and power of two of rows, and what cases have taken."""

    rates: dict[tuple[Way, int], float] = field(default_factory=dict)
    fill_s_per_byte: float = 0.0
    steps_s: float = _FIRST_CASE_S


def run(
    size: GpuSize,
    *,
    quick: bool,
    device_name: str = "cuda",
    host_bytes: int | None = None,
    keep: Keep = lambda run: None,
    limit_s: float = LIMIT_S,
) -> BenchmarkRun:
    """Measure for `limit_s` at most, and `keep` the results after each case. Raises UsageError where the device is missing.

    `host_bytes` is the memory of the host, where Linux shows less until it is used.
    """
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "This machine has no GPU, so there is nothing to measure; --device cpu --quick shows that the benchmark works."
        )
    device = torch.device(device_name)
    size = TINY if device.type == "cpu" else size
    cases = Cases(Recorder("gpu", quick=quick), limit_s, keep)
    cases.recorder.missing(RATIO, "no size was measured with both placements")
    for ratio in (SHARE, WAITS):
        cases.recorder.missing(ratio, "nothing was measured" if device.type == "cuda" else _NO_GPU)
    measured = _Measured()
    first, *others = size.table_bits
    _measure_size(cases, measured, size, device, first, host_bytes, all_ways=True)
    cases.run("kernels", lambda: _measure_kernels(cases, size, device), expected_s=_FIRST_CASE_S)
    for bits in others:
        _measure_size(cases, measured, size, device, bits, host_bytes, all_ways=False)
    _set_ratios(cases.recorder, device)
    return cases.recorder.finish()


def _measure_kernels(cases: Cases, size: GpuSize, device: torch.device) -> None:
    repeats = size.kernels.repeats
    ceilings = measure_ceilings(cases, device, size.copy_bytes, size.matrix, repeats)
    measure_kernels(cases, size.kernels, device, ceilings)


def _measure_size(
    cases: Cases,
    measured: _Measured,
    size: GpuSize,
    device: torch.device,
    bits: int,
    host_bytes: int | None,
    *,
    all_ways: bool,
) -> None:
    """All placements of a table of 2**bits rows, each table filled once."""
    spec = spec_with_room(bits, size.steps.dim, room_on_host(host_bytes))
    for placement in (GPU, HOST):
        table = Table(spec, device, on_device=placement == GPU)
        # For a CPU compiling takes longer than all the rest.
        for way in ways_of(placement, every=all_ways, compiled=device.type == "cuda"):
            filled = table.seconds_to_fill is not None
            expected = measured.steps_s + (0 if filled else table.bytes * measured.fill_s_per_byte)

            def case(way: Way = way, table: Table = table, filled: bool = filled) -> None:
                _check_room(table, device, host_bytes, on_device=way.placement == GPU, filled=filled)
                _measure_way(cases, measured, size.steps, device, way, table)

            cases.run(way.name(spec), case, expected)
        del table
    _compare(cases.recorder, measured, spec, bits, device)


def _measure_way(
    cases: Cases, measured: _Measured, size: StepSize, device: torch.device, way: Way, table: Table
) -> None:
    clock = cases.clock
    begun = clock()
    table.store()
    filled_at = clock()
    measured.rates[way, table.spec.rows.bit_length() - 1] = measure_steps(cases, size, device, way, table)
    assert table.seconds_to_fill is not None
    measured.fill_s_per_byte = max(measured.fill_s_per_byte, (filled_at - begun) / table.bytes)
    measured.steps_s = clock() - filled_at


def _compare(
    recorder: Recorder, measured: _Measured, spec: TableSpec, bits: int, device: torch.device
) -> None:
    """The speed of the other placements over that of the table on the device."""
    for (way, way_bits), rate in measured.rates.items():
        on_device = Way(GPU, way.precision, way.dense)
        if way_bits == bits and way.placement != GPU and (on_device, bits) in measured.rates:
            ratio = rate / measured.rates[on_device, bits]
            recorder.add("speed over a table on the device", "ratio", [ratio], **way.case(spec))
    both = [bits for way, bits in measured.rates if way == Way(HOST) and (Way(GPU), bits) in measured.rates]
    if device.type != "cuda":
        recorder.missing(RATIO, _NO_GPU)
    elif both:
        recorder.ratio(RATIO, measured.rates[Way(HOST), max(both)] / measured.rates[Way(GPU), max(both)])


def _set_ratios(recorder: Recorder, device: torch.device) -> None:
    """Those of the worst kernel and of the worst way to train. Of a kernel's floors the longest counts."""
    run = recorder.so_far()
    shares: dict[object, float] = {}
    for found in run.find("share of the floor"):
        if found.case["floor"] != FLOAT32:  # tensor cores make a selection's products
            kernel = found.case["kernel"]
            shares[kernel] = max(shares.get(kernel, 0.0), found.median)
    waits: Counter[object] = Counter()
    for found in run.find("waits"):
        if found.case["kind"] != ONE_COPY:
            waits[found.case["placement"], found.case["rows"]] += int(found.median)
    if device.type == "cuda" and shares:
        recorder.ratio(SHARE, min(shares.values()))
    if device.type == "cuda" and run.find("waits"):
        recorder.ratio(WAITS, max(waits.values()))


# ---- room --------------------------------------------------------------------------------------------------------


def spec_with_room(bits: int, dim: int, room: float) -> TableSpec:
    """A table of 2**bits rows: float32 with Adam, or else what `room` bytes suffice for; see the module."""
    rowwise_adam = OptimizerSpec("rowwise_adam", betas=VALUES.betas, eps=VALUES.eps)
    wide = TableSpec("memory", 1 << bits, dim, optimizer=VALUES)
    half = TableSpec("memory", 1 << bits, dim, dtype="bfloat16", optimizer=rowwise_adam)
    for spec in (wide, half):
        if sum(part_bytes(spec, Placement.even(1), 0)) <= room:
            return spec
    return replace(half, optimizer=OptimizerSpec("rowwise_adagrad"))


def room_on_host(host_bytes: int | None) -> float:
    """Bytes that a table may take of the host's memory, which Linux tells, or which are `host_bytes` in all."""
    gc.collect()  # what was measured before, which holds itself in circles
    free = available_bytes() if host_bytes is None else host_bytes - resident_bytes(os.getpid())
    return _SHARE_OF_ROOM * free


def _check_room(
    table: Table, device: torch.device, host_bytes: int | None, *, on_device: bool, filled: bool
) -> None:
    """Raises MemoryError if a table that is yet to be filled does not fit. One on the device lies on the host once more."""
    if filled:
        return
    rooms = {"the host": room_on_host(host_bytes)}
    if on_device and device.type == "cuda":
        torch.cuda.empty_cache()
        rooms["the device"] = _SHARE_OF_ROOM * torch.cuda.mem_get_info(device)[0]
    for place, room in rooms.items():
        if table.bytes > room:
            raise MemoryError(
                f"it takes {table.bytes / 1e9:.0f} GB, and {place} has {room / 1e9:.0f} GB for it"
            )
