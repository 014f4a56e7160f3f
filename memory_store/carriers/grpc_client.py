"""The carrier for a shard in another process or on another host: gRPC, in bounded chunks."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import grpc
from grpc.experimental import ChannelOptions

from memory_store import messages as m
from memory_store.carriers.grpc_credentials import Credentials, open_channel
from memory_store.carriers.grpc_server import CHANNEL_OPTIONS, METHOD
from memory_store.carriers.grpc_sign_of_life import TOKEN_KEY
from memory_store.errors import ShardUnreachableError, StoreError
from memory_store.reused_memory import keep_freed_memory
from memory_store.traces import TRACEPARENT_KEY, traceparent
from memory_store.wire import Terms, frames, raised, read_frames
from memory_store.wire_types import WireType

CALLS_AT_ONCE = 8
# The thread that waits for frames takes them from the connection itself, without another that hands each over.
_READ_BY_THE_CALLER = (ChannelOptions.SingleThreadedUnaryStream, 1)
# Otherwise channels to one address share a connection: a new one would begin with the pause before the next attempt
# that an old one, whose shard has died, is in.
_A_CONNECTION_OF_ITS_OWN = ("grpc.use_local_subchannel_pool", 1)
# A shard that is silent, or a network that swallows everything, is found by asking for a sign of life.
_SIGNS_OF_LIFE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_OPTIONS = [*CHANNEL_OPTIONS, *_SIGNS_OF_LIFE, _READ_BY_THE_CALLER, _A_CONNECTION_OF_ITS_OWN]
# The shard was there and could not do it; asking once more would not help.
_REFUSALS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_ANSWER_MARGIN_S = 5.0  # the shard ends a wait in time to say what it waited for


class GrpcCarrier:
    """One shard at `address` (host:port), reached with the job's `token` and `credentials`, if it has some; vectors travel
    as `wire` says."""

    def __init__(
        self,
        address: str,
        token: str,
        wire: WireType = "float32",
        credentials: Credentials | None = None,
    ) -> None:
        keep_freed_memory()
        self.address = address
        self._wire: WireType = wire
        self._channel = open_channel(address, _OPTIONS, credentials)
        self._send_frame: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(METHOD)
        self._send_stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(METHOD)
        self._metadata: tuple[tuple[str, str], ...] = ((TOKEN_KEY, token),)
        self._calls = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix=f"shard-{address}")

    def submit(self, request: m.Request, timeout_s: float) -> Future[m.Reply]:
        metadata = self._metadata
        if parent := traceparent.get():
            metadata = (*metadata, (TRACEPARENT_KEY, parent))
        return self._calls.submit(self._call, request, timeout_s, metadata)

    def _call(self, request: m.Request, timeout_s: float, metadata: tuple[tuple[str, str], ...]) -> m.Reply:
        deadline = timeout_s + _ANSWER_MARGIN_S
        sent = frames(request, Terms(int(timeout_s * 1000), self._wire))
        first, second = next(sent), next(sent, None)
        try:
            # A request of one frame, as most are, needs no thread that feeds a stream.
            if second is None:
                replies = self._send_frame(first, timeout=deadline, metadata=metadata)
            else:
                stream = chain([first, second], sent)
                replies = self._send_stream(stream, timeout=deadline, metadata=metadata)
            reply, _ = read_frames(replies)
        except grpc.RpcError as error:
            raise self._explained(error, request) from None
        if isinstance(reply, m.Failure):
            raise raised(reply)
        if not isinstance(reply, m.Reply):
            raise StoreError(f"Shard {self.address} sent a {type(reply).__name__}, which is no reply.")
        return reply

    def _explained(self, error: grpc.RpcError, request: m.Request) -> StoreError:
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return StoreError(f"Shard {self.address} belongs to another job: it does not take this token.")
        kind = StoreError if code in _REFUSALS else ShardUnreachableError
        return kind(
            f"Shard {self.address} did not answer {type(request).__name__} ({code.name}); "
            "if it died, it is started again and the job goes on."
        )

    def close(self) -> None:
        self._calls.shutdown(wait=False)
        self._channel.close()
