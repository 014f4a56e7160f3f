"""The entries of a lookup grouped by the row they select, as grouping.py groups them, but on the device.

All shapes are those of the entries, whatever their rows: nobody waits to learn how many different rows there are. That is one
of the results.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class EntryGroups(NamedTuple):
    """N entries by address; U, the number of their different addresses, is known to the device alone.

    All int64. addresses: `[N]`, the first U of them the different ones, ascending. distinct: `[1]`, U. starts: `[N + 1]`, of
    which the first U + 1 count: group `u` has entries `order[starts[u] : starts[u + 1]]`. order: `[N]`, entries of a group
    in their order. group_of_entry: `[N]`.
    """

    addresses: Tensor
    distinct: Tensor
    starts: Tensor
    order: Tensor
    group_of_entry: Tensor


def group_entries(addresses: Tensor) -> EntryGroups:
    """Group entries, int64 `[N]`, by equal address."""
    size = addresses.numel()
    ordered, order = addresses.sort(stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    group = begins.cumsum(0) - 1
    starts = torch.searchsorted(group, torch.arange(size + 1, device=addresses.device))
    return EntryGroups(
        addresses=ordered[starts[:size].clamp(max=size - 1)],
        distinct=begins.sum(0, keepdim=True),
        starts=starts,
        order=order,
        group_of_entry=torch.empty_like(order).scatter_(0, order, group),
    )
