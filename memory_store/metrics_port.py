"""The port at which a process serves its metrics: `GET /metrics`, over HTTP or HTTPS, and to nobody without the token if
there is one.

What can be reached from other machines has a token and is served over TLS, or is not served. A process knows the digest of
the token alone. Where a process of a job listens stands in a file of the job's scrape folder, in the format of Prometheus'
`file_sd_configs`, so that a Prometheus on this machine needs no service.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from memory_store.durable_files import replace_file
from memory_store.errors import UsageError
from memory_store.loopback import is_loopback

Page = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]  # a WSGI application
_CLIENT_TIMEOUT_S = 10.0
_SCHEME = "Bearer "

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """Who is let in: everybody, or who has the token whose SHA-256 is `token_digest`; with a certificate (PEM) over TLS."""

    token_digest: str = ""
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)

    def lets_in(self, authorization: str) -> bool:
        """Whether a request with this header may be answered."""
        if not self.token_digest:
            return True
        token = authorization.removeprefix(_SCHEME) if authorization.startswith(_SCHEME) else ""
        return hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), self.token_digest)


@dataclass(frozen=True)
class Scrape:
    """How the processes of a job are scraped: each writes where it listens into a file of `folder`."""

    folder: Path
    door: Door = Door()

    def serve(self, registry: CollectorRegistry, host: str, process: str, index: int = 0) -> MetricsPort:
        """Serve the metrics of process number `index` of a kind, on a free port of `host`, and tell where."""
        port = MetricsPort({"/metrics": make_wsgi_app(registry)}, host, 0, self.door)
        labels = {
            "process": process,
            "index": str(index),
            "__scheme__": "https" if self.door.certificate else "http",
        }
        content = json.dumps([{"targets": [port.address], "labels": labels}]).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / f"{process}-{index}.json", content)
        except OSError as error:
            _log.error("nobody learns where the metrics are, %s can't be written: %s", self.folder, error)
        return port


class MetricsPort:
    """Serves `pages`, by path, on `host` and `port` (0: a free one) in threads of its own until `close`.

    Raises UsageError if the address can't be had, or if others could reach it without a token or in the open.
    """

    def __init__(self, pages: Mapping[str, Page], host: str, port: int, door: Door) -> None:
        if not is_loopback(host) and not (door.token_digest and door.certificate):
            raise UsageError(
                f"The metrics at {host} could be read from other machines, which needs TLS and a token; give a "
                "certificate and its key, or use 127.0.0.1."
            )
        context = _tls(door) if door.certificate else None
        try:
            server = make_server(host, port, _guarded(pages, door), _server_class(host), _Handler)
        except OSError as error:
            raise UsageError(f"The metrics can't be served at {host}:{port}: {error.strerror}.") from None
        if context is not None:
            # The handshake is made by the thread of the connection: a silent client must not keep the others out.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server = server
        self.port: int = server.server_port
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _guarded(pages: Mapping[str, Page], door: Door) -> Page:
    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def refused(status: str) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain")])
            return [f"{status}\n".encode()]

        if not door.lets_in(environ.get("HTTP_AUTHORIZATION", "")):
            return refused("401 Unauthorized")
        if environ["REQUEST_METHOD"] != "GET":
            return refused("405 Method Not Allowed")
        wanted = pages.get(environ["PATH_INFO"])
        return wanted(environ, start_response) if wanted is not None else refused("404 Not Found")

    return page


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT_S  # of each wait for the client

    def handle(self) -> None:
        try:
            super().handle()
        except OSError as error:  # no handshake, no request, or nobody who hears the answer
            _log.debug("a client of the metrics: %s", error)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: it would be a line every few seconds."""


def _server_class(host: str) -> type[ThreadingWSGIServer]:
    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            TCPServer.server_bind(self)  # that of HTTP would ask for this host's name, which may take seconds
            self.server_name, self.server_port = host, self.server_address[1]
            self.setup_environ()

    return Server


def _tls(door: Door) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # OpenSSL reads files alone; this one has no name, and no other process can open it.
    descriptor = os.memfd_create("pkm-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, door.certificate + b"\n" + door.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise UsageError(f"The certificate for the metrics and its key can't be used: {error}.") from None
    finally:
        os.close(descriptor)
    return context
