"""The trainer's side: the model with its memory layers, the data, the training loop and its evaluation.

Names are imported on first use, so that `from workers.job_spec import JobSpec` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.job_spec import JobSpec as JobSpec

__all__ = ["JobSpec"]


def __getattr__(name: str) -> object:
    if name == "JobSpec":
        from workers.job_spec import JobSpec

        return JobSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
