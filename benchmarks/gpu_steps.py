"""Training steps with the table in the host's shards, there with copies of the hottest rows on the device, or on the device.

A step is that of benchmarks/training_steps.py, by wall clock, the device waited for at both ends; of its parts, each waited
for, the sum is more than the step. Also recorded: memory of the device and of the host, how often a step waits for the device
(device_waits.py, and torch.cuda.set_sync_debug_mode beside it), and of copies the share of different rows that had one.

All ways of one placement read one table, as a large one takes long to fill: it is what the way before has left. The shards
are in the trainer's process, as with `store.carrier: in_process`: what shards in processes of their own cost besides is the
business of the benchmark `step`. With look-ahead the query of the memory is taken half of the layers before its answer is
needed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.cases import Cases
from benchmarks.device_clock import seconds_on, timed_part
from benchmarks.device_waits import count_waits
from benchmarks.machine import resident_bytes
from benchmarks.training_steps import LEARNING_RATE, Batch, Part, TrainedModel, untimed
from memory_store.client import StoreClient
from memory_store.opening import in_process_store
from memory_store.placement import Placement
from memory_store.table import part_bytes
from memory_store.table_handle import TableHandle
from memory_store.table_spec import TableSpec
from workers.compiled_blocks import compile_blocks
from workers.gpu.cached_table import CachedTable
from workers.gpu.device_store import DeviceStore
from workers.job_spec import ModelSpec
from workers.memory_spec import MemorySpec
from workers.transformer import Transformer

HOST, CACHED, GPU = "host", "cached", "gpu"


@dataclass(frozen=True)
class Way:
    """How a model is trained."""

    placement: str
    precision: str = "float32"  # or "bfloat16", by autocast
    dense: str = "eager"  # or "compiled"
    look_ahead: bool = False

    def case(self, spec: TableSpec) -> dict[str, str | int]:
        """What tells its measurements from others: what is not the default is named."""
        chosen = [self.placement, *[self.precision] * (self.precision != "float32")]
        chosen += [self.dense] * (self.dense != "eager") + ["look-ahead"] * self.look_ahead
        rows = f"2^{spec.rows.bit_length() - 1}"
        return {
            "placement": ", ".join(chosen),
            "rows": rows if spec.dtype == "float32" else f"{rows}, {spec.dtype}, {spec.optimizer.kind}",
        }

    def name(self, spec: TableSpec) -> str:
        """The case in words."""
        return "steps " + " ".join(f"{key}={value}" for key, value in self.case(spec).items())


@dataclass(frozen=True)
class StepSize:
    """The model, the batch of B x L tokens, rows with a copy, and how many steps and steps in parts are measured."""

    dim: int
    layers: int
    vocabulary_size: int
    sequences: int
    sequence_length: int
    cached_rows: int
    steps: int
    steps_in_parts: int


class Table:
    """The table of `spec` in the host's memory or on the device, filled when it is first asked for."""

    def __init__(self, spec: TableSpec, device: torch.device, *, on_device: bool) -> None:
        self.spec, self._device, self._on_device = spec, device, on_device
        self.bytes = sum(part_bytes(spec, Placement.even(1), 0))
        self.seconds_to_fill: float | None = None
        self._store: StoreClient | None = None

    def store(self) -> StoreClient:
        """The store, this process its only writer."""
        if self._store is None:
            begun = time.perf_counter()
            made = (
                DeviceStore([self.spec], self._device) if self._on_device else in_process_store([self.spec])
            )
            self._store, self.seconds_to_fill = made, time.perf_counter() - begun
        return self._store


def measure_steps(cases: Cases, size: StepSize, device: torch.device, way: Way, table: Table) -> float:
    """Record one way of training; its median tokens/s."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    store, spec, recorder, case = table.store(), table.spec, cases.recorder, way.case(table.spec)
    handle: TableHandle = store.table(spec.name)
    if way.placement == CACHED:
        handle = CachedTable(store, spec, size.cached_rows, device)
    trained = _model(size, device, way, store, handle)
    drawn = [
        Batch.drawn(size.sequences, size.sequence_length, size.vocabulary_size, seed) for seed in range(4)
    ]

    def step(number: int, part: Part = untimed) -> None:
        trained.step(drawn[number % 4].on(device), part)

    for number in range(2):
        step(number)
    seconds = [seconds_on(device, partial(step, number)) for number in range(size.steps)]
    trained.settle()
    tokens = size.sequences * size.sequence_length
    rate = recorder.add("training rate", "tokens/s", [tokens / second for second in seconds], **case)
    recorder.add("step", "ms", [1e3 * second for second in seconds], **case)

    parts: dict[str, list[float]] = {}
    for number in range(size.steps_in_parts):
        step(number, partial(timed_part, device, parts))
    for name, taken in parts.items():
        recorder.add("part of a step", "ms", [1e3 * second for second in taken], part=name, **case)
    if isinstance(handle, CachedTable):
        recorder.add("hit rate", "share", [handle.cache.found / handle.cache.looked_up], **case)
    recorder.add("host memory", "GB", [resident_bytes(os.getpid()) / 1e9], **case)
    if device.type == "cuda":
        recorder.add("device memory", "GB", [torch.cuda.max_memory_allocated() / 1e9], **case)
        page_locked = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
        recorder.add("page-locked memory", "GB", [page_locked / 1e9], **case)
        recorder.add("waits that torch tells of", "calls", [_told_waits(partial(step, 0))], **case)
    for kind, calls in count_waits(partial(step, 0), device).items():
        recorder.add("waits", "calls", [float(calls)], kind=kind, **case)
    trained.settle()
    return rate.median


def _model(
    size: StepSize, device: torch.device, way: Way, store: StoreClient, handle: TableHandle
) -> TrainedModel:
    sub_keys = 1 << handle.rows.bit_length() // 2
    model = Transformer(
        ModelSpec(layers=size.layers, dim=size.dim, heads=4),
        MemorySpec(
            layers=(size.layers // 2 + 1,),
            sub_keys=sub_keys,
            heads=4,
            k=min(32, sub_keys),
            look_ahead=size.layers // 2 if way.look_ahead else 0,
        ),
        size.vocabulary_size,
        {handle.name: handle},
        0,
    ).to(device)
    compiled = way.dense == "compiled"
    if compiled:
        compile_blocks(model, device)

    def apply() -> None:
        store.step({handle.name: LEARNING_RATE})

    return TrainedModel(
        model,
        list(model.parameters()),
        apply,
        store.synchronise,
        keeps_gradients=compiled,
        precision=partial(
            torch.autocast, device.type, dtype=torch.bfloat16, enabled=way.precision == "bfloat16"
        ),
    )


def _told_waits(action: Callable[[], object]) -> float:
    """How many operations of `action` torch itself says wait for the device; waits by an event are not among them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return float(sum("synchroniz" in str(warning.message) for warning in told))
