"""Tables that take and give tensors, because their rows lie on the trainer's device, all of them or the hottest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.lookups import Lookup
from memory_store.table_handle import TableHandle


class TensorLookup(Protocol):
    """`memory_store.lookups.Lookup` in tensors of the table's device."""

    output: Tensor

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]: ...


class TensorTable(TableHandle, ABC):
    """A table that layers look up without leaving their device."""

    @abstractmethod
    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[TensorLookup]:
        """`begin_lookup` with rows int64 and weights `[T, M]` on the device; rows must exist."""


class HostLookup:
    """A lookup in host memory, as one in tensors of the type and device of `like`."""

    def __init__(self, found: Lookup, like: Tensor) -> None:
        self._found = found
        self.output = torch.from_numpy(found.output).to(like)

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        gradient = self._found.begin_backward(host_array(output_gradient))
        return lambda: torch.from_numpy(gradient()).to(output_gradient)


def host_array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor, in host memory and in C order."""
    return tensor.detach().cpu().contiguous().numpy()
