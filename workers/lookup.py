"""The value table as a differentiable function of the weights: autograd through the store.

The table's values are no parameter of the model. The gradient of the weights comes back to autograd; the
gradient of the rows stays in the store, which applies its own optimizer at `store.step`. A dense gradient
of the table never exists.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory_store.client import TableHandle
from memory_store.errors import UsageError
from memory_store.lookups import Lookup


def lookup(table: TableHandle, rows: Tensor, weights: Tensor, *, track: bool = False) -> Tensor:
    """Weighted sums of rows: rows int64 `[T, M]`, weights `[T, M]` -> `[T, D]`.

    The output has the type and device of the weights. With gradients enabled, the rows' gradients are
    collected even where the weights need none (a frozen model whose table learns). `track` counts the
    accesses. Raises what `TableHandle.lookup` raises.
    """
    keep = torch.is_grad_enabled()
    if keep and not weights.requires_grad:
        weights = weights.detach().requires_grad_()
    output: Tensor = _Lookup.apply(weights, rows, table, keep, track)  # type: ignore[no-untyped-call]
    return output


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, rows: Tensor, table: TableHandle, keep: bool, track: bool
    ) -> Tensor:
        ctx.spent, ctx.found, ctx.shape = False, None, weights.shape
        if weights.numel() == 0:
            return weights.new_zeros(weights.shape[0], table.dim)
        found = table.lookup(_array(rows), _array(weights), keep=keep, track=track)
        ctx.found = found
        return torch.from_numpy(found.output).to(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.spent:
            raise UsageError(
                "A backward pass went through one memory lookup twice, which would count its row gradients "
                "twice; run the forward pass again, or add the losses up and call backward once."
            )
        found: Lookup | None = ctx.found
        ctx.spent, ctx.found = True, None
        if found is None:
            return output_gradient.new_zeros(ctx.shape), None, None, None, None
        weight_gradient = torch.from_numpy(found.backward(_array(output_gradient)))
        return weight_gradient.to(output_gradient), None, None, None, None


def _array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, in host memory and in C order."""
    return tensor.detach().cpu().contiguous().numpy()
