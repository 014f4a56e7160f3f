"""Timing for a plan's calibration."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

REPEATS_MAX = 7
CORES = len(os.sched_getaffinity(0))


class Stopwatch:
    """Seconds of actions, by name; a name's first sample is its warm-up, and doesn't count."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    def time(self, name: str, action: Callable[[], object]) -> None:
        """Run `action` once."""
        begun = time.perf_counter()
        action()
        self._samples.setdefault(name, []).append(time.perf_counter() - begun)

    def seconds(self, name: str) -> float:
        """The lower quartile: what others do on this machine only ever makes a sample slower."""
        return float(np.percentile(self._samples[name][1:] or self._samples[name], 25))


def repeat(action: Callable[[], object], budget_s: float) -> None:
    """Run `action` at least twice, then until the budget is spent, at most `REPEATS_MAX` times."""
    begun = time.perf_counter()
    for count in range(REPEATS_MAX):
        if count >= 2 and time.perf_counter() - begun > budget_s:
            return
        action()
