"""What a service answers: the calls of protos/jobs.proto, for the tenant whose token they carry.

A person's mistake comes back as one clear sentence; any other error as a reference to the service's log, and not a word more.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from memory_store.errors import PkmError, UsageError
from protos import jobs_pb2 as pb
from service.jobs.asks import Asks
from service.jobs.cluster import ClusterUnreachableError
from service.jobs.cut_files import CutFiles
from service.jobs.database import JobDatabase
from service.jobs.demand import Host
from service.jobs.errors import JobConflictError, NoSuchJobError
from service.jobs.folder import ServiceFolder
from service.jobs.refusals import Context, refuse
from service.jobs.scheduling import Quotas
from service.jobs.submissions import Submissions
from service.jobs.tokens import Tokens
from service.jobs.turns import Turns
from service.jobs.views import Views
from service.jobs.watchers import Watchers

SERVICE = pb.DESCRIPTOR.services_by_name["JobService"]
STREAMS_MAX = 1000  # of one tenant: others must find room beside him
_CODES: tuple[tuple[type[PkmError], grpc.StatusCode], ...] = (
    (NoSuchJobError, grpc.StatusCode.NOT_FOUND),
    (JobConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (ClusterUnreachableError, grpc.StatusCode.FAILED_PRECONDITION),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
)

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class JobApi:
    """Answers from `database` and the run folders under `folders`; `hosts` gives what the hosts of the cluster have. Made in
    the event loop in which it answers.
    """

    def __init__(
        self,
        database: JobDatabase,
        tokens: Tokens,
        folders: ServiceFolder,
        hosts: Callable[[], Sequence[Host]],
        quotas: Quotas | None = None,
    ) -> None:
        self._tokens, self._watchers = tokens, Watchers()
        turns = Turns()
        submissions = Submissions(database, folders, hosts, quotas or Quotas(), turns)
        self.asks = Asks(database, turns)
        self.views = Views(database, folders, hosts, self._watchers, turns)
        cut_files = CutFiles(database, folders, turns)
        self._calls: dict[str, Callable[[Any, str], Any]] = {
            "Submit": submissions.submit,
            "Reshard": submissions.reshard,
            "Cancel": self.asks.cancel,
            "Pause": self.asks.pause,
            "Resume": self.asks.resume,
            "Get": self.views.get,
            "List": self.views.page,
            "Watch": self.views.watch,
            "Logs": self.views.logs,
            "Metrics": self.views.metrics,
            "Cuts": self.views.cuts,
            "Cluster": self.views.cluster,
            "CutFiles": cut_files.names,
            "ReadCutFile": cut_files.read,
        }
        self._streams: Counter[str] = Counter()
        database.on_change = self._watchers.changed

    def progressed(self, number: int) -> None:
        """The job of this number has got on; from any thread."""
        self._watchers.changed(number)

    def handler(self) -> grpc.GenericRpcHandler:
        """All calls, as a server takes them."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in SERVICE.methods:
            stream = method.server_streaming
            make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
            answer = self._streaming if stream else self._answering
            handlers[method.name] = make(
                answer(self._calls[method.name], getattr(pb, method.input_type.name)),
                response_serializer=getattr(pb, method.output_type.name).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    # Requests are read here and not by gRPC, which would tell the asker of the error that it meets.

    def _answering(
        self, call: Callable[[Any, str], Awaitable[_Answer]], kind: type[Message]
    ) -> Callable[[bytes, Context], Awaitable[_Answer | None]]:
        async def answer(request: bytes, context: Context) -> _Answer | None:
            try:
                return await call(_read(kind, request), self._tenant(context))
            except Exception as error:
                _fail(context, error)
                return None

        return answer

    def _streaming(
        self, call: Callable[[Any, str], AsyncIterator[_Answer]], kind: type[Message]
    ) -> Callable[[bytes, Context], AsyncIterator[_Answer]]:
        async def answer(request: bytes, context: Context) -> AsyncIterator[_Answer]:
            tenant = self._tenant(context)
            if self._streams[tenant] >= STREAMS_MAX:
                refuse(
                    context,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{STREAMS_MAX} watches and logs of yours are open already; close some of them.",
                )
                return
            self._streams[tenant] += 1
            try:
                async for part in call(_read(kind, request), tenant):
                    yield part
            except Exception as error:
                _fail(context, error)
            finally:
                self._streams[tenant] -= 1

        return answer

    def _tenant(self, context: Context) -> str:
        tenant = self._tokens.tenant_of(context.invocation_metadata() or ())
        if tenant is None:  # the server's door (door.py) has let nobody in without a token
            raise PermissionError("a call without a tenant")
        return tenant


def _read(kind: type[Message], request: bytes) -> Message:
    try:
        return kind.FromString(request)
    except DecodeError:
        raise UsageError(f"The request is no {kind.DESCRIPTOR.full_name}.") from None


def _fail(context: Context, error: Exception) -> None:
    """End a call with what its asker may know of an error."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return refuse(context, code, str(error))
    reference = secrets.token_hex(4)
    _log.error("call failed, reference %s", reference, exc_info=error)
    return refuse(
        context, grpc.StatusCode.INTERNAL, f"The service failed; its log has the reason under {reference}."
    )
