"""How often the host waits for a GPU in a piece of work, read off the calls of CUDA that torch's profiler has seen.

Waiting for the end of one copy, by its event, is what a step must do to read numbers. Waiting for a stream or for the whole
device, copying from or to memory that is not page-locked, and taking or giving back memory of the driver make the host
wait for all that the device was given before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

ONE_COPY, EVERYTHING, MEMORY = (
    "for one copy, by its event",
    "for a stream or the device",
    "copies and allocations that block",
)
KINDS = (ONE_COPY, EVERYTHING, MEMORY)
WORK = "counted for waits"

_SYNCHRONISES = re.compile(r"cu(da)?\w*Synchronize")
_BLOCKS = re.compile(
    r"cu(da)?(Memcpy|Malloc|MemAlloc|Free|MemFree|HostAlloc|HostRegister)(?!\w*Async)|Memcpy.*Pageable"
)


class ProfiledEvent(Protocol):
    """What is read of the profiler's events: times in microseconds, the same clock for hosts and devices."""

    name: str
    time_range: Any
    device_type: Any


def waits_in(events: Iterable[ProfiledEvent]) -> dict[str, int]:
    """The calls by kind (KINDS) of the work that was recorded as WORK. Raises ValueError if none was.

    Calls of the host count while the work goes on, in all threads; copies on the device from its beginning on.
    """
    events = list(events)
    ranges = [event.time_range for event in events if event.name == WORK and _on_host(event)]
    if len(ranges) != 1:
        raise ValueError(f"The profiler saw the work {len(ranges)} times, where once is expected.")
    (work,) = ranges
    kinds = Counter(
        kind
        for event in events
        if work.start <= event.time_range.start
        and (event.time_range.start <= work.end or not _on_host(event))
        and (kind := _kind(event.name))
    )
    return {kind: kinds[kind] for kind in KINDS}


def _on_host(event: ProfiledEvent) -> bool:
    return bool(event.device_type == torch.autograd.DeviceType.CPU)


def _kind(call: str) -> str | None:
    if _SYNCHRONISES.match(call):
        return ONE_COPY if "Event" in call else EVERYTHING
    return MEMORY if _BLOCKS.match(call) else None


def count_waits(work: Callable[[], object], device: torch.device) -> dict[str, int]:
    """The calls by kind in the second of two runs of `work`: in the first the profiler itself is new."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize()
        with record_function(WORK):
            work()
    return waits_in(profiler.events() or [])
