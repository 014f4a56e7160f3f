"""Learning rates as functions of the step: a warm-up, then constant, cosine or inverse square root.

The values have a schedule of their own, constant by default: their rate does not follow that of the dense weights
unless asked (Lample et al. 2019 train the values at a constant rate).
"""

from __future__ import annotations

import math

from workers.job_spec import TrainSpec
from workers.memory_spec import ValuesSpec


def dense_factor(train: TrainSpec, step: int) -> float:
    """Factor on `train.lr` in step `step` (from 0): rises linearly over the warm-up, then follows the schedule.

    cosine falls to a tenth at the last step; inverse_sqrt falls with sqrt(warmup / step).
    """
    warmup = max(1, train.warmup_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if train.schedule == "cosine":
        done = (step - warmup) / max(1, train.steps - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
    if train.schedule == "inverse_sqrt":
        return math.sqrt(warmup / (step + 1))
    return 1.0


def values_factor(values: ValuesSpec, train: TrainSpec, step: int) -> float:
    """Factor on `values.lr` in step `step` (from 0); linear and cosine fall from 1 to lr_end / lr at the end."""
    if values.schedule == "dense":
        return dense_factor(train, step)
    done = step / train.steps
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
        values.schedule
    ]
    end = values.lr_end / values.lr if values.lr else 0.0
    return end + (1 - end) * fall
