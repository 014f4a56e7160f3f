"""The trainers of a job as one trainer sees them: its rank, and the few collectives that training needs.

Nothing is pickled: what ranks tell each other are tensors. Numbers that a host needs go from host to host, so that nobody
waits for a device to learn them. With one trainer no process group is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from memory_store.messages import Sender

_SESSION_BYTES = 32
_TEXT_BYTES_MAX = 256


@dataclass(frozen=True)
class Ranks:
    """This trainer's `rank` of `world`, and its device; `waiting` is entered round every wait for the others."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def leads(self) -> bool:
        """Whether this trainer does what is done once: cuts, logs, opening the group."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all trainers."""
        self.sum(0.0)

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all trainers, in float64."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(tensor)
        return [float(number) for number in tensor.tolist()]

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all trainers."""
        if self.world == 1:
            return counts
        whole = counts.clone()
        dist.all_reduce(whole)
        return whole

    def from_leader(self, number: int) -> int:
        """The leader's number, at every trainer."""
        if self.world == 1:
            return number
        tensor = torch.tensor([number], dtype=torch.int64)
        with self.waiting():
            dist.broadcast(tensor, 0)
        return int(tensor.item())

    def every(self, text: str) -> list[str]:
        """The texts, of ASCII and below 256 letters, of all trainers."""
        if self.world == 1:
            return [text]
        mine = torch.tensor(list(text.encode("ascii").ljust(_TEXT_BYTES_MAX)), dtype=torch.int64)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        with self.waiting():
            dist.all_gather(found, mine)
        return [bytes(letters.tolist()).decode("ascii").rstrip() for letters in found]

    def sender_from_leader(self, sender: Sender | None) -> Sender:
        """The leader's sender (None elsewhere), with this trainer's own writer number."""
        if self.world == 1 and sender is not None:
            return sender
        session = sender.session if sender is not None else "0" * _SESSION_BYTES
        letters = torch.tensor(list(session.encode()), dtype=torch.int64)
        dist.broadcast(letters, 0)
        epoch = self.from_leader(sender.epoch if sender is not None else 0)
        return Sender(bytes(letters.tolist()).decode(), epoch, self.rank)
