"""Copies of a device that is slow, and whose memory is that of the CPU.

A copy to the host is made when somebody waits for it or when `catch_up` says so, all before it first. One to the device is
made at once, as what the device does next would see it; while it is not over, its source must stay what it was. Like a GPU
this holds nothing alive.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HeldEvent:
    def __init__(self, streams: HeldStreams, end: Callable[[], None]) -> None:
        self._streams, self.end, self.over = streams, end, False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self._streams.waits[threading.get_ident()] += 1
        self._streams.catch_up(self)


class HeldStreams:
    def __init__(self) -> None:
        self.blocks: list[NDArray[np.uint8]] = []
        self.waits: Counter[int] = Counter()  # by thread
        self._lock = threading.RLock()
        self.pending: list[HeldEvent] = []

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        self.blocks.append(np.full(size, 0x7F, dtype=np.uint8))
        return self.blocks[-1]

    def is_page_locked(self, source: Tensor) -> bool:
        return self._place(source) is not source

    def to_host(self, source: Tensor, target: Tensor) -> HeldEvent:
        assert not target.numel() or self.is_page_locked(target), "the host waits for a copy to other memory"
        before, alive, place = source.clone(), weakref.ref(source), self._place(target)
        place.view(-1).view(torch.uint8).fill_(0xFF)  # NaN for who does not wait

        def end() -> None:
            source = alive()
            assert source is not None, "let go of while it was copied to the host"
            assert torch.equal(source, before), "written to while it was copied to the host"
            place.copy_(source)

        return self._begun(end)

    def to_device(self, source: Tensor) -> tuple[Tensor, HeldEvent]:
        assert not source.numel() or self.is_page_locked(source), (
            "the host waits for a copy from other memory"
        )
        tensor, place = source.clone(), self._place(source)
        before = tensor.clone()

        def end() -> None:
            assert torch.equal(place, before), "written to while it was copied to the device"

        return tensor, self._begun(end)

    def catch_up(self, last: HeldEvent | None = None) -> None:
        """End all copies, or those up to one."""
        with self._lock:
            while self.pending and not (last and last.over):
                event = self.pending.pop(0)
                event.end()
                event.over = True

    def _place(self, tensor: Tensor) -> Tensor:
        """The same memory; page-locked memory without a share in keeping it from others."""
        for block in self.blocks:
            begin = tensor.data_ptr() - block.ctypes.data
            if 0 <= begin < block.size:
                end = begin + tensor.numel() * tensor.element_size()
                return torch.from_numpy(block[begin:end]).view(tensor.dtype).view(tensor.shape)
        return tensor

    def _begun(self, end: Callable[[], None]) -> HeldEvent:
        event = HeldEvent(self, end)
        self.pending.append(event)
        return event
