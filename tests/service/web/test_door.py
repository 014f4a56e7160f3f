"""Who gets in at the page's port, and what he learns: tokens, tenants, other sites, other names, too much of anything."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_store.errors import UsageError
from service.jobs.server import Certificate
from service.web import door, server
from service.web.door import names_of
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.service.web.asking import ask
from tests.service.web.planted_run import plant

CANARY = "canary-7d1e"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


def paths(job: str) -> list[tuple[str, str]]:
    """Every call, as (method, path)."""
    looks = [f"/api/jobs/{job}{part}" for part in ("", "/spec", "/metrics", "/events", "/cuts", "/map")]
    asks = [f"/api/jobs/{job}/{wish}" for wish in ("cancel", "pause", "resume")]
    return [*(("GET", path) for path in looks), *(("POST", path) for path in asks)]


def test_no_call_is_answered_without_a_token(service: Service) -> None:
    planted = plant(service)
    token = TENANTS["ann"]
    wrong = [None, "", "wrong", token + "x", token[:-1], "x" * 4000]
    for method, path in [
        *paths(planted.id),
        ("GET", "/api/jobs"),
        ("GET", "/api/cluster"),
        ("GET", "/api/no"),
    ]:
        for given in wrong:
            answer = ask(service, path, given, method=method)
            assert answer.status == 401, (path, given)
            assert "does not know this token" in answer.error
        elsewhere = ask(service, f"{path}?token={token}", None, method=method)
        assert elsewhere.status == 401
        twice = ask(service, path, token, method=method, headers=[("Authorization", "Bearer wrong")])
        assert twice.status == 401
        assert planted.id not in answer.body.decode()
    assert service.database.get(planted.id).wanted == "run"


def test_the_job_of_another_tenant_is_no_job_in_any_call(service: Service) -> None:
    planted = plant(service)
    for method, path in paths(planted.id):
        answer = ask(service, path, TENANTS["bob"], method=method)
        nobody = ask(service, path.replace(planted.id, "zzzzzzzz"), TENANTS["bob"], method=method)
        assert answer.status == nobody.status == 404
        assert answer.error.replace(planted.id, "zzzzzzzz") == nobody.error
    assert ask(service, "/api/jobs", TENANTS["bob"]).json["jobs"] == []
    assert service.database.get(planted.id).wanted == "run"


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/page.css/../../server.py",
        "/api/jobs/..", "/api/jobs/../../jobs.sqlite/spec", "/api/jobs/..%2f..%2fbob/metrics", "/api/jobs/%00/metrics",
        "/index.html", "/server.py", "/api", "/api/jobs/a/b/c",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file_of_the_disk(service: Service, path: str) -> None:
    answer = ask(service, path)
    assert answer.status in (400, 404)
    assert b"import" not in answer.body


def test_every_answer_keeps_browsers_strict(service: Service) -> None:
    for path, token in (
        ("/", None),
        ("/main.js", None),
        ("/api/jobs", TENANTS["ann"]),
        ("/api/jobs", None),
        ("/no", None),
    ):
        answer = ask(service, path, token)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["server"] == "pkm"
        assert answer.headers["cache-control"] == ("no-cache" if path in ("/", "/main.js") else "no-store")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1", "localhost@evil"]
)
def test_another_name_for_this_address_gets_nothing(service: Service, host: str) -> None:
    for path in ("/", "/api/jobs"):
        assert ask(service, path, host=host).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1", "[::1]:7071"])
def test_a_tunnel_from_another_port_is_let_through(service: Service, host: str) -> None:
    assert ask(service, "/api/jobs", host=host).status == 200


def test_what_another_site_has_caused_is_refused(service: Service) -> None:
    planted = plant(service)
    wish = f"/api/jobs/{planted.id}/cancel"
    own = f"http://127.0.0.1:{service.page_port}"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", own.replace("http", "https")):
        assert ask(service, wish, method="POST", headers=[("Origin", origin)]).status == 403
    for site in ("cross-site", "same-site"):
        assert ask(service, "/api/jobs", headers=[("Sec-Fetch-Site", site)]).status == 403
        assert (
            ask(service, "/main.js", headers=[("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "no-cors")]).status
            == 403
        )
        assert (
            ask(service, "/", headers=[("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate")]).status
            == 200
        )
    assert service.database.get(planted.id).wanted == "run"
    name = f"127.0.0.1:{service.page_port}"
    allowed = ask(
        service, wish, method="POST", host=name, headers=[("Origin", own), ("Sec-Fetch-Site", "same-origin")]
    )
    assert allowed.status == 200


def test_too_much_is_refused_and_others_are_answered(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant(service)
    large = ask(
        service, f"/api/jobs/{planted.id}/cancel", method="POST", body=b"x" * (server.BODY_BYTES_MAX + 1)
    )
    assert large.status == 413
    assert ask(service, "/api/jobs?name=" + "x" * 20_000).status == 400
    assert ask(service, "/api/jobs", headers=[("X-Flood", "x" * 20_000)]).status == 400
    monkeypatch.setattr(door, "CALLS_MAX", 0)
    assert ask(service, "/api/jobs").status == 429
    monkeypatch.setattr(door, "CALLS_MAX", 64)
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 20)
    silent = [socket.create_connection(("127.0.0.1", service.page_port), timeout=20) for _ in range(20)]
    try:
        for connection in silent[:19]:
            connection.sendall(b"GET /api/jobs HTTP/1.1\r\n")
        until_refused(service, silent)
    finally:
        for connection in silent:
            connection.close()
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 512)
    for garbage in (b"\0" * 5000, b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.page_port), timeout=20) as connection:
            connection.sendall(garbage)
    assert ask(service, "/api/jobs").status == 200


def until_refused(service: Service, silent: list[socket.socket]) -> None:
    """Those that come at one moment are let in together, so that it takes some more until one is closed at once."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        silent.append(socket.create_connection(("127.0.0.1", service.page_port), timeout=1))
        with contextlib.suppress(TimeoutError):
            assert silent[-1].recv(1) == b""
            return
    raise AssertionError("any number of connections is let in")


