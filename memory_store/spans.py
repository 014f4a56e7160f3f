"""The spans of one process, and the way they take out of it: to a collector, or into a file.

A thread of their own hands them on. What waits for it is bounded (2048 spans, or OTEL_BSP_MAX_QUEUE_SIZE); the oldest go
when more come, so that nobody waits for a collector or a disk.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, set_span_in_context
from opentelemetry.util.types import AttributeValue

from memory_store.shard_host import ShardHost
from memory_store.span_file import SpanFile
from memory_store.traced_requests import traced_shard
from memory_store.traces import Traces

CLOSE_S = 10.0


class Spans:
    """Of process number `index` of a kind, in a job that makes `traces`."""

    def __init__(self, traces: Traces, process: str, index: int) -> None:
        self._ids = _Ids()
        about = {SERVICE_NAME: f"pkm-{process}", SERVICE_INSTANCE_ID: str(index), "pkm.job": traces.job}
        # Which steps are traced is the job's to say, and of a traced step every span is kept.
        self._provider = TracerProvider(
            ALWAYS_ON, Resource.create(about), shutdown_on_exit=False, id_generator=self._ids
        )
        to_collector = OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
        if any(os.environ.get(name) for name in to_collector):
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            file = SpanFile(traces.folder / f"{process}-{index}.jsonl")
            self._provider.add_span_processor(BatchSpanProcessor(file))
        self._tracer = self._provider.get_tracer("pkm")

    def begin_trace(self, trace: int, name: str, attributes: Mapping[str, AttributeValue]) -> Span:
        """A span without a parent, of the trace with that number (128 bits, not 0); by one thread at a time."""
        self._ids.trace = trace
        return self._tracer.start_span(name, attributes=attributes)

    def begin(
        self,
        parent: Span,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        """A span under another."""
        return self._tracer.start_span(name, set_span_in_context(parent), kind, attributes)

    def trace(self, host: ShardHost, shard: int) -> None:
        """Trace what `host`, of shard number `shard`, is asked under a traceparent."""
        host.begin_span = traced_shard(shard, self)

    def close(self) -> None:
        """Hand on the spans that wait, for CLOSE_S at most; the rest is given up."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class _Ids(IdGenerator):
    """Numbers of the operating system: Python's own generator, which the SDK takes, belongs to those who seed it."""

    trace = 0

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return self.trace
