"""What a training step tells of its parts, to whoever traces it: to nobody, unless the job says so (step_spans.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class StepTraces:
    """Traces no step."""

    def step(self, step: int) -> AbstractContextManager[object]:
        """To be entered round the work on step number `step`, counted from 1."""
        return nullcontext()

    def part(self, name: str) -> AbstractContextManager[object]:
        """To be entered round a part of a step."""
        return nullcontext()