def test_an_error_inside_tells_nothing_of_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"{CANARY} in /some/path")

    monkeypatch.setattr(service.database, "newest", broken)
    answer = ask(service, "/api/jobs")
    assert answer.status == 500
    assert CANARY not in answer.error
    reference = answer.error.rpartition("under ")[2].rstrip(".")
    assert any(reference in record.getMessage() for record in caplog.records)
    assert TENANTS["ann"] not in caplog.text


def certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> Certificate:
    chain, key = folder / "chain.pem", folder / "key.pem"
    extension = ["-addext", f"subjectAltName={names}"] if names else []
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", *extension, "-out", chain, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return Certificate(chain, key)


def test_over_tls_the_page_answers_under_the_names_of_its_certificate(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "DNS:localhost,DNS:*.example.org,IP:127.0.0.1")
    trust = ssl.create_default_context(cafile=pair.chain)
    with running_service(tmp_path / "service", "0.0.0.0", pair) as service:
        for host, status in (
            ("localhost", 200),
            ("a.example.org", 200),
            ("127.0.0.1:9", 200),
            ("a.b.example.org", 421),
            ("example.org", 421),
        ):
            assert ask(service, "/api/jobs", host=host, trust=trust).status == status
        own = f"https://localhost:{service.page_port}"
        assert ask(service, "/api/jobs", headers=[("Origin", own)], trust=trust).status == 200
        assert (
            ask(service, "/api/jobs", headers=[("Origin", own.replace("https", "http"))], trust=trust).status
            == 403
        )
        with pytest.raises((ConnectionError, OSError)):
            ask(service, "/api/jobs")


def test_a_certificate_without_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no host"):
        names_of(certificate(tmp_path, "").chain)
    assert names_of(None) == {"localhost", "127.0.0.1", "::1"}
