"""The metrics of a job as a whole, by its driver's process: where it is, what has happened, its cuts, and its disk.

What stands in the run's folder is read when Prometheus asks. So nothing is lost when the driver is started again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from memory_store.cuts import complete_cuts, cut_step, read_manifest
from memory_store.errors import PkmError
from memory_store.metric_registry import new_registry
from workers.events import EventKind, read_events
from workers.report import Progress
from workers.run_folder import RunFolder

PHASES = ("waiting", "starting", "training", "evaluating", "recovering")

_log = logging.getLogger(__name__)


class JobMetrics:
    """Of the job that is trained in `run`, for `steps` steps."""

    def __init__(self, steps: int, run: RunFolder, registry: CollectorRegistry | None = None) -> None:
        registry = self.registry = registry or new_registry()
        self._phase = Gauge(
            "pkm_job_phase", "1 for the phase the job is in, 0 for the others.", ("phase",), registry=registry
        )
        self._step = Gauge("pkm_job_step", "The last finished step that is known.", registry=registry)
        self._steps = Gauge("pkm_job_steps", "Steps the job is to make.", registry=registry)
        self._seconds_left = Gauge(
            "pkm_job_left_seconds", "Time until the last step, as it looks now.", registry=registry
        )
        self.shard_restarts = Counter(
            "pkm_job_shard_restarts",
            "Shards that were started again since this driver was started.",
            registry=registry,
        )
        self._steps.set(steps)
        for phase in PHASES:
            self._phase.labels(phase).set(0)
        registry.register(_RunCollector(run))

    def progressed(self, progress: Progress) -> None:
        """The job has got on."""
        for phase in PHASES:
            self._phase.labels(phase).set(phase == progress.phase)
        self._step.set(progress.step)
        if progress.seconds_left is not None:
            self._seconds_left.set(progress.seconds_left)


class _RunCollector(Collector):
    """What the files of a run tell."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def _families(self) -> tuple[CounterMetricFamily | GaugeMetricFamily, ...]:
        return (
            CounterMetricFamily(
                "pkm_job_events",
                "What has happened to the run since it was begun (events.jsonl), by kind.",
                labels=("kind",),
            ),
            GaugeMetricFamily("pkm_cut_timestamp_seconds", "When the last complete cut was written."),
            GaugeMetricFamily("pkm_cut_step", "The step of the last complete cut."),
            GaugeMetricFamily("pkm_cut_bytes", "Size of the last complete cut."),
            GaugeMetricFamily("pkm_job_disk_free_bytes", "Room left where the run is kept."),
            GaugeMetricFamily("pkm_job_disk_bytes", "Size of the file system where the run is kept."),
        )

    def collect(self) -> Iterator[Metric]:
        events, cut_time, cut_at, cut_bytes, free, total = self._families()
        try:
            happened = [event.kind for event in read_events(self._run.events_path)]
            for kind in get_args(EventKind):
                events.add_metric((kind,), happened.count(kind))
            cuts = complete_cuts(self._run.cuts_path)
            if cuts:
                manifest = read_manifest(cuts[-1])
                cut_time.add_metric((), cuts[-1].stat().st_mtime)
                cut_at.add_metric((), cut_step(cuts[-1]))
                cut_bytes.add_metric((), sum(file.size for file in manifest.files))
            disk = shutil.disk_usage(self._run.path)
            free.add_metric((), disk.free)
            total.add_metric((), disk.total)
        except (OSError, PkmError) as error:  # a cut is removed while it is read, or the run is
            _log.warning("not all of the run could be read for its metrics: %s", error)
        yield from (events, cut_time, cut_at, cut_bytes, free, total)
