"""How far a run is, told while it goes on: its log and its events are followed, and each new line is told of."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers.events import read_events
from workers.job_spec import JobSpec
from workers.report import Progress, last_record, last_records
from workers.run_folder import RunFolder

_POLL_S = 0.5
_RECENT_LINES = 40


@contextmanager
def progress_told(job: JobSpec, run: RunFolder, on_progress: Callable[[Progress], None]) -> Iterator[None]:
    """Follow the run's log in a thread, and tell of each new line."""
    stop = threading.Event()

    def follow() -> None:
        told = -1
        usage = None
        seen = time.time()
        over = False
        while not over:
            over = stop.wait(_POLL_S)
            for event in read_events(run.events_path, seen):
                seen = math.nextafter(event.time, math.inf)
                phase = "recovering" if event.kind in ("restart", "silent") else "training"
                on_progress(Progress(phase, event.step, job.train.steps, news=event.message))
            record = last_record(run.metrics_path)
            if record is None or record.step == told:
                continue
            recent = last_records(run.metrics_path, _RECENT_LINES)
            usage = next(
                (line.memory_usage for line in reversed(recent) if line.memory_usage is not None), usage
            )
            rate = sorted(line.tokens_per_second for line in recent)[len(recent) // 2]
            left = (job.train.steps - record.step) * job.train.batch_tokens / rate
            phase = _phase(record.step, told, job.train.steps)
            told = record.step
            on_progress(Progress(phase, record.step, job.train.steps, record.loss, rate, usage, left))

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _phase(step: int, told: int, steps: int) -> str:
    if step < told:
        return "recovering"
    return "evaluating" if step == steps else "training"
