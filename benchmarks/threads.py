"""How many threads the kernels and PyTorch use in this process."""

from __future__ import annotations

import os

import numba
import torch

CORES = len(os.sched_getaffinity(0))


def use_threads(threads: int) -> None:
    """Let our kernels and PyTorch run on `threads` threads."""
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
