"""Linear layers whose first weights come from a given generator, so that a model is a pure function of its seed.

PyTorch's own layers draw from one global generator: adding a memory to layer 2 would change the first weights of layer 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init


def seeded_linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = False, scale: float = 1.0
) -> nn.Linear:
    """A linear layer with weights normal in std `scale * inputs ** -0.5` and, with `bias`, biases that start at 0."""
    layer = skip_init(nn.Linear, inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
