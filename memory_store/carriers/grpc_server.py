"""A shard served over gRPC.

`Call`: a stream of frames in, a stream of frames out (protos/store.proto). Every call must carry the job's token;
without it nothing is read. `Alive` says that the process runs, and nothing else. No text of an unexpected exception
leaves the process.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator
from concurrent import futures

import grpc

from memory_store import messages as m
from memory_store.carriers.grpc_credentials import Credentials, server_credentials
from memory_store.carriers.grpc_sign_of_life import ALIVE_METHOD, answer
from memory_store.errors import PkmError, StoreError
from memory_store.reused_memory import keep_freed_memory
from memory_store.shard_host import ShardHost
from memory_store.wire import CHUNK_BYTES, PAYLOAD_BYTES_MAX, Terms, failure, frames, read_frames

METHOD = "/pkm.store.v1.ShardService/Call"
TOKEN_KEY = "pkm-token"
CALLS_MAX = 64

_log = logging.getLogger(__name__)

# so_reuseport: with the default, a second server could share a live shard's port without an error.
# Frames and receive buffers hold a chunk: with the defaults (16 KiB, and a window that grows only slowly) a
# chunk wakes its reader many times.
CHANNEL_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", CHUNK_BYTES + 65536),
    ("grpc.max_metadata_size", 16384),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_frame_size", CHUNK_BYTES),
    ("grpc.tcp_receive_buffer_size", 4 * CHUNK_BYTES),
]


class ShardServer(grpc.GenericRpcHandler):
    """Serves one shard at `address` (host:port; port 0 takes a free one, see `port`), over TLS if it has `credentials`.

    Raises StoreError if the address can't be had.
    """

    def __init__(
        self,
        host: ShardHost,
        address: str,
        token: str,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
        credentials: Credentials | None = None,
    ) -> None:
        keep_freed_memory()
        self._host = host
        self._token = token.encode()
        self._payload_bytes_max = payload_bytes_max
        self.calls = 0  # answered so far, about: threads that count at once may count one
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=CALLS_MAX, thread_name_prefix="shard-call"),
            handlers=[self],
            options=CHANNEL_OPTIONS,
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(credentials))
        except RuntimeError:
            raise StoreError(
                f"No shard can be served at {address}: it is taken, or not of this host."
            ) from None
        self._server.start()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """gRPC's hook: the handler of a method, or None if there is no such method."""
        if handler_call_details.method == ALIVE_METHOD:
            return grpc.unary_unary_rpc_method_handler(answer)
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self._call)

    def _call(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        given = dict(context.invocation_metadata()).get(TOKEN_KEY, "")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._token):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "The job's token is missing or wrong.")
        try:
            request, terms = read_frames(requests, self._payload_bytes_max)
            if not isinstance(request, m.Request):
                raise StoreError(f"A {type(request).__name__} is no request.")
            self.calls += 1
            reply = self._host.call(request, terms.timeout_ms / 1000)
            yield from frames(reply, Terms(wire=terms.wire))
        except PkmError as error:
            yield from frames(failure(error))
        except Exception:
            _log.exception("a call failed")
            context.abort(grpc.StatusCode.INTERNAL, "The shard failed on this call; its log says why.")

    def stop(self, grace_s: float = 1.0) -> None:
        """Stop taking calls, and end those under way after `grace_s`."""
        self._server.stop(grace_s).wait()
