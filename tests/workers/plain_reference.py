"""Independent models for tests: plain PyTorch with autograd, dense tables, and top-k over all n*n keys.

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


def plain_scores(x: Tensor, p: Mapping[str, Tensor], norm: str) -> Tensor:
    """Tokens `[T, dim]` -> the scores of all keys `[T, H, keys]`."""
    keys = p["flat_keys.keys"] if "flat_keys.keys" in p else p["product_keys.sub_keys"]
    queries = plain_queries(x, p, norm).reshape(x.shape[0], keys.shape[0], -1)
    width = keys.shape[-1]
    scale = p.get("product_keys.scale", p.get("flat_keys.scale"))
    if scale is not None:  # qk-norm: each part of a query that meets a key, and each key
        parts = queries.unflatten(-1, (-1, width))
        one, zero = torch.ones(width, dtype=x.dtype), torch.zeros(width, dtype=x.dtype)
        queries = layer_norm(parts.reshape(-1, width), scale, zero).reshape(queries.shape)
        keys = layer_norm(keys.reshape(-1, width), one, zero).reshape(keys.shape) / width**0.5
    if "flat_keys.keys" in p:
        return torch.stack([queries[:, h] @ keys[h].T for h in range(len(keys))], dim=1)
    return all_scores(queries, keys)


def plain_memory(
    x: Tensor,
    table: Tensor,
    p: Mapping[str, Tensor],
    *,
    k: int,
    norm: str,
    weights: str = "softmax",
    slots: str = "values",
) -> Tensor:
    """The layer's output for tokens `[T, dim]` that are all real, in training mode; table `[K, D]`."""
    scores, keys = plain_scores(x, p, norm).topk(k)
    shares = scores / k if weights == "scores" else scores.exp() / scores.exp().sum(-1, keepdim=True)
    slot_of_key = table
    if "slots.matrices" in p:  # the whole table of all keys, block by block
        slot_of_key = torch.cat([table @ matrix.T for matrix in p["slots.matrices"]])
    chosen = slot_of_key[keys]  # [T, H, k, D]
    if slots == "experts":
        dim = x.shape[1]
        inner = (chosen[..., :dim] * x[:, None, None, :]).sum(-1, keepdim=True)
        chosen = inner * (1 + torch.erf(inner / 2**0.5)) / 2 * chosen[..., dim:]
    y = (shares[..., None] * chosen).sum(dim=(1, 2))
    if "projection.weight" in p:
        y = y @ p["projection.weight"].T
    if "gate.gate.weight" in p:
        opening = x @ p["gate.gate.weight"].T
        y = (y * opening / (1 + (-opening).exp())) @ p["gate.output.weight"].T
    return y


def plain_transformer_hidden(
    p: Mapping[str, Tensor],
    tokens: Tensor,
    mask: Tensor,
    tables: Mapping[int, Tensor],
    *,
    layers: int,
    heads: int,
    look_ahead: int,
    k: int,
    norm: str,
) -> Tensor:
    """Tokens `[B, L]` -> the stream before the output layer `[B, L, dim]`, in training mode.

    `tables` by the number of the memory layer, from 1. One layer after the other, and a memory's answer is computed
    where it is added, from the stream that was kept for its query.
    """
    x = p["embedding.weight"][tokens]
    streams = {}
    for number in range(1, layers + 1):
        layer = _below(p, f"layers.{number - 1}.")
        x = x + plain_attention(rms_norm(x, layer["attention_norm.weight"]), layer, heads)
        streams[number] = x
        if "feed_forward.inner.weight" in layer:
            inner = rms_norm(x, layer["norm.weight"]) @ layer["feed_forward.inner.weight"].T
            gelu = inner * (1 + torch.erf(inner / 2**0.5)) / 2
            x = x + gelu @ layer["feed_forward.output.weight"].T
        if number in tables:
            asking = rms_norm(streams[number - look_ahead], layer["norm.weight"])[mask]
            answer = plain_memory(asking, tables[number], _below(layer, "memory."), k=k, norm=norm)
            x = x.masked_scatter(mask[..., None], x[mask] + answer)
    return rms_norm(x, p["norm.weight"])


def plain_attention(x: Tensor, p: Mapping[str, Tensor], heads: int) -> Tensor:
    """Causal attention, `[B, L, dim]` -> `[B, L, dim]`; positions turn pairs as complex numbers."""
    length, dim = x.shape[1:]
    width = dim // heads
    angles = torch.outer(
        torch.arange(length, dtype=x.dtype), 10_000.0 ** -(torch.arange(0, width, 2, dtype=x.dtype) / width)
    )
    outputs = []
    for head in range(heads):
        query, key, value = (
            x @ p["attention.query_key_value.weight"][start : start + width].T
            for start in range(head * width, 3 * dim, dim)
        )
        turned = []
        for features in (query, key):
            pairs = torch.complex(*features.chunk(2, dim=-1)) * torch.exp(1j * angles)
            turned.append(torch.cat([pairs.real, pairs.imag], dim=-1))
        scores = turned[0] @ turned[1].mT / width**0.5
        future = torch.arange(length)[:, None] < torch.arange(length)
        outputs.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ value)
    return torch.cat(outputs, dim=-1) @ p["attention.output.weight"].T


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).rsqrt() * weight


def _below(p: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
