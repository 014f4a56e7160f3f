"""The port of metrics: who is let in, over what, and that no client keeps another one out."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app

from memory_store.errors import UsageError
from memory_store.metrics_port import Door, MetricsPort, Scrape
from workers.job_certificates import METRICS_NAME, JobCertificates, make_certificates

TOKEN = "a-token-of-a-test"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


@pytest.fixture(scope="module")
def certificates() -> JobCertificates:
    return make_certificates()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("pkm_tested", "Tests.", registry=registry).inc(3)
    return registry


def opened(registry: CollectorRegistry, door: Door) -> MetricsPort:
    return MetricsPort({"/metrics": make_wsgi_app(registry)}, "127.0.0.1", 0, door)


@pytest.fixture(params=["http", "https"])
def port(
    request: pytest.FixtureRequest, registry: CollectorRegistry, certificates: JobCertificates
) -> Iterator[tuple[MetricsPort, ssl.SSLContext | None]]:
    door, context = Door(DIGEST), None
    if request.param == "https":
        door = Door(DIGEST, certificates.metrics.certificate, certificates.metrics.key)
        context = trusting(certificates)
    opened_port = opened(registry, door)
    yield opened_port, context
    opened_port.close()


def trusting(certificates: JobCertificates) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificates.metrics.authority.decode())


def ask(
    port: int,
    context: ssl.SSLContext | None,
    authorization: str | None,
    path: str = "/metrics",
    verb: str = "GET",
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if context is not None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.sock = context.wrap_socket(raw, server_hostname=METRICS_NAME)
    headers = {"Authorization": authorization} if authorization is not None else {}
    connection.request(verb, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


Opened = tuple[MetricsPort, ssl.SSLContext | None]


def test_the_token_lets_in(port: Opened) -> None:
    status, text = ask(port[0].port, port[1], f"Bearer {TOKEN}")
    assert status == 200
    assert "pkm_tested_total 3.0" in text


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer ", f"Bearer {TOKEN}x", f"bearer {TOKEN}", TOKEN, f"Bearer {DIGEST}"]
)
def test_anything_else_is_refused_and_told_nothing(port: Opened, authorization: str | None) -> None:
    for path in ("/metrics", "/other"):
        status, text = ask(port[0].port, port[1], authorization, path)
        assert (status, text) == (401, "401 Unauthorized\n")


def test_only_what_there_is_can_be_read(port: Opened) -> None:
    assert ask(port[0].port, port[1], f"Bearer {TOKEN}", "/other")[0] == 404
    assert ask(port[0].port, port[1], f"Bearer {TOKEN}", verb="POST")[0] == 405


def test_clients_that_say_nothing_keep_nobody_out(port: Opened) -> None:
    silent = [socket.create_connection(("127.0.0.1", port[0].port)) for _ in range(5)]
    assert ask(port[0].port, port[1], f"Bearer {TOKEN}")[0] == 200
    for connection in silent:
        connection.close()


def test_the_certificate_of_another_job_is_not_trusted(
    registry: CollectorRegistry, certificates: JobCertificates
) -> None:
    own = make_certificates().metrics
    port = opened(registry, Door(DIGEST, own.certificate, own.key))
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(port.port, trusting(certificates), f"Bearer {TOKEN}")
    port.close()


def test_what_others_can_reach_has_a_token_and_tls(
    registry: CollectorRegistry, certificates: JobCertificates
) -> None:
    pair = certificates.metrics.certificate, certificates.metrics.key
    for door in (Door(), Door(DIGEST), Door("", *pair)):
        with pytest.raises(UsageError, match="TLS and a token"):
            MetricsPort({}, "0.0.0.0", 0, door)
    MetricsPort({}, "0.0.0.0", 0, Door(DIGEST, *pair)).close()


def test_a_port_that_is_taken_is_refused(registry: CollectorRegistry) -> None:
    port = opened(registry, Door())
    with pytest.raises(UsageError, match=str(port.port)):
        MetricsPort({}, "127.0.0.1", port.port, Door())
    port.close()


def test_where_a_process_listens_is_told_without_a_secret(
    tmp_path: Path, registry: CollectorRegistry, certificates: JobCertificates
) -> None:
    own = certificates.metrics
    scrape = Scrape(tmp_path / "scrape", Door(DIGEST, own.certificate, own.key))
    port = scrape.serve(registry, "127.0.0.1", "shard", 3)
    (told,) = (tmp_path / "scrape").iterdir()
    assert json.loads(told.read_text()) == [
        {"targets": [port.address], "labels": {"process": "shard", "index": "3", "__scheme__": "https"}}
    ]
    assert repr(own.key) not in repr(scrape)
    port.close()
