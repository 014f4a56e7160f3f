"""Product-key selection as it is usually written in PyTorch: the peer of our exact selection.

The k best sub-keys of each half, the sums of all k*k pairs, the k best of those (Lample et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.product_keys import Selection


def select_plainly(queries: Tensor, sub_keys: Tensor, k: int) -> Selection:
    """The k best keys of every query: queries `[T, H, 2 C]`, sub_keys `[H, 2, n, C]`; gradients by autograd."""
    tokens, heads = queries.shape[:2]
    _, _, n, width = sub_keys.shape
    halves = queries.view(tokens, heads, 2, width)
    scores = torch.einsum("thsc,hsnc->thsn", halves, sub_keys)
    best, names = scores.topk(k, dim=-1)
    pairs = best[:, :, 0, :, None] + best[:, :, 1, None, :]
    rows = names[:, :, 0, :, None] * n + names[:, :, 1, None, :]
    chosen = pairs.flatten(2).topk(k, dim=-1)
    return Selection(rows.flatten(2).gather(2, chosen.indices), chosen.values)
