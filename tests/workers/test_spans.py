"""Spans on their way out of one process: whom they reach, what they tell of errors, and that nobody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span

from memory_store import messages as m
from memory_store import spans as spans_module
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.errors import StoreError
from memory_store.opening import in_process_hosts
from memory_store.span_file import SpanFile
from memory_store.table_spec import TableSpec
from memory_store.traced_requests import TracedCarrier
from memory_store.traces import Traces
from tests.workers.recorded_spans import collector, spans_in

TIMEOUT_S = 60.0


def in_time(work: Callable[[], object]) -> bool:
    """Whether it ends; what does not is left to itself."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return not thread.is_alive()


def test_a_step_does_not_wait_for_spans_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, export = threading.Event(), SpanFile.export
    monkeypatch.setattr(SpanFile, "export", lambda *given: may_write.wait() and export(*given))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    spans = Traces("job", tmp_path).open("trainer")

    def make() -> None:
        for number in range(100):
            spans.begin_trace(number + 1, "step", {"number": number}).end()

    ended = in_time(make)
    may_write.set()
    assert ended, "a step waited until its span was written"
    spans.close()
    written = [span.about["number"] for span in spans_in(tmp_path)]
    assert 8 <= len(written) <= 8 + 4
    assert written[-8:] == list(range(92, 100))


def test_a_process_does_not_wait_at_its_end_for_a_collector_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(spans_module, "CLOSE_S", 0.1)
    monkeypatch.setattr(TracerProvider, "shutdown", lambda _: goes_on.wait())
    ended = in_time(Traces("job", tmp_path).open("trainer").close)
    goes_on.set()
    assert ended, "the process waited at its end until its spans were handed on"


@pytest.mark.parametrize(
    ("variable", "path"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")],
)
def test_the_variables_of_opentelemetry_say_where_spans_go_and_with_what_headers(
    variable: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as sent_to:
        monkeypatch.setenv(variable, sent_to.endpoint + path)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=pkm,authorization=Bearer%20key")
        spans = Traces("job", tmp_path).open("trainer", 3)
        spans.begin_trace(7, "step", {"pkm.step": 4}).end()
        spans.close()
    (span,) = sent_to.spans()
    assert (span.job, span.process, span.name, span.about) == ("job", "trainer-3", "step", {"pkm.step": 4})
    (headers,) = sent_to.headers
    assert (headers["x-scope-orgid"], headers["authorization"]) == ("pkm", "Bearer key")
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_fails_is_an_error_of_trainer_and_shard(tmp_path: Path) -> None:
    trainer, shard = (Traces("job", tmp_path).open(kind) for kind in ("trainer", "shard"))
    (host,) = in_process_hosts([TableSpec("memory", rows=16, dim=4)], spans=shard)
    carrier = TracedCarrier(0, InProcessCarrier(host), trainer)

    def ask(request: m.Request) -> Future[m.Reply]:
        return carrier.submit(request, TIMEOUT_S)

    step = trainer.begin_trace(1, "step", {})
    with use_span(step, end_on_exit=True):
        assert isinstance(ask(m.Describe()).result(TIMEOUT_S), m.ShardInfo)
        with pytest.raises(StoreError):
            ask(m.CountTouched("no such table", 0)).result(TIMEOUT_S)
    ask(m.Describe()).result(TIMEOUT_S)  # of no step
    trainer.close()
    shard.close()
    assert sorted((span.process, span.name, span.error) for span in spans_in(tmp_path)) == [
        ("shard-0", "shard CountTouched", "StoreError"),
        ("shard-0", "shard Describe", ""),
        ("trainer-0", "request CountTouched", "StoreError"),
        ("trainer-0", "request Describe", ""),
        ("trainer-0", "step", ""),
    ]
