"""The value table as a differentiable function of the weights: autograd through the store.

The table's values are no parameter of the model. The gradient of the weights comes back to autograd; the
gradient of the rows stays in the store, which applies its own optimizer at `store.step`. A dense gradient
of the table never exists.

A lookup is two functions to autograd, so that what the model computes between them hides the way to the shards
and back. `_Ask` sends rows and weights, `_Take` waits for the sums. Backward, `_Take` sends the sums' gradient and
`_Ask` waits for the weights'. Autograd runs the functions that are ready in reverse order of their forward passes,
so between these two it runs what was computed between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memory_store.calls import Waiting
from memory_store.errors import UsageError
from memory_store.table_handle import TableHandle
from workers.gpu.transfers import transfers
from workers.tensor_tables import HostLookup, TensorLookup, TensorTable


def begin_lookup(
    table: TableHandle, rows: Tensor, weights: Tensor, *, track: bool = False, learning: Tensor | None = None
) -> Waiting[Tensor]:
    """Ask for weighted sums of rows: rows int64 `[T, M]`, weights `[T, M]`; what comes back waits for them `[T, D]`.

    The sums have the type and device of the weights. With gradients enabled, the rows' gradients are
    collected even where the weights need none (a frozen model whose table learns). With `learning`, bool `[T, M]`, only
    its entries, at least one, have gradients: of their rows and of their weights. `track` counts the accesses. Raises what
    `TableHandle.begin_lookup` and its wait raise.
    """
    keep = torch.is_grad_enabled()
    if keep and learning is not None:
        return _begin_partly_learning(table, rows, weights, track, learning)
    if keep and not weights.requires_grad:
        weights = weights.detach().requires_grad_()
    exchange = _Exchange()
    ticket: Tensor = _Ask.apply(weights, rows, table, keep, track, exchange)  # type: ignore[no-untyped-call]

    def take() -> Tensor:
        sums: Tensor = _Take.apply(ticket, exchange)  # type: ignore[no-untyped-call]
        return sums

    return take


def _begin_partly_learning(
    table: TableHandle, rows: Tensor, weights: Tensor, track: bool, learning: Tensor
) -> Waiting[Tensor]:
    """The sums of all entries, from one lookup, with the gradient of the learning ones, from another."""
    with torch.no_grad():
        whole = begin_lookup(table, rows, weights, track=track)
    if not learning.numel():
        return whole
    # The others' places are taken by a row that learns anyway, with weight 0; found without asking the device for a number.
    first = learning.flatten().int().argmax(0, keepdim=True)
    a_row = rows.flatten()[first]
    part = begin_lookup(table, torch.where(learning, rows, a_row), torch.where(learning, weights, 0.0))

    def take() -> Tensor:
        learned = part()
        return whole() + (learned - learned.detach())

    return take


class _Exchange:
    """What `_Ask` and `_Take` begin for each other."""

    sums: Waiting[TensorLookup]
    weight_gradient: Waiting[Tensor]


def _begin(
    table: TableHandle, rows: Tensor, weights: Tensor, keep: bool, track: bool
) -> Waiting[TensorLookup]:
    if isinstance(table, TensorTable):
        return table.begin_tensor_lookup(rows, weights.detach(), keep=keep, track=track)
    rows_here, weights_here = transfers(weights.device).to_host(rows, weights)()
    found = table.begin_lookup(rows_here, weights_here, keep=keep, track=track)
    return lambda: HostLookup(found(), weights)


class _Ask(torch.autograd.Function):
    """Weights `[T, M]` -> a ticket: an empty tensor, by which autograd knows that `_Take` depends on this."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        rows: Tensor,
        table: TableHandle,
        keep: bool,
        track: bool,
        exchange: _Exchange,
    ) -> Tensor:
        ctx.exchange = exchange
        exchange.sums = _begin(table, rows, weights, keep, track)
        return weights.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ticket_gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return ctx.exchange.weight_gradient().to(ticket_gradient), None, None, None, None, None


class _Take(torch.autograd.Function):
    """A ticket -> the sums `[T, D]`."""

    @staticmethod
    def forward(ctx: Any, ticket: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange, ctx.found = exchange, exchange.sums()
        del exchange.sums  # it holds what the shards have answered
        # A tensor of its own, to which autograd ties this function: the lookup's would hold the lookup by it, a circle that
        # nobody can see.
        output: Tensor = ctx.found.output.to(ticket).detach()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        found: TensorLookup | None = ctx.found
        if found is None:
            raise UsageError(
                "A backward pass went through one memory lookup twice, which would count its row gradients "
                "twice; run the forward pass again, or add the losses up and call backward once."
            )
        ctx.found = None
        ctx.exchange.weight_gradient = found.begin_backward(output_gradient)
        return output_gradient.new_empty(0), None
