"""A product-key memory as a whole layer, trained for one step: ours, and that of the product-key-memory package.

Both have the same query network, sub-keys and values. A step is the forward pass, the backward pass, and a
gradient step of the values, which makes both sum the gradients of every row.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.local_store import LocalStore
from memory_store.table_spec import OptimizerSpec, TableSpec
from workers.memory_layer import MemoryLayer

LEARNING_RATE = 1e-3


class LayerStep(NamedTuple):
    """The output, and the gradients of the input and of the sub-keys `[H, 2, n, C]`."""

    output: Tensor
    input_gradient: Tensor
    sub_key_gradient: Tensor


class PackageLayer:
    """`product_key_memory.PKM` with `torch.optim.SGD` on its values."""

    def __init__(self, dim: int, heads: int, sub_keys: int, k: int, half_width: int) -> None:
        package = import_module("product_key_memory")
        torch.manual_seed(0)
        self.module: Any = package.PKM(dim, heads, sub_keys, k, half_width)
        self._optimizer = torch.optim.SGD([self.module.values.weight], LEARNING_RATE)

    @staticmethod
    def installed() -> bool:
        return find_spec("product_key_memory") is not None

    def step(self, x: Tensor, gradient: Tensor) -> LayerStep:
        """One step on tokens `[T, dim]`."""
        x.grad = None
        self.module.zero_grad()
        output = self.module(x[None])[0]
        output.backward(gradient)
        self._optimizer.step()
        assert x.grad is not None
        return LayerStep(output.detach(), x.grad, self.module.keys.grad.transpose(1, 2))

    def values(self) -> Tensor:
        values: Tensor = self.module.values.weight.detach()
        return values


class _PackageQueries(nn.Module):
    """The package's query network with its weights, whose features come in our order: `[T, H, query_dim]`."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.heads, self.norm = module.heads, module.norm
        features, dim = module.to_queries.weight.shape
        self.linear = nn.Linear(dim, features, bias=False)
        by_half = module.to_queries.weight.detach().view(2, self.heads, -1, dim)
        with torch.no_grad():
            self.linear.weight.copy_(by_half.transpose(0, 1).reshape(features, dim))

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.norm(self.linear(x).unflatten(-1, (self.heads, 2, -1)))
        return normal.flatten(2)


class OurLayer:
    """Our memory layer over an in-process store, with the weights of a package's layer."""

    def __init__(self, package: PackageLayer) -> None:
        module, values = package.module, package.values()
        rows, dim = values.shape
        self._store = LocalStore(TableSpec("memory", rows, dim, optimizer=OptimizerSpec("sgd")))
        self._store.write_all(values.numpy())
        sub_keys, heads, k = module.num_keys, module.heads, module.topk
        self._layer = MemoryLayer(
            dim, self._store.table, sub_keys=sub_keys, heads=heads, k=k, query_dim=2 * module.keys.shape[-1]
        )
        self._layer.query_network = _PackageQueries(module)  # type: ignore[assignment]
        with torch.no_grad():
            self._layer.product_keys.sub_keys.copy_(module.keys.transpose(1, 2))

    def step(self, x: Tensor, gradient: Tensor) -> LayerStep:
        """One step on tokens `[T, dim]`."""
        x.grad = None
        self._layer.zero_grad()
        output: Tensor = self._layer(x)
        output.backward(gradient)  # type: ignore[no-untyped-call]
        self._store.step(LEARNING_RATE)
        sub_keys = self._layer.product_keys.sub_keys
        assert x.grad is not None
        assert sub_keys.grad is not None
        return LayerStep(output.detach(), x.grad, sub_keys.grad)

    def values(self) -> Tensor:
        return torch.from_numpy(self._store.read_all())


def layers_agree(ours: OurLayer, package: PackageLayer, x: Tensor, gradient: Tensor) -> None:
    """Do one step on both; raises AssertionError unless outputs, gradients and all values are equal.

    Where two keys tie for the last place but for rounding, either may be selected; that moves a few numbers.
    """
    step, expected = ours.step(x, gradient), package.step(x, gradient)
    for name, found in step._asdict().items():
        _mostly_equal(name, found, getattr(expected, name))
    _mostly_equal("values", ours.values(), package.values())


def _mostly_equal(name: str, found: Tensor, expected: Tensor) -> None:
    equal = found.isclose(expected, rtol=1e-3, atol=1e-3 * expected.std().item()).float().mean().item()
    assert equal > 0.99, f"only {equal:.1%} of the {name} are those of the package's layer"
