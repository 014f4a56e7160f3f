"""The two spans of a request in a traced step: of the trainer from its sending to its answer, and under it of the shard that
serves it.

What is sent once more after a lost connection is not traced once more: its shard's span is missing then.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from memory_store import messages as m
from memory_store.carriers.base import Carrier
from memory_store.errors import PkmError
from memory_store.traces import TRACEPARENT_KEY, BeginSpan, EndSpan, traceparent
from memory_store.traffic import rows_and_bytes

if TYPE_CHECKING:
    from memory_store.spans import Spans

_W3C = TraceContextTextMapPropagator()
_NAMES = {
    m.Fetch: "lookup",
    m.Pool: "lookup",
    m.RowGradient: "update",
    m.EntryGradient: "update",
    m.PoolGradient: "update",
    m.Commit: "commit",
    m.Apply: "apply",
}


class TracedCarrier:
    """Traces the requests that go to `shard` while a span is the current one of their thread; else it does nothing."""

    def __init__(self, shard: int, carrier: Carrier, spans: Spans) -> None:
        self._shard, self._carrier, self._spans = shard, carrier, spans

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        parent = get_current_span()
        if not parent.is_recording():
            return self._carrier.submit(request, timeout_s)
        span = self._spans.begin(
            parent, f"request {_name(request)}", _attributes(self._shard, request), SpanKind.CLIENT
        )
        token = traceparent.set(_traceparent(span))
        try:
            future = self._carrier.submit(request, timeout_s)
        finally:
            traceparent.reset(token)
        future.add_done_callback(lambda done: _end(span, done.exception()))
        return future

    def close(self) -> None:
        self._carrier.close()


def traced_shard(shard: int, spans: Spans) -> BeginSpan:
    """What shard number `shard` does with a request that comes under a traceparent."""

    def begin(request: m.Request, parent: str) -> EndSpan | None:
        context = _W3C.extract({TRACEPARENT_KEY: parent})
        asking = get_current_span(context)
        if not asking.get_span_context().is_valid:
            return None
        span = spans.begin(asking, f"shard {_name(request)}", _attributes(shard, request), SpanKind.SERVER)

        def end(reply: m.Reply | PkmError) -> None:
            rows, size_bytes = rows_and_bytes(request, reply)
            span.set_attributes({"pkm.rows": rows, "pkm.bytes": size_bytes})
            _end(span, reply if isinstance(reply, PkmError) else None)

        return end

    return begin


def _traceparent(span: Span) -> str:
    carried: dict[str, str] = {}
    _W3C.inject(carried, set_span_in_context(span))
    return carried[TRACEPARENT_KEY]


def _name(request: m.Request) -> str:
    return _NAMES.get(type(request), type(request).__name__)


def _attributes(shard: int, request: m.Request) -> dict[str, AttributeValue]:
    about: dict[str, AttributeValue] = {"pkm.shard": shard, "pkm.request": type(request).__name__}
    version = getattr(request, "version", getattr(request, "step", None))
    if version is not None:
        about["pkm.step"] = version + 1  # the step that is being made
    if table := getattr(request, "table", ""):
        about["pkm.table"] = table
    return about


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.set_status(StatusCode.ERROR, type(error).__name__)
    span.end()
