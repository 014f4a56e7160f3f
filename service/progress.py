"""The live display of a training run: a bar with figures on a terminal, now and then a plain line elsewhere.

It only shows what it is told, so that the same display serves a run here and one that is watched from
afar. Colours follow NO_COLOR, as `rich` does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from workers.report import Progress

PLAIN_LINE_SECONDS = 10.0


class ProgressDisplay:
    """Shows the `Progress` of a run on `console`. A context manager: the terminal is always given back."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last_phase = ""
        self._next_line = -math.inf
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                expand=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show the newest state of the run."""
        if progress.news:
            self._console.print(progress.news, soft_wrap=True, markup=False, highlight=False)
        if self._bar:
            self._move(self._bar, progress)
        elif self._is_due(progress):
            line = [progress.phase, f"step {progress.step}/{progress.steps}", *_figures(progress)]
            self._console.print("  ".join(line), soft_wrap=True, markup=False, highlight=False)

    def _move(self, bar: Bar, progress: Progress) -> None:
        figures = "  ".join(_figures(progress))
        if self._task is None:
            self._task = bar.add_task(progress.phase, total=progress.steps, figures=figures)
        bar.update(
            self._task,
            description=progress.phase,
            completed=progress.step,
            total=progress.steps,
            figures=figures,
        )

    def _is_due(self, progress: Progress) -> bool:
        now = self._clock()
        due = now >= self._next_line or progress.phase != self._last_phase or progress.step == progress.steps
        if due:
            self._last_phase = progress.phase
            self._next_line = now + PLAIN_LINE_SECONDS
        return due


def duration(seconds: float) -> str:
    """Seconds as 0:07, 2:10 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _figures(progress: Progress) -> list[str]:
    """The figures that are known already; before the first step there are none."""
    figures = []
    if progress.loss is not None:
        figures.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        figures.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.memory_usage is not None:
        figures.append(f"memory usage {progress.memory_usage:.0%}")
    if progress.seconds_left is not None:
        figures.append(f"{duration(progress.seconds_left)} left")
    return figures
