"""A service's port: what it is bound to, what of it is bounded, and what is told to those who look whether it is well.

On a loopback address the token is enough, since nobody else hears it. Any other address needs TLS, or the service does not
start. Nothing but the health service answers without a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from memory_store.errors import UsageError
from memory_store.loopback import is_loopback
from service.jobs.api import SERVICE, JobApi
from service.jobs.door import Door
from service.jobs.tokens import Tokens

MESSAGE_BYTES_MAX = 2 << 20
_CALLS_MAX = 32768  # of all tenants together (door.py bounds those of each)
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    # A burst waits for its turn: otherwise gRPC refuses at random what comes when 1000 calls wait already.
    ("grpc.server.max_pending_requests", _CALLS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", _CALLS_MAX),
    # And cancels what has waited for 30 s, of whomever: where one tenant floods a busy host, others would be told nothing.
    ("grpc.server_max_unrequested_time_in_server", 300),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),  # or a second service could share the port, unseen
)


@dataclass(frozen=True)
class Certificate:
    """Of the service, with its key: files in PEM."""

    chain: Path
    key: Path


async def start_server(
    api: JobApi, tokens: Tokens, host: str, port: int, certificate: Certificate | None
) -> tuple[grpc.aio.Server, int]:
    """Answer on `host` and `port`, any free one for 0; the server and its port.

    Raises UsageError if the address would need a certificate, if that can't be read, or if the port is taken.
    """
    if certificate is None and not is_loopback(host):
        raise UsageError(
            f"The address {host} can be reached from other machines, which needs TLS; give a certificate and its key, "
            "or use 127.0.0.1."
        )
    server = grpc.aio.server(
        interceptors=[Door(tokens)], options=_OPTIONS, maximum_concurrent_rpcs=_CALLS_MAX
    )
    server.add_generic_rpc_handlers([api.handler()])
    well = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(well, server)
    reflection.enable_server_reflection(
        [SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificate is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, _credentials(certificate))
    except RuntimeError:
        raise UsageError(
            f"The address {address} can't be used; another program may have the port. Give another one."
        ) from None
    await server.start()
    for service in ("", SERVICE.full_name):
        await well.set(service, health_pb2.HealthCheckResponse.SERVING)
    return server, bound


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    try:
        pair = certificate.key.read_bytes(), certificate.chain.read_bytes()
    except OSError as error:
        raise UsageError(f"{error.filename} can't be read: {error.strerror}.") from None
    return grpc.ssl_server_credentials([pair])
