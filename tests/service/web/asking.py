"""Asking the page's port over plain HTTP, header by header."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.service.jobs.running_service import TENANTS, TIMEOUT_S, Service


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


def ask(
    service: Service,
    path: str,
    token: str | None = TENANTS["ann"],
    *,
    method: str = "GET",
    body: bytes | None = None,
    host: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    trust: ssl.SSLContext | None = None,
) -> Answer:
    """The answer to one request; with `token` None, to one without."""
    if trust is not None:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "localhost", service.page_port, timeout=TIMEOUT_S, context=trust
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", service.page_port, timeout=TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=host is not None)
        if host is not None:
            connection.putheader("Host", host)
        if token is not None:
            connection.putheader("Authorization", f"Bearer {token}")
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()
