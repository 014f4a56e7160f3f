"""The trainer's side: the model with its memory layers, the data, the training and its evaluation.

Names are imported on first use, so that `from workers.job_spec import JobSpec` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.job_spec import JobSpec
    from workers.memory_layer import MemoryLayer

__all__ = ["JobSpec", "MemoryLayer"]

_HOMES = {"JobSpec": "workers.job_spec", "MemoryLayer": "workers.memory_layer"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
