"""Batch norm whose statistics are those of all tokens of all trainers.

Which rows a query selects depends on these statistics. Were they each trainer's own, the same token would select other rows
on another trainer. `nn.SyncBatchNorm` does this on CUDA only. Ranks may hold different numbers of tokens, none included;
padding is no token and must be taken out before. In evaluation mode, and with one trainer, this is `nn.BatchNorm1d`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the tokens `[T, F]` of all ranks of the default process group.

    Every rank must call it. The running statistics come out equal on all of them; they do not move when there are fewer
    than two tokens in all, where an unbiased variance does not exist.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[T, F]` -> `[T, F]`; gradients flow through the statistics, to the tokens of all ranks."""
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if not self.training or (alone and input.shape[0] > 1):
            return super().forward(input)
        total = (lambda part: part) if alone else all_reduce
        sums = total(torch.cat([input.sum(0), input.new_full((1,), input.shape[0])]))
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        centred = input - mean
        variance = total(centred.square().sum(0)) / count
        self._track(mean.detach(), variance.detach(), count)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        unbiased = variance * count / (count - 1).clamp(min=1)
        step = self.momentum * (count > 1)
        self.running_mean += step * (mean - self.running_mean)
        self.running_var += step * (unbiased - self.running_var)
        self.num_batches_tracked += count > 1
