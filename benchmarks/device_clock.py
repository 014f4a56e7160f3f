"""Seconds of work on a device, by wall clock, the device waited for at both ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def wait_for(device: torch.device) -> None:
    """Wait for all that a device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_on(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds from the call to the end of all that it has begun on the device."""
    wait_for(device)
    begun = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - begun


@contextmanager
def timed_part(device: torch.device, parts: dict[str, list[float]], name: str) -> Iterator[None]:
    """Add the seconds of one part of a step, up to the end of what it has begun on the device."""
    wait_for(device)
    begun = time.perf_counter()
    yield
    wait_for(device)
    parts.setdefault(name, []).append(time.perf_counter() - begun)
