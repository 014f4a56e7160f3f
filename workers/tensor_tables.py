"""Tables that take and give tensors, because their rows lie on the trainer's device, all of them or the hottest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from memory_store.calls import Waiting
from memory_store.kernels import FloatArray
from memory_store.lookups import Lookup
from memory_store.placement import BUCKETS, bucket_capacity
from memory_store.table_handle import TableHandle
from workers.gpu.transfers import transfers


class TensorLookup(Protocol):
    """`memory_store.lookups.Lookup` in tensors of the table's device."""

    output: Tensor

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]: ...


class TensorTable(TableHandle, ABC):
    """A table that layers look up without leaving their device."""

    def addresses(self, rows: Tensor) -> Tensor:
        """`memory_store.placement.addresses_of` on the device, in int64; rows must exist."""
        return (rows % BUCKETS) * bucket_capacity(self.rows) + rows // BUCKETS

    @abstractmethod
    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[TensorLookup]:
        """`begin_lookup` with rows int64 and weights `[T, M]` on the device; rows must exist."""


class HostLookup:
    """A lookup in host memory, as one in tensors of the type and device of `like`."""

    def __init__(self, found: Lookup, like: Tensor) -> None:
        self._found = found
        self.output = transfers(like.device).to_device(found.output).to(like)

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        copies = transfers(output_gradient.device)
        on_host = copies.to_host(output_gradient)

        def begin() -> Waiting[FloatArray]:
            return self._found.begin_backward(*on_host())

        # A copy is waited for when the weights' gradient is needed, so that the device is given work until then.
        begun = None if copies.beside else begin()
        return lambda: copies.to_device((begun or begin())()).to(output_gradient)
