"""A transformer with product-key memories in plain PyTorch: everything that an exported model computes.

    from pkm_model import load                                  # with the folder of the model on sys.path
    model, tokenizer = load("FOLDER")
    logits = model(torch.tensor([[0, *tokenizer.encode("My fellow").ids]]))

    python FOLDER/pkm_model.py "My fellow citizens"             # prints the likeliest text after it

It needs torch, safetensors and tokenizers. A document begins and ends with token 0. In float32 the logits are bit for
bit those of the model that was trained, evaluated on the same machine: sums are made in the order that it makes them.

The value tables lie in `tables`, row `i * n + j` for the pair of sub-keys i of the first half and j of the second.
They are float32, bfloat16, or int8 with one float32 scale a row (a value is its integer times its row's scale).
Letters: B sequences, L tokens of each, T = B * L, V vocabulary, H memory heads, n sub-keys, k selected, D row width.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

PREFIX = "model."  # of every weight in the files, as `transformers` wants it
TOKENS_AT_ONCE = 256  # tokens whose scores [2 * H, tokens, n] are in memory at a time


class Config(Protocol):
    """What the model asks of config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    rotary_base: float
    memory: Mapping[str, Any] | None
    memory_tables: Mapping[str, str]  # layer, counted from 1 -> name of its table
    table_dtype: str


class Cache(Protocol):
    """Keys and values of the tokens before; `transformers.DynamicCache` is one."""

    def get_seq_length(self) -> int: ...

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...


@dataclass
class FileConfig:
    """`Config` read from a config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    rotary_base: float
    memory: Mapping[str, Any] | None
    memory_tables: Mapping[str, str]
    table_dtype: str

    @classmethod
    def read(cls, path: Path) -> FileConfig:
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def load(folder: str | Path) -> tuple[PkmModel, Tokenizer]:
    """The model of an exported folder, in evaluation mode, and its tokenizer."""
    folder = Path(folder)
    model = PkmModel(FileConfig.read(folder / "config.json"))
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights |= {name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items()}
    model.load_state_dict(weights, assign=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a prompt that spells out the end of text is text
    return model.eval(), tokenizer


class PkmModel(nn.Module):
    """Tokens int64 `[B, L]` -> logits float32 `[B, L, V]`.

    Pre-norm with RMSNorm, rotary positions, GELU feed-forward, one matrix as embedding and as output layer. With
    a look-ahead of `a` layers, a memory takes its query from the stream after the attention `a` layers before.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        memory = config.memory
        self.look_ahead = int(memory["look_ahead"]) if memory else 0
        self.head_width = config.hidden_size // config.num_attention_heads
        self.rotary_base = config.rotary_base
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        numbers = range(1, config.num_hidden_layers + 1)
        self.layers = nn.ModuleList(Layer(config, number) for number in numbers)
        self.norm = nn.RMSNorm(config.hidden_size)
        self.tables = nn.ModuleDict()
        for name in dict.fromkeys(config.memory_tables.values()):
            assert memory is not None
            rows = memory["sub_keys"] ** 2 // memory["value_expansion"]
            self.tables[name] = Table(rows, _row_width(config.hidden_size, memory), config.table_dtype)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`mask` bool `[B, cached + L]`: False at padding, which may come before or after a sequence's tokens."""
        past = cache.get_seq_length() if cache is not None else 0
        if mask is not None and bool(mask.all()):
            mask = None
        total = past + tokens.shape[1]
        if mask is None:
            positions = torch.arange(past, total, device=tokens.device)[None]
        else:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        rotation = self._rotary_angles(positions)
        visible = _visible(mask, past, total, tokens.device)
        x: Tensor = self.embedding(tokens)
        layers: list[Any] = list(self.layers)
        recalls: deque[Tensor | None] = deque([None] * self.look_ahead)
        for number, (layer, asking) in enumerate(zip_longest(layers, layers[self.look_ahead :])):
            x = x + layer.attention(layer.attention_norm(x), rotation, visible, number, cache)
            recalls.append(asking.recall(x, self.tables) if asking is not None else None)
            x = layer.feed(x, recalls.popleft())
        return F.linear(self.norm(x), self.embedding.weight).float()

    def _rotary_angles(self, positions: Tensor) -> Tensor:
        """Cosines and sines for positions int64 `[B or 1, L]`: float32 `[2, B or 1, 1, L, width / 2]`."""
        steps = torch.arange(0, self.head_width, 2, device=positions.device) / self.head_width
        angles = positions[:, None, :, None] * self.rotary_base**-steps
        return torch.stack([angles.cos(), angles.sin()])


