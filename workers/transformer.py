"""The model: a decoder-only transformer with product-key memories at chosen layers.

Pre-norm with RMSNorm, rotary positions, causal scaled-dot-product attention, GELU feed-forward, no biases,
and one matrix as token embedding and as output layer. A memory replaces the feed-forward of its layer, or
stands beside it and is added. With `memory=None` this is the dense twin.

With a look-ahead of `a` layers, the memory of layer L takes its query from the residual stream after the attention
of layer L - a, normalised by layer L's own norm; its answer is added in layer L as ever. The lookup is under way
while the layers between are computed, and in the backward pass while they are differentiated. Without look-ahead
it is under way during the feed-forward beside it, if there is one.

The first weights of every part depend on the seed and on the part's place alone: a model with memory and
its dense twin start with the same embedding, attention and feed-forward layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_store.calls import Waiting
from memory_store.table_handle import TableHandle
from workers.cross_entropy import PADDING, summed_cross_entropy
from workers.initialization import seeded_linear
from workers.job_spec import JobSpec, ModelSpec
from workers.memory_layer import MemoryLayer
from workers.memory_spec import MemorySpec

ROTARY_BASE = 10_000.0


class Transformer(nn.Module):
    """Tokens int64 `[B, L]` -> logits over the vocabulary `[B, L, V]`.

    `tables` holds the value tables by name; each memory layer takes the one that `memory.table_name(layer)`
    names. In `forward` and `loss`, `mask` bool `[B, L]` is True at real tokens (None: all are); padding
    must come after a sequence's real tokens.
    """

    def __init__(
        self,
        model: ModelSpec,
        memory: MemorySpec | None,
        vocabulary_size: int,
        tables: Mapping[str, TableHandle],
        seed: int,
    ) -> None:
        super().__init__()
        self.head_width = model.dim // model.heads
        self.look_ahead = memory.look_ahead if memory is not None else 0
        self.embedding = nn.Embedding(vocabulary_size, model.dim)
        nn.init.normal_(self.embedding.weight, std=0.02, generator=_generator(seed, 0))
        self.layers = nn.ModuleList()
        for number in range(1, model.layers + 1):
            recall = None
            if memory is not None and number in memory.layers:
                recall = MemoryLayer(
                    model.dim,
                    tables[memory.table_name(number)],
                    sub_keys=memory.sub_keys,
                    heads=memory.heads,
                    k=memory.k,
                    query_dim=memory.query_dim,
                    query_network=memory.query_network,
                    query_norm=memory.query_norm,
                    gate=memory.gate,
                    keys=memory.keys,
                    qk_norm=memory.qk_norm,
                    weights=memory.weights,
                    slots=memory.slots,
                    value_dim=memory.value_dim,
                    value_expansion=memory.value_expansion,
                    count_uses=memory.revive_dead_after is not None,
                    seed=_seed(seed, number, 1),
                )
            replaced = recall is not None and memory is not None and memory.position == "replace"
            self.layers.append(
                Layer(model, recall, feed_forward=not replaced, generator=_generator(seed, number))
            )
        self.norm = nn.RMSNorm(model.dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.linear(self._hidden(tokens, mask), self.embedding.weight).float()

    def loss(self, tokens: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean cross entropy (nats) of the targets int64 `[B, L]` at real tokens, in float32; 0 if there is
        none.

        The logits are made, used and dropped a few tokens at a time.
        """
        if mask is not None:
            targets = targets.masked_fill(~mask, PADDING)
        hidden = self._hidden(tokens, mask).flatten(0, 1)
        with torch.autocast(tokens.device.type, enabled=False):
            total = summed_cross_entropy(hidden.float(), self.embedding.weight.float(), targets.flatten())
        count = targets.numel() if mask is None else mask.sum().clamp(min=1)
        return total / count

    def memories(self) -> dict[int, MemoryLayer]:
        """The memory layers by their number, from 1."""
        layers = enumerate(self.blocks(), start=1)
        return {number: layer.memory for number, layer in layers if layer.memory is not None}

    def blocks(self) -> list[Layer]:
        """The layers, the first one first."""
        return cast(list[Layer], list(self.layers))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for AdamW: the matrices decay; norms, biases and sub-keys don't."""
        matrices = [parameter for parameter in self.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in self.parameters() if parameter.ndim != 2]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    def _hidden(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens `[B, L]` -> the normalised residual stream after the last layer `[B, L, dim]`."""
        x: Tensor = self.embedding(tokens)
        rotation = rotary_angles(tokens.shape[1], self.head_width, tokens.device)
        layers = self.blocks()
        # What the next layers have asked for, in their order; the first layers were asked by none.
        recalls: deque[Waiting[Tensor] | None] = deque([None] * self.look_ahead)
        for layer, asking in zip_longest(layers, layers[self.look_ahead :]):
            x = layer.attend(x, rotation)
            recalls.append(asking and asking.begin_recall(x, mask))
            x = layer.feed(x, recalls.popleft())
        normal: Tensor = self.norm(x)
        return normal


class Layer(nn.Module):
    """Attention, then feed-forward, memory, or both side by side; each adds to the residual stream `[B, L, dim]`.

    In two halves, because a memory's query may be taken between the halves of a layer before.
    """

    def __init__(
        self, model: ModelSpec, memory: MemoryLayer | None, *, feed_forward: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.dim)
        self.attention = Attention(model, generator)
        self.norm = nn.RMSNorm(model.dim)
        self.feed_forward = FeedForward(model, generator) if feed_forward else None
        self.memory = memory

    def attend(self, x: Tensor, rotation: Tensor) -> Tensor:
        """The first half."""
        added: Tensor = self.attention(self.attention_norm(x), rotation)
        return x + added

    def begin_recall(self, x: Tensor, mask: Tensor | None) -> Waiting[Tensor] | None:
        """Take the query of this layer's memory, if it has one, from a stream between two halves."""
        return None if self.memory is None else self.memory.begin(self.norm(x), mask)

    def feed(self, x: Tensor, recall: Waiting[Tensor] | None) -> Tensor:
        """The second half; `recall` is what `begin_recall` gave."""
        if self.feed_forward is not None:
            x = self.add_feed_forward(x)
        if recall is not None:
            x = x + recall()
        return x

    def add_feed_forward(self, x: Tensor) -> Tensor:
        """The second half of a layer with feed-forward, without its memory."""
        assert self.feed_forward is not None
        added: Tensor = self.feed_forward(self.norm(x))
        return x + added


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, model: ModelSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.width = model.heads, model.dim // model.heads
        self.query_key_value = seeded_linear(model.dim, 3 * model.dim, generator)
        self.output = seeded_linear(model.dim, model.dim, generator, scale=_residual_scale(model))

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, self.heads, self.width))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width]
        query, key = rotate(query, rotation), rotate(key, rotation)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """W2 gelu(W1 x)."""

    def __init__(self, model: ModelSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = seeded_linear(model.dim, model.feed_forward_dim, generator)
        self.output = seeded_linear(
            model.feed_forward_dim, model.dim, generator, scale=_residual_scale(model)
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(F.gelu(self.inner(x)))
        return output


def rotary_angles(length: int, width: int, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary positions (Su et al. 2021), float32 `[2, L, width / 2]`."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(length, device=device), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (x[c], x[c + width / 2]) of `[..., L, width]` by their position's angles."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


def _residual_scale(model: ModelSpec) -> float:
    """The residual stream is a sum of two parts per layer; smaller first outputs keep its variance at the
    depth's start."""
    return float((2 * model.layers) ** -0.5)


def _seed(*names: int) -> int:
    """A well-mixed 32-bit seed; unlike sums, neighbouring names give unrelated ones."""
    return int(np.random.SeedSequence(names).generate_state(1)[0])


def _generator(*names: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*names))


def build_model(
    job: JobSpec, vocabulary_size: int, tables: Mapping[str, TableHandle], device: torch.device
) -> Transformer:
    """A job's model with its first weights, its memory layers reading `tables`."""
    return Transformer(job.model, job.memory, vocabulary_size, tables, job.seed).to(device)
