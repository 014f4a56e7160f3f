"""An independent memory layer for tests: plain PyTorch with autograd, a dense table, and top-k over all n*n
keys.

Nothing here is shared with workers or memory_store. Parameters go by the names they have in a MemoryLayer's
state_dict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def all_scores(queries: Tensor, sub_keys: Tensor) -> Tensor:
    """Score of every key: queries `[T, H, 2C]`, sub-keys `[H, 2, n, C]` -> `[T, H, n*n]`."""
    first, second = queries.chunk(2, dim=-1)
    scores_1 = torch.stack([first[:, h] @ sub_keys[h, 0].T for h in range(sub_keys.shape[0])], dim=1)
    scores_2 = torch.stack([second[:, h] @ sub_keys[h, 1].T for h in range(sub_keys.shape[0])], dim=1)
    return (scores_1[:, :, :, None] + scores_2[:, :, None, :]).flatten(2)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(0)
    variance = ((x - mean) ** 2).mean(0)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def plain_queries(x: Tensor, p: Mapping[str, Tensor], norm: str) -> Tensor:
    """`[T, dim]` -> `[T, H * query_dim]`."""
    network = "query_network.network."
    queries = x @ p[network + "0.weight"].T + p[network + "0.bias"]
    if network + "2.weight" in p:
        queries = queries.clamp(min=0) @ p[network + "2.weight"].T + p[network + "2.bias"]
    if norm == "none":
        return queries
    normalise = {"batch": batch_norm, "layer": layer_norm}[norm]
    return normalise(queries, p["query_network.norm.weight"], p["query_network.norm.bias"])


def plain_memory(x: Tensor, table: Tensor, p: Mapping[str, Tensor], *, k: int, norm: str) -> Tensor:
    """The layer's output for tokens `[T, dim]` that are all real, in training mode; table `[K, dim]`."""
    sub_keys = p["product_keys.sub_keys"]
    queries = plain_queries(x, p, norm).reshape(x.shape[0], sub_keys.shape[0], -1)
    scores, rows = all_scores(queries, sub_keys).topk(k)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    y = (weights[..., None] * table[rows]).sum(dim=(1, 2))
    if "gate.gate.weight" in p:
        opening = x @ p["gate.gate.weight"].T
        y = (y * opening / (1 + (-opening).exp())) @ p["gate.output.weight"].T
    return y
