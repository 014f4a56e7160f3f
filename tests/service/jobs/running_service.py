"""A service's port with everything behind it but a cluster, in an event loop of its own thread; and who calls it."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from protos import jobs_pb2 as pb
from service.jobs.api import SERVICE, JobApi
from service.jobs.database import JobDatabase
from service.jobs.demand import GIB, Host
from service.jobs.folder import ServiceFolder
from service.jobs.server import Certificate, start_server
from service.jobs.tokens import Tokens, bearer, digest_of
from service.web.server import PageServer, start_page
from tests.small_job import small_corpus


@cache
def _corpus() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pkm-corpus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return small_corpus(folder)


TENANTS = {"ann": "token-of-ann", "bob": "token-of-bob"}
TIMEOUT_S = 20.0


@dataclass
class Service:
    """A service that answers on `port` of this machine, and its page on `page_port`."""

    database: JobDatabase
    data: Path
    port: int
    page_port: int
    channels: list[grpc.Channel] = field(default_factory=list)

    def caller(self, token: str | None, root: bytes | None = None) -> Caller:
        """Somebody with a token, or without one; over TLS if given a certificate to trust."""
        if root is None:
            own_connection = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", own_connection)
        else:
            channel = grpc.secure_channel(f"localhost:{self.port}", grpc.ssl_channel_credentials(root))
        self.channels.append(channel)
        return Caller(channel, [bearer(token)] if token is not None else [])


@dataclass
class Caller:
    channel: grpc.Channel
    metadata: Sequence[tuple[str, str]]

    def call(self, method: str, request: Message, timeout: float = TIMEOUT_S) -> Any:
        return self._method(method)(request, timeout=timeout, metadata=self.metadata)

    def _method(self, name: str) -> Any:
        found = SERVICE.methods_by_name[name]
        make = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        return make(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=getattr(pb, found.input_type.name).SerializeToString,
            response_deserializer=getattr(pb, found.output_type.name).FromString,
        )


@contextmanager
def running_service(
    folder: Path,
    host: str = "127.0.0.1",
    certificate: Certificate | None = None,
    cpus: int = 64,
    port: int = 0,
    page_port: int = 0,
) -> Iterator[Service]:
    folder.mkdir(exist_ok=True)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for name in ("shared", *TENANTS):
        if not (data / name).exists():
            shutil.copytree(_corpus(), data / name / "corpus")
    tokens = Tokens({digest_of(token): tenant for tenant, token in TENANTS.items()})
    database = JobDatabase(folder / "jobs.sqlite")
    hosts = [Host(cpus=cpus, memory_bytes=64 * GIB)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[Any, int, PageServer]:
        api = JobApi(database, tokens, ServiceFolder(folder), lambda: hosts)
        server, bound = await start_server(api, tokens, host, port, certificate)
        return server, bound, await start_page(api, tokens, host, page_port, certificate)

    try:
        server, bound, page = asyncio.run_coroutine_threadsafe(start(), loop).result(TIMEOUT_S)
        service = Service(database, data, bound, page.port)
        try:
            yield service
        finally:
            for channel in service.channels:
                channel.close()
            asyncio.run_coroutine_threadsafe(page.stop(), loop).result(TIMEOUT_S)
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        database.close()
