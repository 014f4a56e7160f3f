"""An exported model run by PyTorch alone: nothing of this project is imported, and no service runs.

    pkm export runs/quickstart model.safetensors
    python examples/exported_model.py model.safetensors "My fellow citizens"

The whole model is here, read top to bottom, as a pure function of the tensors in the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

Weights = dict[str, Tensor]


def load(file: Path) -> tuple[dict[str, Any], Weights]:
    """The config and the float32 tensors of an export."""
    config = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return config, {name: tensor.float() for name, tensor in load_file(file).items()}


def logits(config: dict[str, Any], weights: Weights, tokens: Tensor) -> Tensor:
    """Tokens int64 `[L]` -> logits `[L, V]`."""
    model, memory = config["model"], config["memory"]
    x = weights["embedding.weight"][tokens]
    streams = {}  # after each layer's attention: a memory takes its query there, look_ahead layers before its own
    for number in range(1, model["layers"] + 1):
        layer = part(weights, f"layers.{number - 1}.")
        x = x + attention(
            rms_norm(x, layer["attention_norm.weight"]), layer, model["heads"], config["rotary_base"]
        )
        streams[number] = x
        if "feed_forward.inner.weight" in layer:
            normal = rms_norm(x, layer["norm.weight"])
            inner = F.gelu(normal @ layer["feed_forward.inner.weight"].T)
            x = x + inner @ layer["feed_forward.output.weight"].T
        if str(number) in config["tables"]:
            values = weights[f"tables.{config['tables'][str(number)]}"]
            asking = rms_norm(streams[number - memory["look_ahead"]], layer["norm.weight"])
            x = x + recall(asking, part(layer, "memory."), values, memory)
    return rms_norm(x, weights["norm.weight"]) @ weights["embedding.weight"].T


def attention(x: Tensor, layer: Weights, heads: int, rotary_base: float) -> Tensor:
    """Causal attention with rotary positions, `[L, dim]` -> `[L, dim]`."""
    length, dim = x.shape
    width = dim // heads
    query, key, value = (
        (x @ layer["attention.query_key_value.weight"].T).view(length, 3, heads, width).permute(1, 2, 0, 3)
    )
    angles = torch.outer(torch.arange(length), rotary_base ** -(torch.arange(0, width, 2) / width))
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotate(features: Tensor) -> Tensor:
        first, second = features.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    scores = rotate(query) @ rotate(key).mT / width**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    attended = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return F.linear(attended.transpose(0, 1).reshape(length, dim), layer["attention.output.weight"])


def recall(x: Tensor, layer: Weights, values: Tensor, memory: dict[str, Any]) -> Tensor:
    """The product-key memory, `[L, dim]` -> `[L, dim]`; here every head looks at all of its n * n keys."""
    queries = x
    if memory["query_network"] == "mlp":
        queries = F.relu(
            F.linear(queries, layer["query_network.network.0.weight"], layer["query_network.network.0.bias"])
        )
    last = "query_network.network.2" if memory["query_network"] == "mlp" else "query_network.network.0"
    queries = F.linear(queries, layer[f"{last}.weight"], layer[f"{last}.bias"])
    norm = part(layer, "query_network.norm.")
    if memory["query_norm"] == "batch":
        queries = F.batch_norm(
            queries, norm["running_mean"], norm["running_var"], norm["weight"], norm["bias"]
        )
    elif memory["query_norm"] == "layer":
        queries = F.layer_norm(queries, queries.shape[-1:], norm["weight"], norm["bias"])

    sub_keys = layer["product_keys.sub_keys"]  # [H, 2, n, query_dim / 2]
    halves = queries.reshape(len(x), memory["heads"], 2, -1)
    first, second = torch.einsum("thsc,hsnc->sthn", halves, sub_keys)
    scores = (first[..., :, None] + second[..., None, :]).flatten(-2)  # [L, H, n * n]
    best, rows = scores.topk(memory["k"])
    recalled = torch.einsum("thk,thkd->td", best.softmax(-1), values[rows])
    if memory["gate"]:
        recalled = (recalled * F.silu(x @ layer["gate.gate.weight"].T)) @ layer["gate.output.weight"].T
    return recalled


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight)


def part(weights: Weights, prefix: str) -> Weights:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def main(file: str, prompt: str, tokens: int = 50) -> None:
    """Print the prompt and the likeliest text after it."""
    config, weights = load(Path(file))
    tokenizer = Tokenizer.from_str(json.dumps(config["tokenizer"]))
    text = [config["end_of_text"], *tokenizer.encode(prompt, add_special_tokens=False).ids]
    for _ in range(tokens):
        window = torch.tensor(text[-config["sequence_length"] :])
        text.append(int(logits(config, weights, window)[-1].argmax()))
    print(tokenizer.decode(text[1:]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