class Layer(nn.Module):
    """Attention, then feed-forward, memory, or both side by side; `number` counts from 1."""

    def __init__(self, config: Config, number: int) -> None:
        super().__init__()
        self.table = config.memory_tables.get(str(number))
        self.attention_norm = nn.RMSNorm(config.hidden_size)
        self.attention = Attention(config)
        self.norm = nn.RMSNorm(config.hidden_size)
        memory = config.memory if self.table is not None else None
        replaced = memory is not None and memory["position"] == "replace"
        self.feed_forward = None if replaced else FeedForward(config)
        self.memory = None if memory is None else Memory(config.hidden_size, memory)

    def recall(self, x: Tensor, tables: nn.ModuleDict) -> Tensor | None:
        """What this layer's memory, if it has one, adds for a stream `[B, L, dim]`."""
        if self.memory is None or self.table is None:
            return None
        recalled: Tensor = self.memory(self.norm(x).flatten(0, 1), tables[self.table])
        return recalled.view(x.shape)

    def feed(self, x: Tensor, recalled: Tensor | None) -> Tensor:
        if self.feed_forward is not None:
            x = x + self.feed_forward(self.norm(x))
        return x if recalled is None else x + recalled


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotation: Tensor, visible: Tensor | None, number: int, cache: Cache | None
    ) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, self.heads, self.width))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width]
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(key, value, number)
        causal = visible is None and query.shape[2] > 1
        attended = F.scaled_dot_product_attention(query, key, value, visible, is_causal=causal)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """W2 gelu(W1 x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(F.gelu(self.inner(x)))
        return output


class Memory(nn.Module):
    """Sum over heads of the softmax-weighted rows of the k best keys (Lample et al. 2019); `[T, dim]` -> `[T, dim]`.

    With `weights: scores` the weights are scores / k, and with `value_dim` a matrix widens the sum (UltraMem, Huang et
    al. 2024). `slots: experts` and `value_expansion` change what a row is; see `Experts` and `ExpandedValues`.
    """

    def __init__(self, dim: int, memory: Mapping[str, Any]) -> None:
        super().__init__()
        self.k, self.softmax = int(memory["k"]), memory["weights"] == "softmax"
        self.query_network = QueryNetwork(dim, memory)
        self.flat_keys = FlatKeys(memory) if memory["keys"] == "flat" else None
        self.product_keys = ProductKeys(memory) if memory["keys"] == "product" else None
        width = _row_width(dim, memory)
        self.slots: nn.Module | None = Experts() if memory["slots"] == "experts" else None
        if memory["value_expansion"] > 1:
            self.slots = ExpandedValues(memory["value_expansion"], width)
        value_dim = memory["value_dim"] or dim
        self.gate = OutputGate(dim, value_dim) if memory["gate"] else None
        widened = memory["value_dim"] is not None and not memory["gate"]
        self.projection = nn.Linear(value_dim, dim, bias=False) if widened else None

    def forward(self, x: Tensor, table: Table) -> Tensor:
        queries = self.query_network(x)
        search = self.flat_keys if self.product_keys is None else self.product_keys
        assert search is not None
        with torch.autocast(x.device.type, enabled=False):
            keys, scores = search(queries, self.k)
        weights = scores.softmax(-1) if self.softmax else scores / self.k
        keys, weights = keys.flatten(1), weights.flatten(1)
        recalled: Tensor = table(keys, weights) if self.slots is None else self.slots(table, x, keys, weights)
        recalled = recalled.to(x.dtype)
        if self.gate is not None:
            recalled = self.gate(recalled, x)
        elif self.projection is not None:
            recalled = self.projection(recalled)
        return recalled


class ExpandedValues(nn.Module):
    """E keys share a row, each with a matrix (UltraMem): sum of w_m P[key_m div K] v[key_m mod K]."""

    def __init__(self, expansion: int, width: int) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.empty(expansion, width, width))

    def forward(self, table: Table, x: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        count = len(table.values)
        rows = weights[..., None] * table.rows(keys % count)  # [T, M, D]
        with torch.autocast(x.device.type, enabled=False):
            sums = F.one_hot(keys // count, len(self.matrices)).to(rows.dtype).mT @ rows  # [T, E, D]
        return torch.einsum("ted,ecd->tc", sums, self.matrices.to(rows.dtype))


class Experts(nn.Module):
    """A row is an expert of one neuron, u beside v (PEER, He 2024): sum of w_m gelu(u[key_m] . x) v[key_m]."""

    def forward(self, table: Table, x: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        inward, outward = table.rows(keys).chunk(2, dim=-1)  # [T, M, D] each
        with torch.autocast(x.device.type, enabled=False):
            neurons = F.gelu(torch.einsum("tmd,td->tm", inward, x.to(inward.dtype)))
            return torch.einsum("tm,tmd->td", weights * neurons, outward)


class QueryNetwork(nn.Module):
    """Tokens `[T, dim]` -> queries `[T, H, query_dim]`."""

    def __init__(self, dim: int, memory: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, features = memory["heads"], memory["heads"] * memory["query_dim"]
        hidden = [nn.Linear(dim, dim), nn.ReLU()] if memory["query_network"] == "mlp" else []
        self.network = nn.Sequential(*hidden, nn.Linear(dim, features))
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
        self.norm = norms[memory["query_norm"]](features)

    def forward(self, x: Tensor) -> Tensor:
        queries: Tensor = self.norm(self.network(x).to(self.network[-1].weight.dtype)).float()
        return queries.view(x.shape[0], self.heads, -1)


class ProductKeys(nn.Module):
    """The exact k best of n * n keys: rows int64 `[T, H, k]` and scores float32 `[T, H, k]`, best first."""

    def __init__(self, memory: Mapping[str, Any]) -> None:
        super().__init__()
        width = memory["query_dim"] // 2
        self.sub_keys = nn.Parameter(torch.empty(memory["heads"], 2, memory["sub_keys"], width))
        self.scale = nn.Parameter(torch.empty(width)) if memory["qk_norm"] else None

    def forward(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        starts = range(0, max(len(queries), 1), TOKENS_AT_ONCE)
        parts = [self._select(queries[start : start + TOKENS_AT_ONCE], k) for start in starts]
        rows, scores = zip(*parts, strict=True)
        return torch.cat(rows), torch.cat(scores)

    def _select(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        heads, _, n, width = self.sub_keys.shape
        halves, keys = _comparable(queries.reshape(-1, 2 * heads, width), self.sub_keys, self.scale)
        of_halves = torch.bmm(halves.transpose(0, 1), keys.flatten(0, 1).mT)  # [2 * H, T, n]
        best, sub_keys = of_halves.view(heads, 2, -1, n).permute(1, 2, 0, 3).topk(k)  # [2, T, H, k]
        first, second = _candidate_pairs(k, queries.device)
        scores, winners = (best[0][..., first] + best[1][..., second]).topk(k)
        rows = sub_keys[0].gather(-1, first[winners]) * n + sub_keys[1].gather(-1, second[winners])
        return rows, scores


class FlatKeys(nn.Module):
    """The k best of K whole keys, all of them scored: rows int64 `[T, H, k]` and scores float32 `[T, H, k]`."""

    def __init__(self, memory: Mapping[str, Any]) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(memory["heads"], memory["sub_keys"] ** 2, memory["query_dim"]))
        self.scale = nn.Parameter(torch.empty(memory["query_dim"])) if memory["qk_norm"] else None

    def forward(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries, keys = _comparable(queries, self.keys, self.scale)
        parts = torch.split(queries, TOKENS_AT_ONCE)
        rows = torch.cat([torch.einsum("thc,hnc->thn", part, keys).topk(k).indices for part in parts])
        chosen = keys[torch.arange(len(keys), device=rows.device)[:, None], rows]  # [T, H, k, C]
        return rows, torch.einsum("thc,thkc->thk", queries, chosen)


def _comparable(queries: Tensor, keys: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and keys `[..., C]` in float32; with a scale `[C]`, layer-normalised (Memory+, Berges et al. 2024)."""
    if scale is None:
        return queries, keys.float()
    width = queries.shape[-1]
    return F.layer_norm(queries, (width,), scale.float()), F.layer_norm(keys.float(), (width,)) * width**-0.5


