"""The cross entropy of a model's output layer, whose logits `[tokens, vocabulary]` are never in memory all at once.

torch has it from 2.13 on, the version that this project pins. A machine with a GPU may bring an older torch of its own: there
the same is made of operations that every torch has, a few tokens at a time, and their logits once more in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TOKENS_AT_ONCE = 512
PADDING = -100  # a target that counts nothing


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over tokens, in nats: hidden `[T, dim]` and weight `[V, dim]` of one type, targets int64 `[T]` or PADDING."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        return summed_in_parts(hidden, weight, targets)
    return F.linear_cross_entropy(
        hidden,
        weight,
        targets,
        reduction="sum",
        ignore_index=PADDING,
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=TOKENS_AT_ONCE),
    )


def summed_in_parts(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`summed_cross_entropy` where torch does not have it."""
    total = hidden.new_zeros(())
    parts = (torch.split(tensor, TOKENS_AT_ONCE) for tensor in (hidden, targets))
    for some, their_targets in zip(*parts, strict=True):
        total = total + checkpoint(
            _of_part, some, weight, their_targets, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _of_part(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum", ignore_index=PADDING)
