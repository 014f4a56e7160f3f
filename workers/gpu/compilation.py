"""How GPU kernels are compiled, and the one place that decides where they run.

Kernels are written in Triton, which torch's CUDA build brings along. Without a GPU there is nothing to compile, so
Triton is not even imported, and every function runs its reference in torch operations. With TRITON_INTERPRET=1, set
before this is imported, Triton's interpreter runs the kernels on tensors of the CPU: slowly, to test their logic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

triton: Any = None
tl: Any = None
if INTERPRETED or torch.cuda.is_available():
    try:
        import triton  # type: ignore[no-redef, import-untyped, import-not-found, unused-ignore]
        import triton.language as tl  # type: ignore[no-redef, import-untyped, import-not-found, unused-ignore]
    except ImportError:
        triton = tl = None


def kernels_run_on(device: torch.device) -> bool:
    """Whether kernels run on tensors of `device`; if not, the references do."""
    return triton is not None and (device.type == "cuda" or (INTERPRETED and device.type == "cpu"))


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the GPU when it is first called; nothing where there is no Triton."""
    return cast(Any, triton.jit(function)) if triton is not None else function


def kernel_for_any(*arguments: str) -> Callable[[Callable[..., Any]], Any]:
    """`kernel`, of whose code these integer arguments are no part.

    The others' values are looked at: there is code for 1, for what is divisible by 16, and for the rest. What changes from
    call to call would so have something compiled in the middle of a run.
    """
    if triton is None:
        return kernel
    return cast(Callable[[Callable[..., Any]], Any], triton.jit(do_not_specialize=arguments))


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`: Triton's blocks have such sizes."""
    return 1 << max(0, number - 1).bit_length()
