"""The live view of a job of a service: its state, how far it is, the curve of its loss, and how its memory is used.

On a terminal it stays in place; elsewhere a line is printed for each state, and now and then one for the figures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.progress import ProgressDisplay, duration

if TYPE_CHECKING:
    from service.client import JobUpdate
    from workers.report import StepRecord
    from workers.shard_load import ShardLoad

CURVE_COLUMNS = 60
_BLOCKS = "▁▂▃▄▅▆▇█"
_METRICS_EVERY_S = 1.0
_KEPT_STEPS = 100_000


class JobView:
    """Shows the updates of a job on `console`; `metrics` gives the figures of the steps after one."""

    def __init__(self, console: Console, metrics: Callable[[int], Iterable[StepRecord]]) -> None:
        self._console, self._metrics = console, metrics
        self._records: deque[StepRecord] = deque(maxlen=_KEPT_STEPS)
        self._next_metrics = 0.0
        self._live: Live | None = None
        self._lines = ProgressDisplay(console)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, update: JobUpdate) -> None:
        """Show the newest of the job."""
        if self._live is None:
            for change in update.changes:
                self._console.print(f"{change.state}: {change.reason}", markup=False, soft_wrap=True)
            if update.progress is not None:
                self._lines.show(update.progress)
            return
        self._fetch(update)
        self._live.update(render(update, list(self._records)))

    def _fetch(self, update: JobUpdate) -> None:
        """The figures of the steps made since the last look; all of them when the job went back to a cut."""
        if time.monotonic() < self._next_metrics:
            return
        self._next_metrics = time.monotonic() + _METRICS_EVERY_S
        if update.progress is not None and self._records and update.progress.step < self._records[-1].step:
            self._records.clear()
        after = self._records[-1].step if self._records else 0
        self._records.extend(self._metrics(after))


def render(update: JobUpdate, records: Sequence[StepRecord]) -> Group:
    """The view as it is drawn."""
    job, progress = update.job, update.progress
    figures = Table.grid(padding=(0, 2))
    figures.add_row("job", f"{job.id}  {job.name}  (attempt {job.attempt})")
    figures.add_row("state", Text(f"{job.state}: {job.reason}"))
    parts: list[object] = [figures]
    if progress is not None:
        figures.add_row("step", f"{progress.step} of {progress.steps}, {progress.phase}")
        if progress.tokens_per_second is not None:
            figures.add_row("speed", f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.seconds_left is not None:
            figures.add_row("left", duration(progress.seconds_left))
        if progress.memory_usage is not None:
            figures.add_row("memory usage", f"{progress.memory_usage:.0%} of the rows lately")
        figures.add_row("", ProgressBar(total=progress.steps, completed=progress.step, width=CURVE_COLUMNS))
    validated = next((record for record in reversed(records) if record.validation_perplexity), None)
    if validated is not None:
        kl = "" if validated.validation_kl is None else f", KL to uniform {validated.validation_kl:.3f} nats"
        figures.add_row(
            "validation", f"perplexity {validated.validation_perplexity:.2f} at step {validated.step}{kl}"
        )
    if records:
        losses = [record.loss for record in records]
        figures.add_row("loss", f"{losses[-1]:.4f}")
        parts.append(Text(f"{curve(losses)}  {max(losses):.2f} to {min(losses):.2f}"))
    if update.shards:
        shards = Table("shard", "address", "busy cores", "calls/s", "memory", box=None, padding=(0, 2))
        for load in update.shards:
            shards.add_row(*load_cells(load))
        parts.append(shards)
    return Group(*parts)  # type: ignore[arg-type]  # rich's own union of what can be drawn


def load_cells(load: ShardLoad) -> tuple[str, str, str, str, str]:
    """A line of a table of shards."""
    return (
        str(load.shard), load.address, f"{load.busy_cores:.2f}", f"{load.calls_per_second:.0f}",
        f"{load.memory_bytes / 2**20:,.0f} MiB",
    )  # fmt: skip


def curve(values: Sequence[float], columns: int = CURVE_COLUMNS) -> str:
    """A line of blocks, each as high as the mean of the values in its part; those that are not finite are left out."""
    finite = [value for value in values if value - value == 0]
    if not finite:
        return ""
    count = min(columns, len(finite))
    edges = [len(finite) * column // count for column in range(count + 1)]
    means = [sum(finite[begin:end]) / (end - begin) for begin, end in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
