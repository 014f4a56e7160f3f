"""CUDA graphs played on a CPU: a backend of torch.compile whose graphs write to the same memory at every replay.

A round of replays begins with `torch.compiler.cudagraph_mark_step_begin`. What the graphs of the round before have written
is NaN from then on, so that whoever still reads it there has NaN too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func


class PlayedGraphs:
    """The backend. `compiled` counts the graphs that were compiled, backward ones apart; `written` is the memory of each
    replay of a round, in order."""

    def __init__(self) -> None:
        self.compiled, self.compiled_backward, self.rounds = 0, 0, 0
        self.written: list[list[Tensor | None]] = []
        self._place = 0
        self._backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile_backward)

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = self._backend(graph, inputs)
        return compiled

    def begin_round(self) -> None:
        """In the place of `torch.compiler.cudagraph_mark_step_begin`."""
        self.rounds, self._place = self.rounds + 1, 0
        for memory in self.written:
            for tensor in memory:
                if tensor is not None and tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        return self._replayed(graph)

    def _compile_backward(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.compiled_backward += 1
        return self._replayed(graph)

    def _replayed(self, graph: torch.fx.GraphModule) -> Callable[..., Any]:
        def replay(*inputs: Any) -> list[Any]:
            given = {_memory(value) for value in inputs if isinstance(value, Tensor)}
            found = graph(*inputs)
            if self._place == len(self.written):
                self.written.append([_room(value, given) for value in found])
            memory = self.written[self._place]
            self._place += 1
            for room, value in zip(memory, found, strict=True):
                if room is not None:
                    room.copy_(value)
            return [
                value if room is None else room.detach() for room, value in zip(memory, found, strict=True)
            ]

        boxed: Callable[..., Any] = make_boxed_func(replay)
        return boxed


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _room(value: Any, given: set[int]) -> Tensor | None:
    """Memory for a result that is no input of its graph."""
    if not isinstance(value, Tensor) or _memory(value) in given:
        return None
    return torch.empty_like(value)
