"""A shard served over gRPC.

`Call`: a stream of frames in, a stream of frames out (protos/store.proto). `Alive` says that the process runs, and nothing
else. Every call must carry the job's token, without which nothing is read, and a `Call` a deadline, beyond which it takes no
thread. No text of an unexpected exception leaves the process.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import NoReturn

import grpc

from memory_store import messages as m
from memory_store.carriers.grpc_credentials import Credentials, server_credentials
from memory_store.carriers.grpc_sign_of_life import ALIVE_METHOD, TOKEN_KEY
from memory_store.errors import PkmError, StoreError
from memory_store.reused_memory import keep_freed_memory
from memory_store.shard_host import ShardHost
from memory_store.traces import TRACEPARENT_KEY
from memory_store.wire import CHUNK_BYTES, PAYLOAD_BYTES_MAX, Terms, failure, frames, read_frames

METHOD = "/pkm.store.v1.ShardService/Call"
CALLS_MAX = 64
READING_MAX = 48  # calls whose request has not come yet: others must find a thread beside them
STREAMS_OF_ONE_CONNECTION_MAX = 32  # four times what a carrier has open
DEADLINE_S_MAX = 7200.0  # twice what writing a cut may take

_log = logging.getLogger(__name__)

# so_reuseport: with the default, a second server could share a live shard's port without an error.
# Frames and receive buffers hold a chunk: with the defaults (16 KiB, and a window that grows only slowly) a
# chunk wakes its reader many times.
CHANNEL_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", CHUNK_BYTES + 65536),
    ("grpc.max_metadata_size", 16384),
    ("grpc.max_concurrent_streams", STREAMS_OF_ONE_CONNECTION_MAX),
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
        self._methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            METHOD: grpc.stream_stream_rpc_method_handler(self._call),
            ALIVE_METHOD: grpc.unary_unary_rpc_method_handler(_alive),
        }
        self._reading: dict[grpc.ServicerContext, None] = {}  # longest first
        self._lock = threading.Lock()
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
        """gRPC's hook: the handler of a method, or None if there is no such method. Who has no token learns not even that."""
        given = dict(handler_call_details.invocation_metadata or ()).get(TOKEN_KEY, "")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._token):
            return _DENIED
        return self._methods.get(handler_call_details.method)

    def _call(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        left_s = context.time_remaining()
        if left_s is None or left_s > DEADLINE_S_MAX:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"A call needs a deadline, at most {DEADLINE_S_MAX:g} s from now.",
            )
        try:
            with self._while_reading(context):
                request, terms = read_frames(requests, self._payload_bytes_max)
            if not isinstance(request, m.Request):
                raise StoreError(f"A {type(request).__name__} is no request.")
            self.calls += 1
            timeout_s = min(terms.timeout_ms / 1000, left_s)
            reply = self._host.call(request, timeout_s, self._traceparent(context))
            yield from frames(reply, Terms(wire=terms.wire))
        except PkmError as error:
            yield from frames(failure(error))
        except grpc.RpcError:  # the call has ended meanwhile: there is nobody to be told
            return
        except Exception:
            _log.exception("a call failed")
            context.abort(grpc.StatusCode.INTERNAL, "The shard failed on this call; its log says why.")

    def _traceparent(self, context: grpc.ServicerContext) -> str:
        if self._host.begin_span is None:
            return ""
        given = dict(context.invocation_metadata()).get(TRACEPARENT_KEY, "")
        return given if isinstance(given, str) else ""

    @contextmanager
    def _while_reading(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Where many calls wait for their requests, the one that has waited longest is ended."""
        with self._lock:
            longest = next(iter(self._reading)) if len(self._reading) >= READING_MAX else None
            if longest is not None:
                del self._reading[longest]
            self._reading[context] = None
        if longest is not None:
            longest.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._reading.pop(context, None)

    def stop(self, grace_s: float = 1.0) -> None:
        """Stop taking calls, and end those under way after `grace_s`."""
        self._server.stop(grace_s).wait()


def _alive(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b""


def _deny(requests: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "The job's token is missing or wrong.")


# As a stream, for which gRPC waits for no request.
_DENIED: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_deny)
