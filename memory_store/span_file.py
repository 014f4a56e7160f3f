"""Spans in a file: one a line, each a message of OTLP in its JSON form, which collectors read (`otlpjsonfile`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_IDS = ("traceId", "spanId", "parentSpanId")


class SpanFile(SpanExporter):
    """Appends to the file at `path`, which is made for the first span."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write them, before this returns. Raises OSError if that can't be done; they are lost then."""
        lines = b"".join(_line(span) for span in spans)
        self._path.parent.mkdir(exist_ok=True)
        with open(self._path, "ab", buffering=0) as file:
            file.write(lines)
        return SpanExportResult.SUCCESS


def _line(span: ReadableSpan) -> bytes:
    message: dict[str, Any] = MessageToDict(encode_spans([span]), use_integers_for_enums=True)
    # OTLP departs from the JSON form of protobuf in this: ids are hexadecimal.
    (written,) = message["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for name in _IDS:
        if name in written:
            written[name] = base64.b64decode(written[name]).hex()
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
