"""The metrics of a service: its jobs by state, its queue, the cluster, its disk and its certificate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from memory_store.metric_registry import new_registry
from service.jobs.states import JobState


@dataclass(frozen=True)
class Observed:
    """What a service's metrics are about: how many jobs are in each state, since when each queued one has waited, the folder
    of the service, whether the Ray cluster has answered when it was last asked, and the service's certificate (PEM)."""

    count: Callable[[], Mapping[JobState, int]]
    queued_since: Callable[[], Sequence[float]]
    folder: Path
    reaches_cluster: Callable[[], bool]
    certificate: bytes = b""


class ServiceMetrics:
    """Of one service, which is asked whenever Prometheus asks."""

    def __init__(self, observed: Observed, registry: CollectorRegistry | None = None) -> None:
        registry = self.registry = registry or new_registry()
        self.cluster_up = Gauge(
            "pkm_service_cluster_up",
            "1 if the Ray cluster has answered when it was last asked, else 0.",
            registry=registry,
        )
        self.cluster_up.set_function(lambda: float(observed.reaches_cluster()))
        self.certificate_expiry = Gauge(
            "pkm_service_certificate_expiry_timestamp_seconds",
            "When the certificate of the service's ports ends to be valid; 0 without TLS.",
            registry=registry,
        )
        if observed.certificate:
            ends = x509.load_pem_x509_certificate(observed.certificate).not_valid_after_utc
            self.certificate_expiry.set(ends.timestamp())
        registry.register(_JobsCollector(observed))


class _JobsCollector(Collector):
    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily("pkm_service_jobs", "Jobs there are, by state.", labels=("state",)),
            GaugeMetricFamily("pkm_service_queue_length", "Jobs that wait for their turn."),
            GaugeMetricFamily(
                "pkm_service_queue_oldest_seconds", "How long the job has waited that is queued longest."
            ),
            GaugeMetricFamily("pkm_service_disk_free_bytes", "Room left where the service keeps its files."),
            GaugeMetricFamily("pkm_service_disk_bytes", "Size of the file system of the service's files."),
        )

    def collect(self) -> Iterator[Metric]:
        jobs, length, oldest, free, total = self._families()
        counts = self._observed.count()
        for state, count in counts.items():
            jobs.add_metric((state.value,), count)
        length.add_metric((), counts.get(JobState.QUEUED, 0))
        queued_since = self._observed.queued_since()
        oldest.add_metric((), max(0.0, time.time() - min(queued_since)) if queued_since else 0.0)
        disk = shutil.disk_usage(self._observed.folder)
        free.add_metric((), disk.free)
        total.add_metric((), disk.total)
        yield from (jobs, length, oldest, free, total)
