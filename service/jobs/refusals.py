"""How a call is refused."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]


def refuse(context: Context, code: grpc.StatusCode, why: str) -> None:
    """End a call so; its handler has to return next.

    Not by `abort`: the call would refer to the error which that raises, and the error to the call. Many such circles make
    Python look for them, through all objects of all calls, while nobody is answered.
    """
    context.set_code(code)
    context.set_details(why)
