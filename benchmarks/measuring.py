"""Paired timing: the actions that are compared run in turn (A B A B ...), so a busy moment hits all of them.

A sample is the mean of as many calls as fill `SAMPLE_S`. Sample r of one action and sample r of another are
neighbours in time; ratios are formed between neighbours, and only then is their median taken.

The first call after another action finds the caches, and the tables by which the processor finds pages, full of the
other's. Of a slow action that is a small part of a sample, of a quick one much; `equally_long` samples are fair to both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

SAMPLE_S = 0.05
_SLOW_S = 0.3  # a first call slower than this is not repeated just to know its time

Samples = NDArray[np.float64]
Clock = Callable[[], float]


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def paired_seconds(
    actions: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    slow: bool = False,
    equally_long: bool = False,
    clock: Clock = time.perf_counter,
) -> dict[str, Samples]:
    """Seconds per call of every action, `[repeats]` each; sample r of all actions was taken in round r.

    Every action runs at least once before it is measured; with `slow`, the caller has seen to that, and every
    sample is one call. With `equally_long`, a sample lasts as long as a call of the slowest action. The rounds begin
    with another action each time. With `time.process_time` as the clock, it is seconds of processors, of all threads
    together.
    """
    calls = dict.fromkeys(actions, 1) if slow else _calls_per_sample(actions, equally_long)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_sample(actions[name], calls[name], clock))
    return {name: np.array(samples) for name, samples in seconds.items()}


def _calls_per_sample(actions: Mapping[str, Callable[[], object]], equally_long: bool) -> dict[str, int]:
    durations = {name: _duration(action) for name, action in actions.items()}
    sample = max(SAMPLE_S, *durations.values()) if equally_long else SAMPLE_S
    return {name: max(1, int(sample / max(duration, 1e-9))) for name, duration in durations.items()}


def _duration(action: Callable[[], object]) -> float:
    first = seconds_of(action)
    return first if first >= _SLOW_S else seconds_of(action)


def _sample(action: Callable[[], object], calls: int, clock: Clock) -> float:
    begun = clock()
    for _ in range(calls):
        action()
    return (clock() - begun) / calls