def _row_width(dim: int, memory: Mapping[str, Any]) -> int:
    return 2 * dim if memory["slots"] == "experts" else memory["value_dim"] or dim


class Table(nn.Module):
    """Values `[K, D]`: weighted sums of rows."""

    def __init__(self, rows: int, dim: int, dtype: str) -> None:
        super().__init__()
        values = torch.empty(rows, dim, dtype=getattr(torch, dtype))
        self.values = nn.Parameter(values, requires_grad=values.is_floating_point())
        self.scales = nn.Parameter(torch.empty(rows, 1), requires_grad=False) if dtype == "int8" else None

    def forward(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Rows int64 `[T, M]`, weights `[T, M]` -> float32 `[T, D]`, added up in the order of the trainer."""
        sums = weights.new_zeros(rows.shape[0], self.values.shape[1])
        for place in range(rows.shape[1]):
            sums = sums + weights[:, place, None] * self.rows(rows[:, place])
        return sums

    def rows(self, rows: Tensor) -> Tensor:
        """The values of rows int64 `[...]`: float32 `[..., D]`."""
        values = self.values[rows].float()
        return values if self.scales is None else values * self.scales[rows]


class OutputGate(nn.Module):
    """(y * silu(x W1)) W2 (Memory+, Berges et al. 2024)."""

    def __init__(self, dim: int, value_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, value_dim, bias=False)
        self.output = nn.Linear(value_dim, dim, bias=False)

    def forward(self, recalled: Tensor, x: Tensor) -> Tensor:
        gated: Tensor = self.output(recalled * F.silu(self.gate(x)))
        return gated


@lru_cache
def _candidate_pairs(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (i, j) in the sorted halves that can be among the k best sums: those with (i+1)(j+1) <= k."""
    places = torch.arange(1, k + 1, device=device)
    first, second = (torch.outer(places, places) <= k).nonzero(as_tuple=True)
    return first, second


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (x[c], x[c + width / 2]) of `[..., L, width]` by their position's angles."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


def _visible(mask: Tensor | None, past: int, total: int, device: torch.device) -> Tensor | None:
    """Which tokens `[total]` each new token attends to, bool `[B or 1, 1, L, total]`; None: plainly causal."""
    if mask is None and (past == 0 or total - past == 1):
        return None
    places = torch.arange(total, device=device)
    visible = (places[None, :] <= places[past:, None])[None, None]
    if mask is not None:
        itself = places[None, :] == places[past:, None]  # padding attends to something, or it would be NaN
        visible = visible & (mask.bool()[:, None, None, :] | itself)
    return visible


def main(folder: Path, prompt: str, tokens: int = 50) -> None:
    """Print the prompt and the likeliest text after it."""
    model, tokenizer = load(folder)
    length = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    text = [0, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    with torch.no_grad():
        for _ in range(tokens):
            text.append(int(model(torch.tensor([text[-length:]]))[0, -1].argmax()))
    print(tokenizer.decode(text[1:]))


if __name__ == "__main__":
    main(Path(__file__).parent, sys.argv[1])
