"""A service's door: who is let in, and how many of each tenant's calls at a time.

What is refused is refused in turn: a tenant's refusals follow each other slowly, so that whoever asks again at once does not
keep the service from answering others. A call has to bring its request soon, since until then it takes a place and does
nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from service.jobs.refusals import Context, refuse
from service.jobs.tokens import Tokens

CALLS_OF_ONE_MAX = 4096  # a burst of submissions waits for its turns
REFUSALS_OF_ONE_MAX = 8192  # that wait to be told; more are told at once
REQUEST_WITHIN_S = 20.0
_REFUSED_EVERY_S = 0.005
_OPEN = frozenset({"/grpc.health.v1.Health/Check"})
_STRANGERS = ""  # no tenant has this name


class Door(grpc.aio.ServerInterceptor):
    """Lets nobody in without a token; whoever has none learns not even which calls there are."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._calls: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._refusing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

        async def deny(requests: object, context: Context) -> None:
            await self._refuse(
                _STRANGERS,
                context,
                grpc.StatusCode.UNAUTHENTICATED,
                "This needs a token of the service; see pkm --help.",
            )

        # As a stream, for which gRPC waits for no request.
        self._denied: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(deny)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        call: grpc.HandlerCallDetails,
    ) -> Any:
        tenant = self._tokens.tenant_of(call.invocation_metadata or ())
        if tenant is None and call.method not in _OPEN:
            return self._denied
        handler = await continuation(call)
        return None if handler is None else self._bounded(handler, tenant or call.method)

    def _bounded(
        self, handler: grpc.RpcMethodHandler[Any, Any], whose: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The same calls, but for what is refused. All as streams, for which gRPC waits for no request."""
        behaviour: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )

        async def answer(requests: AsyncIterator[Any], context: Context) -> None:
            if self._calls[whose] >= CALLS_OF_ONE_MAX:
                await self._refuse(
                    whose,
                    context,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{CALLS_OF_ONE_MAX} calls of yours wait for their answers already; send more when some have come.",
                )
                return
            self._calls[whose] += 1
            try:
                asked = requests if handler.request_streaming else await _only(requests, context)
                if asked is None:
                    return
                answers = behaviour(asked, context)
                if inspect.isasyncgen(answers):
                    async for part in answers:
                        await context.write(part)
                elif (only := await answers) is not None:
                    await context.write(only)
            finally:
                self._calls[whose] -= 1

        return grpc.stream_stream_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    async def _refuse(self, whose: str, context: Context, code: grpc.StatusCode, why: str) -> None:
        if self._refusals[whose] < REFUSALS_OF_ONE_MAX:
            self._refusals[whose] += 1
            try:
                async with self._refusing[whose]:
                    await asyncio.sleep(_REFUSED_EVERY_S)
            finally:
                self._refusals[whose] -= 1
        refuse(context, code, why)


async def _only(requests: AsyncIterator[Any], context: Context) -> Any | None:
    """The one request of a call; None after refusing a call that brings none."""
    try:
        async with asyncio.timeout(REQUEST_WITHIN_S):
            async for request in requests:
                return request
    except TimeoutError:
        refuse(
            context,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"The request has not come within {REQUEST_WITHIN_S:g} s.",
        )
        return None
    refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "The call ended before its request.")
    return None
