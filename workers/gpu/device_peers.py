"""The trainers whose devices hold a table together: each has the rows of one shard, and all look up in lockstep.

All trainers' rows and weights come to each (`gather`), each sums up what it has of them, and every trainer gets the sums of
its own bags, added up in the order of ranks (`sum_of_mine`). Backward the sums' gradient goes to each, and the weights' comes
back. Sizes are those of the batch alone, so nobody waits for a device to learn them. All must make the same lookups in the
same order. They use the group that averages the dense gradient, so that a device runs one collective after the other: of two
groups at once each might wait at another device for the other's turn. All devices come to both in autograd's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Peers(Protocol):
    """The trainers of a job as their tables see them: this is number `rank` of `world`."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def gather(self, mine: Tensor) -> Tensor:
        """The tensors `[T, ...]` of all ranks, one below the other: `[W T, ...]`."""
        ...

    def sum_of_mine(self, parts: Tensor) -> Tensor:
        """What all ranks have found for this rank's part of `[W T, X]`, added up: `[T, X]`."""
        ...

    def total(self, number: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        ...


@dataclass(frozen=True)
class Alone:
    """One trainer, which has all rows."""

    rank: int = 0
    world: int = 1

    def gather(self, mine: Tensor) -> Tensor:
        return mine

    def sum_of_mine(self, parts: Tensor) -> Tensor:
        return parts

    def total(self, number: Tensor) -> Tensor:
        return number


class ProcessPeers:
    """All trainers of the process group of this process."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def gather(self, mine: Tensor) -> Tensor:
        found = mine.new_empty(self.world * mine.shape[0], *mine.shape[1:])
        dist.all_gather_into_tensor(found, mine.contiguous())
        return found

    def sum_of_mine(self, parts: Tensor) -> Tensor:
        found = torch.empty_like(parts)
        dist.all_to_all_single(found, parts.contiguous())
        return found.view(self.world, -1, *parts.shape[1:]).sum(0)

    def total(self, number: Tensor) -> Tensor:
        whole = number.clone()
        dist.all_reduce(whole)
        return whole


def gathered_padded(peers: Peers, mine: Tensor) -> tuple[Tensor, Tensor]:
    """`gather` where ranks may have different numbers of bags: filled up with zeros, and which bags are real, bool `[W T]`.

    Waits for the numbers.
    """
    sizes = peers.gather(torch.tensor([mine.shape[0]], device=mine.device)).tolist()
    filled = mine.new_zeros(max(sizes), *mine.shape[1:])
    filled[: mine.shape[0]] = mine
    places = torch.arange(max(sizes), device=mine.device)
    real = torch.cat([places < size for size in sizes])
    return peers.gather(filled), real
