"""How the numeric kernels are compiled: Numba, cached on disk, on one pinned threading layer.

Kernels are called from several threads at once (a shard's server, a trainer that sends one gradient while it
computes the next). Numba's `omp` layer allows that; its `workqueue` layer aborts the process. So the layer is
pinned here, before the first parallel kernel runs, and every kernel module takes its decorator from here.
Compiled code is cached, otherwise each shard would spend seconds compiling at its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined, unused-ignore]


def compiled(
    *, parallel: bool = False, inline: bool = False, reorder_sums: bool = False
) -> Callable[[Function], Function]:
    """Compile a function with Numba, without the GIL, cached on disk.

    `parallel` lets `prange` loops run on all threads; `inline` marks a small function that other kernels
    call; `reorder_sums` lets the compiler add in another order, so that a dot product uses vector
    instructions (the order is fixed when the code is compiled: a run still repeats bit for bit). Errors in
    arithmetic follow NumPy (division by zero gives infinity instead of raising).
    """

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "parallel": parallel}
        if reorder_sums:
            options["fastmath"] = {"reassoc", "contract", "nsz"}
        if inline:
            options["inline"] = "always"
        return cast(Function, numba.njit(**options)(function))

    return decorate
