"""Spans as they come out of the processes of a job: read from files, or taken by a collector."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

ERROR = 2  # of StatusCode, as OTLP writes it


@dataclass(frozen=True)
class RecordedSpan:
    """One span; `process` is its service and the number of that, times are ns, `error` says how it failed."""

    process: str
    job: str
    trace: str
    span: str
    parent: str
    kind: int
    name: str
    begun: int
    ended: int
    about: dict[str, Any]
    error: str


def spans_in(folder: Path) -> list[RecordedSpan]:
    """All spans in the files of a folder; every line must hold one."""
    found = []
    for path in sorted(folder.iterdir()):
        for line in path.read_text().splitlines():
            (resource,) = json.loads(line)["resourceSpans"]
            ((span,),) = (scope["spans"] for scope in resource["scopeSpans"])
            owner = _values(resource["resource"]["attributes"])
            assert path.stem == f"{owner['service.name'].removeprefix('pkm-')}-{owner['service.instance.id']}"
            found.append(
                RecordedSpan(
                    process=path.stem,
                    job=owner["pkm.job"],
                    trace=span["traceId"],
                    span=span["spanId"],
                    parent=span.get("parentSpanId", ""),
                    kind=span["kind"],
                    name=span["name"],
                    begun=int(span["startTimeUnixNano"]),
                    ended=int(span["endTimeUnixNano"]),
                    about=_values(span.get("attributes", [])),
                    error=span["status"]["message"] if span["status"].get("code") == ERROR else "",
                )
            )
    return found


def _values(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for attribute in attributes:
        ((kind, value),) = attribute["value"].items()
        found[attribute["key"]] = int(value) if kind == "intValue" else value
    return found


class Collector:
    """What an OpenTelemetry collector has been sent over HTTP, at `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    def spans(self) -> list[RecordedSpan]:
        return [
            RecordedSpan(
                process=f"{owner['service.name'].removeprefix('pkm-')}-{owner['service.instance.id']}",
                job=owner["pkm.job"],
                trace=span.trace_id.hex(),
                span=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                kind=span.kind,
                name=span.name,
                begun=span.start_time_unix_nano,
                ended=span.end_time_unix_nano,
                about=_plain(span.attributes),
                error=span.status.message if span.status.code == ERROR else "",
            )
            for request in self.requests
            for resource in request.resource_spans
            for owner in [_plain(resource.resource.attributes)]
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
