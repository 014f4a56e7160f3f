"""Which calls would have the host wait for all that a GPU was given, were its tensors there; the CPU plays the GPU.

Operations are seen as torch dispatches them: those that read a number, and those whose results have a shape that depends on
numbers, an index by a mask among them. Methods that take a whole tensor to the host, which on a CPU dispatch nothing, are
replaced. What on a GPU is a kernel, and on a CPU is not, is left out (`kernel`), as are copies of the played device and
AdamW, which counts its steps in tensors of the host wherever the weights lie.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal"),
    *("nonzero", "masked_select", "bincount", "histc"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_TAKING = ("cpu", "tolist", "numpy", "__array__")
_LEFT_OUT = ("/torch/optim/", "/held_streams.py")
_IN_KERNEL: ContextVar[bool] = ContextVar("in_kernel", default=False)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, in the place of a kernel of the GPU: nothing in it counts."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        token = _IN_KERNEL.set(True)
        try:
            return function(*arguments, **named)
        finally:
            _IN_KERNEL.reset(token)

    return run


@contextmanager
def seen_waits() -> Iterator[list[str]]:
    """Calls that wait, each with its place in the code, of this thread while the context lasts."""
    seen: list[str] = []

    def note(call: str) -> None:
        stack = traceback.extract_stack()
        if not _IN_KERNEL.get() and not any(part in frame.filename for frame in stack for part in _LEFT_OUT):
            ours = [
                frame for frame in stack if "/workers/" in frame.filename and "/tests/" not in frame.filename
            ]
            seen.append(f"{call} in {ours[-1].filename}:{ours[-1].lineno}" if ours else call)

    def noting(name: str) -> Callable[..., Any]:
        method = getattr(Tensor, name)

        def call(self: Tensor, *arguments: Any, **named: Any) -> Any:
            note(f"Tensor.{name}")
            return method(self, *arguments, **named)

        return call

    with ExitStack() as stack:
        for name in _TAKING:
            stack.enter_context(mock.patch.object(Tensor, name, noting(name)))
        stack.enter_context(_Dispatched(note))
        yield seen


class _Dispatched(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        if name in _WAITING or (name in _INDEXING and _has_mask(args[1])):
            self._note(func.name())
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._note(func.name())
        return func(*args, **kwargs)


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
