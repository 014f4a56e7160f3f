"""Whether a shard's process still runs: asked past its lock, so that a busy shard is not taken for a dead one."""

from __future__ import annotations

from enum import Enum

import grpc

from memory_store.carriers.grpc_credentials import Credentials, open_channel

ALIVE_METHOD = "/pkm.store.v1.ShardService/Alive"
TOKEN_KEY = "pkm-token"


class Sign(Enum):
    """What came back: an answer, silence, or the news that nobody is there."""

    ALIVE = "alive"
    SILENT = "silent"
    GONE = "gone"


def sign_of_life(address: str, timeout_s: float, token: str, credentials: Credentials | None = None) -> Sign:
    """Ask the shard at `address` (host:port), over a connection of its own."""
    with open_channel(address, [("grpc.use_local_subchannel_pool", 1)], credentials) as channel:
        try:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ALIVE_METHOD)
            ask(b"", timeout=timeout_s, metadata=((TOKEN_KEY, token),))
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return Sign.SILENT
            if code == grpc.StatusCode.UNAVAILABLE:
                return Sign.GONE
    return Sign.ALIVE
