"""A case that fails or comes too late is named, and what was found before and after it is kept."""

from __future__ import annotations

from functools import partial

from benchmarks.cases import Cases
from benchmarks.results import BenchmarkRun, Recorder


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def names(run: BenchmarkRun) -> list[str]:
    return [measurement.name for measurement in run.measurements]


def test_a_case_that_fails_is_told_and_the_others_go_on() -> None:
    kept: list[BenchmarkRun] = []
    cases = Cases(Recorder("gpu", quick=True), 60, kept.append)

    def fail() -> None:
        cases.recorder.add("half", "ms", [1.0])
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    cases.run("one", partial(cases.recorder.add, "one", "ms", [1.0]))
    cases.run("two", fail)
    cases.run("three", partial(cases.recorder.add, "three", "ms", [1.0]))
    assert [names(run) for run in kept] == [["one"], ["one", "half"], ["one", "half", "three"]]
    assert kept[-1].missing == {"two": "RuntimeError: CUDA out of memory."}


def test_no_case_begins_that_would_end_too_late() -> None:
    clock, done = Clock(), []
    cases = Cases(Recorder("gpu", quick=True), 60, lambda run: None, clock)
    cases.run("short", partial(done.append, "short"), expected_s=60)
    clock.now += 45
    cases.run("long", partial(done.append, "long"), expected_s=16)
    cases.run("short again", partial(done.append, "short again"), expected_s=15)
    clock.now += 15
    cases.run("of unknown length", partial(done.append, "of unknown length"))
    assert done == ["short", "short again"]
    assert cases.recorder.so_far().missing == {
        "long": "no time was left: 15 s, and it takes about 16 s",
        "of unknown length": "no time was left: 0 s, and it takes about 0 s",
    }
