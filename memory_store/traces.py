"""Traces of single steps, as far as those know of them who make no spans: nothing here loads OpenTelemetry (spans.py does).

A trainer that traces a step hands its span over with each request, as the `traceparent` of W3C Trace Context; a shard that
is asked so makes a span under it. A request of a step without a trace is what it would be if there were no traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from memory_store import messages as m
from memory_store.errors import PkmError, UsageError

if TYPE_CHECKING:
    from memory_store.shard_host import ShardHost
    from memory_store.spans import Spans

TRACEPARENT_KEY = "traceparent"  # in the metadata of a call
NEEDED = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""Of the request that is being submitted, on its way through the carriers; nothing if it is not traced."""

EndSpan = Callable[[m.Reply | PkmError], None]
BeginSpan = Callable[[m.Request, str], EndSpan | None]
"""A shard is asked something, under a traceparent: what it tells of its answer, before that leaves."""


@dataclass(frozen=True)
class Traces:
    """That job `job` makes traces; its processes write them into `folder`, if their environments name no collector."""

    job: str
    folder: Path

    def open(self, process: str, index: int = 0) -> Spans:
        """The spans of process number `index` of a kind."""
        from memory_store.spans import Spans

        return Spans(self, process, index)

    def of_shard(self, host: ShardHost, shard: int) -> Spans:
        """The spans of a process that serves shard number `shard` alone."""
        spans = self.open("shard", shard)
        spans.trace(host, shard)
        return spans


@contextmanager
def opened(traces: Traces | None, process: str, index: int = 0) -> Iterator[Spans | None]:
    """The spans of a process, closed at the end; None where no traces are made."""
    spans = traces.open(process, index) if traces is not None else None
    try:
        yield spans
    finally:
        if spans is not None:
            spans.close()


def check_installed() -> None:
    """Raises UsageError where what makes spans is not installed."""
    for name in NEEDED:
        try:
            distribution(name)
        except PackageNotFoundError:
            raise UsageError(
                f"train.trace_every needs {name}, which is not installed: install pkm with its extra, pkm[traces], "
                "or leave train.trace_every at 0."
            ) from None
