"""The metrics of one trainer. Steps and tokens are its own; loss, norms and the memory's health are those of all trainers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from memory_store.lookup_metrics import LookupMetrics
from memory_store.metric_registry import LONG_SECONDS, TABLES_NAMED_MAX, added_to, new_registry
from workers.report import EvaluationReport, StepRecord

StallCause = Literal["shard", "data", "barrier"]
STEP_SECONDS = (0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class TrainerMetrics:
    """What the trainer counts. `tokens` are those of its own part of each step."""

    def __init__(self, registry: CollectorRegistry | None = None, tokens: int = 0) -> None:
        registry = self.registry = registry or new_registry()
        self._tokens = tokens
        self.steps = Counter("pkm_trainer_steps", "Steps this trainer has finished.", registry=registry)
        self.tokens = Counter("pkm_trainer_tokens", "Tokens this trainer has trained on.", registry=registry)
        self.skipped = Counter(
            "pkm_trainer_steps_skipped",
            "Steps that changed nothing, because a gradient was not finite.",
            registry=registry,
        )
        self.step = Gauge("pkm_trainer_step", "The last finished step of the run.", registry=registry)
        self.step_time = Gauge(
            "pkm_trainer_last_step_timestamp_seconds",
            "When this trainer last finished a step.",
            registry=registry,
        )
        self.step_seconds = Histogram(
            "pkm_trainer_step_seconds", "Time of a step.", buckets=STEP_SECONDS, registry=registry
        )
        self.loss = Gauge(
            "pkm_trainer_loss_nats", "Training loss of the last step, over all trainers.", registry=registry
        )
        self.gradient_norm = Gauge(
            "pkm_trainer_gradient_norm",
            "Norm of the last gradient before clipping: dense, or of the values (if they are clipped).",
            ("kind",),
            registry=registry,
        )
        self.learning_rate = Gauge(
            "pkm_trainer_learning_rate",
            "Learning rate of the last step, dense or of the values.",
            ("kind",),
            registry=registry,
        )
        self.stall_seconds = Counter(
            "pkm_trainer_stall_seconds",
            "Time this trainer stood still, by what it waited for: a shard, data, or the other trainers (barrier).",
            ("cause",),
            registry=registry,
        )
        self.perplexity = Gauge(
            "pkm_perplexity",
            "Perplexity on held-out text at the last evaluation.",
            ("split",),
            registry=registry,
        )
        self.recent_usage = Gauge(
            "pkm_memory_recent_usage_ratio",
            "Share of rows that were updated in the last 100 steps, mean over the tables (told by trainer 0).",
            registry=registry,
        )
        self.cache_hits = Gauge(
            "pkm_memory_cache_hit_ratio",
            "Share of the different rows of the last step's lookups that had a copy on this trainer's device.",
            registry=registry,
        )
        labels = ("table", "split")
        self.usage = Gauge(
            "pkm_memory_usage_ratio",
            "Share of rows with any access at the last evaluation.",
            labels,
            registry=registry,
        )
        self.kl = Gauge(
            "pkm_memory_kl_nats",
            "KL divergence of the accesses from uniform at the last evaluation.",
            labels,
            registry=registry,
        )
        self.top1 = Gauge(
            "pkm_memory_top1_share_ratio",
            "Share of the access weight on the 1 % most used rows at the last evaluation.",
            labels,
            registry=registry,
        )
        self.dead_slots = Gauge(
            "pkm_memory_dead_slots", "Rows without access at the last evaluation.", labels, registry=registry
        )
        self.table_rows = Gauge(
            "pkm_memory_slots", "Rows of a table, over all shards.", ("table",), registry=registry
        )
        self.cut_seconds = Histogram(
            "pkm_cut_seconds",
            "Time from the begin of a cut to its manifest, beside the steps (told by trainer 0).",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        for cause in get_args(StallCause):
            self.stall(cause)  # there from the start, at 0

    def stall(self, cause: StallCause) -> Callable[[], AbstractContextManager[None]]:
        """What is to be entered round every wait for `cause`."""
        counter = self.stall_seconds.labels(cause)
        return lambda: added_to(counter)

    def stepped(self, record: StepRecord) -> None:
        """A step is finished."""
        self.steps.inc()
        self.tokens.inc(self._tokens)
        self.skipped.inc(bool(record.skipped))
        self.step.set(record.step)
        self.step_time.set(time.time())
        self.step_seconds.observe(record.seconds)
        self.loss.set(record.loss)
        self.gradient_norm.labels("dense").set(record.gradient_norm)
        self.learning_rate.labels("dense").set(record.learning_rate)
        for gauge, figure in (
            (self.gradient_norm, record.values_gradient_norm),
            (self.learning_rate, record.values_learning_rate),
        ):
            if figure is not None:
                gauge.labels("values").set(figure)
        if record.memory_usage is not None:
            self.recent_usage.set(record.memory_usage)
        if record.cache_hit_rate is not None:
            self.cache_hits.set(record.cache_hit_rate)

    def evaluated(self, report: EvaluationReport) -> None:
        """An evaluation is finished."""
        if math.isfinite(report.perplexity):
            self.perplexity.labels(report.split).set(report.perplexity)
        for table, access in list(report.memory.items())[:TABLES_NAMED_MAX]:
            self.usage.labels(table, report.split).set(access.usage)
            self.kl.labels(table, report.split).set(access.kl_to_uniform)
            self.top1.labels(table, report.split).set(access.top1_share)
            self.dead_slots.labels(table, report.split).set(access.dead_slots)
            self.table_rows.labels(table).set(access.rows)


def in_place_metrics(metrics: TrainerMetrics) -> LookupMetrics:
    """The lookups that a trainer answers itself, out of the memory of shards on its host."""
    return LookupMetrics(metrics.registry, "shared_memory")
