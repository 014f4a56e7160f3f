"""Batch norm whose statistics are those of all tokens of all trainers.

Which rows a query selects depends on these statistics. Were they each trainer's own, the same token would
select other rows on another trainer. Ranks may hold different numbers of tokens, none included; padding is
no token and must be taken out before. (`nn.SyncBatchNorm` needs CUDA.)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the tokens of all ranks of the default process group; with one rank, just that.

    In training every rank must call it, with any number of tokens. The running statistics come out equal on
    all ranks; they stay when there are fewer than two tokens in all, which have no unbiased variance.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[T, F]` -> `[T, F]`; gradients flow through the statistics, to the tokens of all ranks."""
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if not self.training or (alone and input.shape[0] > 1):
            return super().forward(input)
        total = (lambda part: part) if alone else _sum_over_ranks
        sums = total(torch.cat([input.sum(0), input.new_full((1,), input.shape[0])]))
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        centred = input - mean
        variance = total(centred.square().sum(0)) / count
        unbiased = variance * count / (count - 1).clamp(min=1)
        self._track(mean.detach(), unbiased.detach(), count > 1)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    def _track(self, mean: Tensor, variance: Tensor, enough: Tensor) -> None:
        """Move the running statistics, where there are `enough` tokens: a number on the device, for which nobody waits."""
        assert self.momentum is not None
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(current, self.momentum * enough.to(running.dtype))
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += enough


def _sum_over_ranks(part: Tensor) -> Tensor:
    """The sum over all ranks, on every rank; the gradient is summed over all ranks too."""
    whole: Tensor = all_reduce(part)  # type: ignore[no-untyped-call]
    return whole
