"""Copies between a trainer's device and the memory of its host, beside the work of both.

On a GPU a copy runs on a stream of its own, from or to page-locked memory that is used again. Numbers elsewhere, small arrays
as a rule, are put there first, since for other memory the host may wait. What the GPU is given next waits for a copy to it by
an event, on the GPU. The host waits for nothing but the end of a copy to the host, when it reads the numbers, and then for
that copy alone. Memory on its way is nobody else's until its copy has ended. Once `transfers` was asked for a GPU, large
arrays of this process, answers of shards among them, lie in page-locked memory from the start (reused_memory.py).

On a CPU nothing is copied: tensors and arrays are two views of one memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.reused_memory import ReusedMemory, allocate_with

_PIECE_BYTES = 64 << 20  # of what has no page-locked memory of its own
_SIZES_PER_OCTAVE = 1  # torch takes powers of two for page-locked memory


class Event(Protocol):
    """The end of a copy."""

    def query(self) -> bool:
        """Whether it is over."""
        ...

    def synchronize(self) -> None:
        """Wait for it."""


class CopyStreams(Protocol):
    """Where copies of a device run, beside its other work."""

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes that the device itself can read and write."""
        ...

    def is_page_locked(self, source: Tensor) -> bool:
        """Whether the device itself can read the memory of a tensor of the host."""
        ...

    def to_host(self, source: Tensor, target: Tensor) -> Event:
        """Begin a copy of what `source` on the device is after all that the device was given so far.

        `target` is page-locked.
        """
        ...

    def to_device(self, source: Tensor) -> tuple[Tensor, Event]:
        """Begin a copy, out of page-locked memory, that what the device is given from now on waits for.

        Who uses the memory of the copy next waits for it too.
        """
        ...


class Transfers:
    """The copies of one device; `streams` is None for the CPU. Begun by one thread at a time; any may wait for them."""

    def __init__(self, streams: CopyStreams | None) -> None:
        self.beside = streams is not None  # the host's work, so that `to_host` is worth being asked for early
        self._streams = streams
        if streams is not None:
            self._memory = ReusedMemory(
                allocate=streams.page_locked, small_bytes=0, sizes_per_octave=_SIZES_PER_OCTAVE
            )
        # What a copy reads, and the host's memory that it writes, until it has ended. (To a gradient that nobody else holds,
        # autograd may add in place.)
        self._on_its_way: list[tuple[Event, NDArray[Any], Tensor | None]] = []
        self._lock = threading.Lock()

    def to_host(self, *tensors: Tensor) -> Waiting[Sequence[NDArray[Any]]]:
        """Begin to copy tensors, which nobody may write to until then; what comes back waits for the numbers, in C order."""
        if self._streams is None:
            arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
            return lambda: arrays
        begun = [self._begin_to_host(self._streams, tensor.detach()) for tensor in tensors]

        def wait() -> Sequence[NDArray[Any]]:
            for event, _ in begun:
                event.synchronize()
            self._hold()
            return [array for _, array in begun]

        return wait

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """The numbers of an array, which nobody may write to from now on."""
        source = torch.from_numpy(array)
        if self._streams is None:
            return source
        if array.size and not self._streams.is_page_locked(source):
            array = self._memory.empty(array.shape, array.dtype)
            torch.from_numpy(array).copy_(source)
            source = torch.from_numpy(array)
        tensor, event = self._streams.to_device(source)
        self._hold((event, array, None))
        return tensor

    def fill_array(self, array: NDArray[Any], tensor: Tensor) -> None:
        """Copy a tensor into an array, of its shape and type and however large: the next piece comes while one is stored."""
        coming: tuple[slice, Waiting[Sequence[NDArray[Any]]]] | None = None
        for piece in [*_pieces(tensor), None]:
            begun = (piece, self.to_host(tensor[piece])) if piece is not None else None
            if coming is not None:
                there, wait = coming
                torch.from_numpy(array[there]).copy_(torch.from_numpy(wait()[0]))
            coming = begun

    def fill_tensor(self, tensor: Tensor, array: NDArray[Any]) -> None:
        """The other way round. The array may be written to again."""
        if self._streams is None:
            tensor.copy_(torch.from_numpy(array))
            return
        before: Event | None = None
        for piece in _pieces(tensor):
            staged = self._memory.empty(array[piece].shape, array.dtype)
            torch.from_numpy(staged).copy_(torch.from_numpy(array[piece]))
            arrived, event = self._streams.to_device(torch.from_numpy(staged))
            self._hold((event, staged, None))
            tensor[piece].copy_(arrived)
            if before is not None:
                before.synchronize()  # or a fast host would lock the whole array's size of memory
            before = event

    def _begin_to_host(self, streams: CopyStreams, tensor: Tensor) -> tuple[Event, NDArray[Any]]:
        array = self._memory.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        event = streams.to_host(tensor, torch.from_numpy(array))
        self._hold((event, array, tensor))
        return event, array

    def _hold(self, *begun: tuple[Event, NDArray[Any], Tensor | None]) -> None:
        """Hold what copies need that have begun, and let go of what has arrived."""
        with self._lock:
            self._on_its_way = [copy for copy in (*self._on_its_way, *begun) if not copy[0].query()]


def _pieces(tensor: Tensor) -> list[slice]:
    rows = max(1, _PIECE_BYTES * len(tensor) // max(1, tensor.nbytes))
    return [slice(first, first + rows) for first in range(0, len(tensor), rows)]


class CudaStreams:
    """Two streams of a GPU, one for each direction: PCIe carries both at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to_host: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._to_device: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        block: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return block

    def is_page_locked(self, source: Tensor) -> bool:
        return source.is_pinned()

    def to_host(self, source: Tensor, target: Tensor) -> Event:
        self._to_host.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._to_host):
            target.copy_(source, non_blocking=True)
        # Who waits for it sleeps: in a loop he would take a core from the shards.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._to_host.record_event(event)
        return event

    def to_device(self, source: Tensor) -> tuple[Tensor, Event]:
        with torch.cuda.stream(self._to_device):
            # Memory of this stream: of the other it might be in use by work that was given out before.
            tensor = source.to(self._device, non_blocking=True)
        event = self._to_device.record_event()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        tensor.record_stream(current)
        return tensor, event


@cache
def transfers(device: torch.device) -> Transfers:
    """The copies of a device of this process."""
    if device.type == "cpu":
        return Transfers(None)
    if device.index is None:
        return transfers(torch.device(device.type, torch.cuda.current_device()))
    streams = CudaStreams(device)
    allocate_with(streams.page_locked, _SIZES_PER_OCTAVE)
    return Transfers(streams)


def numbers_of(*scalars: Tensor) -> Waiting[list[float]]:
    """Begin to copy scalars of one device to its host; what comes back waits for them alone."""
    copied = transfers(scalars[0].device).to_host(*scalars)
    return lambda: [float(number) for number in copied()]
