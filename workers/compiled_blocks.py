"""The dense blocks of a model, compiled for training (`train.compile`): attention, and feed-forward where there is one.

A block is one graph without a break (`fullgraph`). Memories stay outside: their lookups leave the process. All layers share
what was compiled, and training has one shape of batch. What runs without a gradient (evaluation) runs as it is written, so
that its short last batches compile nothing. Parameters keep their names.

On a GPU a block is replayed as a CUDA graph (mode reduce-overhead; it never ran on one). Such a graph writes its results to
the same memory at each replay, and nothing that it does not know of may still read them there. Therefore:

- a forward pass begins a new round of replays: of the one before, its backward pass included, nothing is used any more;
- gradients of parameters, which add up over micro-batches, lie in memory of their own from the start, and are set to zero
  instead of being given up;
- a memory gets a copy of its output's gradient: it may be on its way to the host, on a stream of its own, when the next
  round begins.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.errors import UsageError
from workers.transformer import Layer, Transformer

P = ParamSpec("P")
Block = Callable[Concatenate[Layer, P], Tensor]


def compile_blocks(model: Transformer, device: torch.device) -> None:
    """Have the blocks of a model that trains on `device` compiled when they first run.

    From now on gradients must be set to zero, not to None. Raises UsageError without a compiler.
    """
    check_compiler(device)
    # Or with several trainers a block of more than a bucket of gradients would become several graphs. There is no need: each
    # block's backward pass is a graph of its own, between which DistributedDataParallel sends.
    torch._dynamo.config.optimize_ddp = False
    mode = "reduce-overhead" if device.type == "cuda" else None
    attend = _in_training(Layer.attend, mode)
    add_feed_forward = _in_training(Layer.add_feed_forward, mode)
    for layer in model.blocks():
        layer.attend = partial(attend, layer)  # type: ignore[method-assign]
        layer.add_feed_forward = partial(add_feed_forward, layer)  # type: ignore[method-assign]
        if layer.memory is not None:
            layer.memory.begin = partial(_begin, layer.memory.begin)  # type: ignore[method-assign]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    # The embedding is the first thing of every forward pass.
    model.embedding.register_forward_pre_hook(_begin_round)


def check_compiler(device: torch.device) -> None:
    """Raises UsageError if nothing can be compiled here: by Inductor for a CPU in C++; for a GPU in C, by Triton, which makes
    what launches its kernels of it; both with the headers of Python."""
    if device.type == "cpu":
        language, variable, known = "C++", "CXX", ["g++"]
        wanted, otherwise = "train.compile on this device needs", "set train.compile to false"
    else:
        language, variable, known = "C", "CC", ["gcc", "clang"]
        wanted, otherwise = "Kernels on a GPU need", "set train.device to cpu"
    compilers = [os.environ[variable]] if variable in os.environ else known
    if not any(map(shutil.which, compilers)):
        raise UsageError(
            f"{wanted} a {language} compiler, and {' or '.join(compilers)} is not there; install {known[0]}, name another in "
            f"the environment variable {variable}, or {otherwise}."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise UsageError(
            f"{wanted} the headers of Python, and {header} is not there; install python3-dev, or {otherwise}."
        )


def _in_training(block: Block[P], mode: str | None) -> Block[P]:
    """A block that is compiled where gradients are computed."""
    compiled = torch.compile(block, fullgraph=True, mode=mode)

    def run(layer: Layer, /, *given: P.args, **named: P.kwargs) -> Tensor:
        return (compiled if torch.is_grad_enabled() else block)(layer, *given, **named)

    return run


def _begin_round(*_: object) -> None:
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _begin(
    begin: Callable[[Tensor, Tensor | None], Waiting[Tensor]], x: Tensor, mask: Tensor | None
) -> Waiting[Tensor]:
    """`MemoryLayer.begin`, with an output whose gradient is copied before the memory gets it."""
    recall = begin(x, mask)

    def finish() -> Tensor:
        recalled = recall()
        if recalled.requires_grad:
            recalled.register_hook(torch.clone)  # type: ignore[no-untyped-call]
        return recalled

    return finish
