"""Who a process of a job is, over the network: certificates that both sides show, trusted by that job alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

SHARD_NAME = "shard.pkm"  # what a shard's certificate says, wherever the shard is


@dataclass(frozen=True)
class Credentials:
    """In PEM: the authority of the job, and a certificate of its with the key."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def server_credentials(own: Credentials) -> grpc.ServerCredentials:
    """For a port that answers only who shows a certificate of the same authority, made for clients."""
    return grpc.ssl_server_credentials(
        [(own.key, own.certificate)], root_certificates=own.authority, require_client_auth=True
    )


def open_channel(
    address: str, options: Sequence[tuple[str, object]], own: Credentials | None
) -> grpc.Channel:
    """A channel to the shard at `address` (host:port); without credentials in the open, which is for one's own machine."""
    if own is None:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)
    named = [*options, ("grpc.ssl_target_name_override", SHARD_NAME)]
    return grpc.secure_channel(address, credentials, options=named)
