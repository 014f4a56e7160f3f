"""Linear layers whose first weights come from a given generator, so that a model is a function of its seed.

PyTorch's own layers draw from one global generator: a memory added to layer 2 would change the first weights
of layer 3.
"""

from __future__ import annotations

import torch
from torch import nn


def seeded_linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = False, scale: float = 1.0
) -> nn.Linear:
    """A linear layer whose weights start normal with std `scale * inputs ** -0.5`, and its biases, if any,
    at 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
