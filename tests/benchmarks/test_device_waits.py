"""Calls that wait for a GPU are counted by kind, made-up events of the profiler standing in for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from benchmarks.device_waits import EVERYTHING, MEMORY, ONE_COPY, WORK, count_waits, waits_in

CPU, CUDA = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA


class Range(NamedTuple):
    start: float
    end: float


@dataclass
class Event:
    name: str
    time_range: Range
    device_type: torch.autograd.DeviceType


def event(name: str, start: float, end: float | None = None, on: torch.autograd.DeviceType = CPU) -> Event:
    return Event(name, Range(start, start + 1 if end is None else end), on)


THE_WORK = event(WORK, 100, 200)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("cudaEventSynchronize", ONE_COPY),
        ("cuEventSynchronize", ONE_COPY),
        ("cudaStreamSynchronize", EVERYTHING),
        ("cudaDeviceSynchronize", EVERYTHING),
        ("cuStreamSynchronize", EVERYTHING),
        ("cuCtxSynchronize", EVERYTHING),
        ("cudaMemcpy", MEMORY),
        ("cudaMemcpy2D", MEMORY),
        ("cuMemcpyDtoH_v2", MEMORY),
        ("cudaMalloc", MEMORY),
        ("cudaFree", MEMORY),
        ("cudaFreeHost", MEMORY),
        ("cudaHostAlloc", MEMORY),
        ("cudaMemcpyAsync", None),
        ("cuMemcpyDtoHAsync_v2", None),
        ("cudaLaunchKernel", None),
        ("cudaEventRecord", None),
        ("cudaEventQuery", None),
        ("cudaStreamWaitEvent", None),
        ("cudaMallocAsync", None),
        ("cudaFreeAsync", None),
        ("aten::mm", None),
        ("synchronize", None),
    ],
)
def test_calls_are_told_apart(call: str, kind: str | None) -> None:
    found = waits_in([THE_WORK, event(call, 150)])
    assert found == {ONE_COPY: 0, EVERYTHING: 0, MEMORY: 0} | ({kind: 1} if kind else {})


def test_calls_count_in_the_work_alone() -> None:
    calls = [event("cudaStreamSynchronize", start) for start in (50, 99, 100, 101, 199, 201, 500)]
    assert waits_in([*calls, THE_WORK])[EVERYTHING] == 3


def test_a_copy_of_the_work_may_run_later_and_counts_where_memory_is_not_page_locked() -> None:
    copies = [
        event("Memcpy DtoH (Device -> Pageable)", 90, on=CUDA),
        event("Memcpy DtoH (Device -> Pageable)", 150, on=CUDA),
        event("Memcpy HtoD (Pageable -> Device)", 230, on=CUDA),
        event("Memcpy HtoD (Pinned -> Device)", 150, on=CUDA),
        event("Memcpy DtoD (Device -> Device)", 150, on=CUDA),
        event(WORK, 110, 250, on=CUDA),  # the profiler's note of it on the device
    ]
    assert waits_in([*copies, THE_WORK]) == {ONE_COPY: 0, EVERYTHING: 0, MEMORY: 2}


@pytest.mark.parametrize("works", [[], [THE_WORK, THE_WORK]])
def test_work_that_was_not_seen_once_has_no_count(works: list[Event]) -> None:
    with pytest.raises(ValueError, match=f"{len(works)} times"):
        waits_in([*works, event("cudaStreamSynchronize", 150)])


def test_the_profiler_sees_the_second_run_of_the_work() -> None:
    runs = []

    def work() -> None:
        runs.append(torch.ones(3) @ torch.ones(3))

    assert count_waits(work, torch.device("cpu")) == {ONE_COPY: 0, EVERYTHING: 0, MEMORY: 0}
    assert len(runs) == 2
