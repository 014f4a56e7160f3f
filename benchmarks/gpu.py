"""The `gpu` benchmark: tokens/s by placement of the table and by its size, and the kernels against their floors.

A kernel's rate is its floor's bytes over its time, beside the rate of a copy on the same device. A step is that of
benchmarks/training_steps.py, by wall clock, the device waited for at both ends; of its parts, each waited for, the sum is
more than the step. Also counted: the calls of a step that wait for the device (torch.cuda.set_sync_debug_mode), and of the
cache the share of different rows that it held. Peers of the kernels are EmbeddingBag, FBGEMM where it is installed, and the
selection that writes all scores.

Without a GPU there are no figures. `--device cpu --quick` runs all of it at tiny sizes on the CPU, only to show that it
works.
"""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bags import FbgemmRowwiseAdagrad, fbgemm_bag
from benchmarks.machine import available_bytes
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.training_steps import LEARNING_RATE, VALUES, Batch, TrainedModel
from memory_store.client import StoreClient
from memory_store.errors import UsageError
from memory_store.opening import in_process_store
from memory_store.placement import Placement
from memory_store.table import part_bytes
from memory_store.table_handle import TableHandle
from memory_store.table_spec import TableSpec
from workers.compiled_blocks import compile_blocks
from workers.gpu import pooling, row_update, selection
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.job_spec import MemorySpec, ModelSpec
from workers.transformer import Transformer

HOST, CACHED, GPU = "host", "cached", "gpu"
_SHARE_OF_ROOM = 0.9  # the model and its activations need some too
COMPILED = "host, compiled"


_Action = tuple[int, Callable[[], object]]  # the bytes that it must move, and the work


@dataclass(frozen=True)
class GpuSize:
    """The model, the batch, the tables (powers of two of rows), and how often each is measured."""

    dim: int
    layers: int
    vocabulary_size: int
    sequences: int
    sequence_length: int
    table_bits: tuple[int, ...]
    gpu_bits_max: int
    cached_rows: int
    copy_bytes: int
    repeats: int
    steps: int


FULL = GpuSize(512, 8, 32_000, 32, 512, (16, 18, 20, 22, 24, 26), 24, 1 << 16, 1 << 30, 20, 20)
QUICK = GpuSize(512, 8, 32_000, 32, 512, (16, 20), 20, 1 << 16, 1 << 30, 5, 5)
TINY = GpuSize(32, 2, 300, 2, 32, (10,), 10, 200, 1 << 20, 1, 22)  # past the cache's first two choices


def run(size: GpuSize, *, quick: bool, device_name: str = "cuda") -> BenchmarkRun:
    """Measure kernels, then steps. Raises UsageError where the device is missing."""
    if device_name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "This machine has no GPU, so there is nothing to measure; --device cpu --quick shows that the benchmark works."
        )
    device = torch.device(device_name)
    if device.type == "cpu":
        size = TINY
    recorder = Recorder("gpu", quick=quick)
    _measure_kernels(recorder, size, device)
    rates: dict[tuple[str, int], float] = {}
    for bits in size.table_bits:
        for placement in (GPU, CACHED, HOST):
            if (placement != GPU or bits <= size.gpu_bits_max) and _has_room(size, device, placement, bits):
                rates[placement, bits] = _measure_steps(recorder, size, device, placement, bits)
    largest = max(bits for placement, bits in rates if placement == HOST)
    if device.type == "cuda":  # for a CPU it takes longer than all the rest
        _measure_steps(recorder, size, device, COMPILED, largest)
    both = max(bits for placement, bits in rates if placement == GPU)
    if device.type == "cuda":
        recorder.ratio("host_over_gpu_table", rates[HOST, both] / rates[GPU, both])
    else:
        recorder.missing("host_over_gpu_table", "there is no GPU here")
    return recorder.finish()


# ---- kernels -----------------------------------------------------------------------------------------------------


