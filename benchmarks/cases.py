"""Cases of a benchmark, one after the other, under a limit of time: one that fails, or for which no time is left, is named
among what is missing, and the others go on. After each, what was found so far is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.results import BenchmarkRun, Recorder

Keep = Callable[[BenchmarkRun], None]


class Cases:
    """Records with `recorder`; no case begins that is expected to end later than `limit_s` from now."""

    def __init__(
        self, recorder: Recorder, limit_s: float, keep: Keep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.recorder, self._keep, self.clock = recorder, keep, clock
        self._end = clock() + limit_s

    def run(self, name: str, case: Callable[[], object], expected_s: float = 0.0) -> None:
        """Run a case that is expected to take `expected_s`."""
        left = self._end - self.clock()
        if left < expected_s or left <= 0:
            self.recorder.missing(
                name, f"no time was left: {left:.0f} s, and it takes about {expected_s:.0f} s"
            )
        else:
            try:
                case()
            except Exception as error:  # whatever it is, the other cases are worth having
                self.recorder.missing(name, f"{type(error).__name__}: {error}".splitlines()[0])
        self._keep(self.recorder.so_far())
