"""Every metric there is, read off the registries; docs/metrics.md is made of it.

python -m service.metrics_reference > docs/metrics.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from memory_store.metric_registry import SERIES_MAX, TABLES_NAMED_MAX
from memory_store.shard_metrics import ShardMetrics
from service.jobs.service_metrics import Observed, ServiceMetrics
from workers.job_metrics import JobMetrics
from workers.run_folder import RunFolder
from workers.trainer_metrics import TrainerMetrics, in_place_metrics

# What Prometheus puts to every series: who was scraped. The service's /targets says so, or the file of a process.
TARGET_LABELS = ("job", "instance", "job_id", "tenant", "process", "index")


@dataclass(frozen=True)
class Family:
    """A metric of a kind of process. `labels` are its own, besides those of the target."""

    process: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (f"{self.name}_total",) if self.kind == "counter" else (self.name,)

    def sample_labels(self, sample: str) -> tuple[str, ...]:
        """The labels of one of its series."""
        return (*self.labels, "le") if sample.endswith("_bucket") else self.labels


def registries() -> Mapping[str, CollectorRegistry]:
    """A registry of each kind of process, as empty as that is at its start."""
    trainer = TrainerMetrics()
    in_place_metrics(trainer)
    nothing = Observed(dict, list, Path(), lambda: False)
    return {
        "shard": ShardMetrics().registry,
        "trainer": trainer.registry,
        "driver": JobMetrics(0, RunFolder(Path())).registry,
        "service": ServiceMetrics(nothing).registry,
    }


def families() -> list[Family]:
    """All metrics whose names begin with `pkm_`, in the order in which they are defined."""
    return [
        Family(process, metric.name, metric.type, labels, metric.documentation)
        for process, registry in registries().items()
        for metric, labels in _described(registry)
    ]


def _described(registry: CollectorRegistry) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    # prometheus_client tells the label names of a metric without samples to nobody who asks politely.
    for collector in registry._collector_to_names:
        if not isinstance(collector, ProcessCollector):
            for metric in collector.describe():  # type: ignore[attr-defined]
                labels: tuple[str, ...] = getattr(collector, "_labelnames", ()) or getattr(
                    metric, "_labelnames", ()
                )
                yield metric, tuple(labels)


def page() -> str:
    """docs/metrics.md."""
    lines = _HEAD.format(series=SERIES_MAX, tables=TABLES_NAMED_MAX).splitlines()
    process = ""
    for family in families():
        if family.process != process:
            process = family.process
            lines += [
                "",
                f"## {_TITLES[process]}",
                "",
                "| metric | type | labels | what it says |",
                "|---|---|---|---|",
            ]
        name = family.samples[0] if family.kind == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{name}` | {family.kind} | {labels} | {family.meaning} |")
    return "\n".join(lines) + "\n"


_TITLES = {
    "shard": "Shards",
    "trainer": "Trainers",
    "driver": "The driver of a job",
    "service": "The service",
}

_HEAD = """\
# Metrics

Made by `python -m service.metrics_reference`; don't edit it.

Every process serves `GET /metrics` in the format of Prometheus: shards, trainers, the driver of each job, and the service.
With `store.carrier: in_process` the driver is trainer and shards too, and has the metrics of all three at its port.

**With a service**: `pkm serve --metrics-port 7072` serves the service's own metrics, and at `GET /targets` where the
processes of all running jobs are (HTTP service discovery), with the labels `job_id`, `tenant`, `process` and `index`.
Both need the token in `scrape/token` of the service's folder, as every process of its jobs does; those answer over HTTPS
alone, with certificates of the authorities in `scrape/authorities.pem`, all for the name `metrics.pkm`. So is
`deploy/prometheus/prometheus.yml` set up. The service's port has TLS if the service has (`--certificate`, `--key`).

**Without one**: the processes of `pkm train` answer this machine alone, without a token. Where they are stands in
`RUN/scrape/*.json`, which Prometheus reads with `file_sd_configs`.

Alerts are in `deploy/prometheus/alerts.yml`, each with a page in `docs/runbooks/`; dashboards for Grafana in
`deploy/grafana/`.

Besides the following, every process has `process_cpu_seconds_total`, `process_resident_memory_bytes`,
`process_start_time_seconds` and the others of prometheus_client. A shard has at most {series} series: of its tables the first
{tables} are named, further ones share the label `table="other"`."""


if __name__ == "__main__":
    print(page(), end="")