def _measure_kernels(recorder: Recorder, size: GpuSize, device: torch.device) -> None:
    tokens, entries, n, width, k, heads = size.sequences * size.sequence_length, 128, 512, 64, 32, 4
    if device.type == "cpu":
        entries, n, width, k = 8, 32, 8, 4
    rows = 1 << min(size.gpu_bits_max, 20)
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    source = drawn(size.copy_bytes // 4)
    target = torch.empty_like(source)
    values, weights, gradient = drawn(rows, size.dim), drawn(tokens, entries), drawn(tokens, size.dim)
    chosen = torch.randint(0, rows, (tokens, entries), generator=generator, device=device)
    queries, sub_keys = drawn(tokens, heads, 2, width), drawn(heads, 2, n, width)
    widths = VALUES.state_widths(size.dim)
    table = row_update.RowTensors(
        values,
        torch.zeros(rows, widths[0], device=device),
        torch.zeros(rows, widths[1], device=device),
        torch.zeros(rows, dtype=torch.int32, device=device),
    )
    bags = torch.arange(chosen.numel(), device=device) // entries
    gradients = row_update.RowGradients(chosen.flatten(), bags, weights.flatten(), gradient)
    one = torch.ones((), device=device)
    pooled = pooling.pooling_floor_bytes(tokens, entries, size.dim)
    chosen_bytes = selection.floor_bytes(tokens, heads, n, width, k)
    distinct = chosen.unique().numel()
    updated = row_update.floor_bytes(chosen.numel(), distinct, size.dim, sum(widths))

    def update() -> None:
        row_update.update_rows(
            VALUES, table, gradients, step=1, learning_rate=LEARNING_RATE, scale=one, seed=0
        )

    actions: dict[str, _Action] = {
        "copy": (2 * size.copy_bytes, lambda: target.copy_(source)),
        "pool": (pooled, lambda: pooling.pool(values, chosen, weights)),
        "pool: EmbeddingBag": (
            pooled,
            lambda: F.embedding_bag(chosen, values, per_sample_weights=weights, mode="sum"),
        ),
        **_fbgemm(values, chosen, weights, gradient, pooled, updated),
        "weight gradient": (pooled, lambda: pooling.weight_gradient(values, chosen, gradient)),
        "row update": (updated, update),
        "selection": (chosen_bytes, lambda: selection.select(queries, sub_keys, k)),
        "selection: all scores": (chosen_bytes, lambda: selection.select_reference(queries, sub_keys, k)),
    }
    for name, (size_bytes, action) in actions.items():
        seconds = [_seconds(action, device) for _ in range(size.repeats + 1)][1:]
        recorder.add("kernel time", "ms", [1e3 * second for second in seconds], kernel=name)
        recorder.add("kernel rate", "GB/s", [size_bytes / second / 1e9 for second in seconds], kernel=name)


def _fbgemm(
    values: Tensor, chosen: Tensor, weights: Tensor, gradient: Tensor, pooled: int, updated: int
) -> dict[str, _Action]:
    """FBGEMM's table-batched embedding of the same rows: its sums, and both passes, row-wise Adagrad in the second."""
    if not FbgemmRowwiseAdagrad.installed():
        return {}
    bag = fbgemm_bag(values.shape[0], values.shape[1], values.device)
    bag.split_embedding_weights()[0].copy_(values)
    offsets = torch.arange(0, chosen.numel() + 1, chosen.shape[1], device=values.device)
    rows, entry_weights = chosen.flatten(), weights.flatten()

    def both_passes() -> None:
        bag(rows, offsets, per_sample_weights=entry_weights).backward(gradient)

    def sums() -> None:
        with torch.no_grad():
            bag(rows, offsets, per_sample_weights=entry_weights)

    return {
        "pool: FBGEMM": (pooled, sums),
        "pool and row-wise update: FBGEMM": (pooled + updated, both_passes),
    }


# ---- steps -------------------------------------------------------------------------------------------------------


def _has_room(size: GpuSize, device: torch.device, placement: str, bits: int) -> bool:
    """Whether a table of 2**bits rows fits; if not, it is told. One on the device lies on the host once more."""
    gc.collect()  # what was measured before, which holds itself in circles
    room = available_bytes()
    if placement == GPU and device.type == "cuda":
        torch.cuda.empty_cache()
        room = min(room, torch.cuda.mem_get_info(device)[0])
    wanted = sum(part_bytes(TableSpec("memory", 1 << bits, size.dim, optimizer=VALUES), Placement.even(1), 0))
    if wanted > _SHARE_OF_ROOM * room:
        print(
            f"A table of 2^{bits} rows, placement {placement}, takes {wanted / 1e9:.0f} GB of {room / 1e9:.0f} GB: left out.",
            file=sys.stderr,
        )
        return False
    return True


def _measure_steps(
    recorder: Recorder, size: GpuSize, device: torch.device, placement: str, bits: int
) -> float:
    """Median tokens/s of training steps with a table of 2**bits rows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    spec = TableSpec("memory", 1 << bits, size.dim, optimizer=VALUES)
    store: StoreClient
    store = DeviceStore([spec], device) if placement == GPU else in_process_store([spec])
    table: TableHandle = store.table("memory")
    if placement == CACHED:
        table = CachedTable(store, spec, size.cached_rows, device)
    model = Transformer(
        ModelSpec(layers=size.layers, dim=size.dim, heads=4),
        MemorySpec(layers=(2,), sub_keys=1 << bits // 2, heads=4, k=min(32, 1 << bits // 2)),
        size.vocabulary_size,
        {"memory": table},
        0,
    ).to(device)

    def apply() -> None:
        store.step({"memory": LEARNING_RATE})

    compiled = placement == COMPILED
    if compiled:
        compile_blocks(model, device)
    trained = TrainedModel(
        model, list(model.parameters()), apply, store.synchronise, keeps_gradients=compiled
    )
    lengths = (size.sequences, size.sequence_length, size.vocabulary_size)
    drawn = [Batch.drawn(*lengths, seed) for seed in range(4)]
    batches = [Batch(batch.tokens.to(device), batch.targets.to(device)) for batch in drawn]
    for batch in batches[:2]:
        trained.step(batch)
    seconds = [
        _seconds(lambda batch=batches[step % 4]: trained.step(batch), device) for step in range(size.steps)
    ]
    trained.settle()
    case = {"placement": placement, "rows": f"2^{bits}"}
    parts: dict[str, list[float]] = {}
    for step in range(size.repeats):
        trained.step(batches[step % 4], partial(_timed, device, parts))
    for name, taken in parts.items():
        recorder.add("part of a step", "ms", [1e3 * second for second in taken], part=name, **case)
    tokens = size.sequences * size.sequence_length
    recorder.add("step", "ms", [1e3 * second for second in seconds], **case)
    rate = recorder.add("training rate", "tokens/s", [tokens / second for second in seconds], **case)
    if isinstance(table, CachedTable):
        recorder.add("hit rate", "share", [table.cache.found / table.cache.looked_up], **case)
    if device.type == "cuda":
        recorder.add("device memory", "GB", [torch.cuda.max_memory_allocated() / 1e9], **case)
        recorder.add("waits for the device", "calls", [_waits(lambda: trained.step(batches[0]))], **case)
    return rate.median


@contextmanager
def _timed(device: torch.device, parts: dict[str, list[float]], name: str) -> Iterator[None]:
    """Add the seconds of one part of a step, up to the end of what it has begun on the device."""
    _wait(device)
    begun = time.perf_counter()
    yield
    _wait(device)
    parts.setdefault(name, []).append(time.perf_counter() - begun)


def _waits(action: Callable[[], object]) -> float:
    """How many of the calls of `action` wait for the device."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return float(sum("synchroniz" in str(warning.message) for warning in told))


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from the call to the end of all that it has begun on the device."""
    _wait(device)
    begun = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
