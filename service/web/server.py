"""The page's port, beside that of gRPC and with the same rule: in the open on this machine's own address alone, elsewhere
over TLS with the service's certificate.

What one asker can take is bounded: connections, the size of a request, the time to send one, and calls at a time (door.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from memory_store.errors import UsageError
from memory_store.loopback import is_loopback
from service.jobs.api import JobApi
from service.jobs.server import Certificate
from service.jobs.tokens import Tokens
from service.web.calls import PageCalls
from service.web.door import Door, names_of

CONNECTIONS_MAX = 512
BODY_BYTES_MAX = 64 << 10
_HANDSHAKE_S, _IDLE_S, _GRACE_S = 10.0, 30.0, 1.0
_PAGE = Path(__file__).parent / "page"
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageServer:
    """The port, while it is open."""

    port: int
    _runner: web.AppRunner
    _server: asyncio.Server

    async def stop(self) -> None:
        self._server.close()
        await self._runner.cleanup()


async def start_page(
    api: JobApi, tokens: Tokens, host: str, port: int, certificate: Certificate | None
) -> PageServer:
    """Answer on `host` and `port`, any free one for 0. Raises UsageError like `service.jobs.server.start_server`."""
    if certificate is None and not is_loopback(host):
        raise UsageError(
            f"The address {host} can be reached from other machines, which needs TLS; give a certificate and its key, "
            "or use 127.0.0.1."
        )
    names = names_of(certificate.chain if certificate else None)
    door = Door(tokens, names, "https" if certificate else "http")
    application = web.Application(middlewares=[door.middleware()], client_max_size=BODY_BYTES_MAX)
    application.add_routes([*PageCalls(api).routes(), *_files()])
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=_IDLE_S, shutdown_timeout=_GRACE_S)
    await runner.setup()
    assert runner.server is not None
    try:
        server = await asyncio.get_running_loop().create_server(
            _bounded(runner.server), host, port, ssl=_tls(certificate),
            ssl_handshake_timeout=_HANDSHAKE_S if certificate else None,
        )  # fmt: skip
    except OSError:
        await runner.cleanup()
        raise UsageError(
            f"The port {port} of {host} can't be used for the page; another program may have it. Give another one with "
            "--http-port."
        ) from None
    return PageServer(server.sockets[0].getsockname()[1], runner, server)


def _files() -> list[web.RouteDef]:
    """The page's files, read once: no path of a request ever becomes one of the disk."""
    routes = []
    for path in sorted(_PAGE.iterdir()):
        if path.suffix in _KINDS:
            name = "/" if path.name == "index.html" else f"/{path.name}"
            routes.append(web.get(name, _file(path.read_bytes(), _KINDS[path.suffix])))
    return routes


def _file(content: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        response = web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)
        response.enable_compression()
        return response

    return answer


def _bounded(server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
    """Connections to `server`, as many as there may be (and those that came at the same moment as the last one)."""

    def connect() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < CONNECTIONS_MAX else _Full()

    return connect


class _Full(asyncio.Protocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _tls(certificate: Certificate | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate.chain, certificate.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"The certificate {certificate.chain} can't be used: {error}.") from None
    return context
