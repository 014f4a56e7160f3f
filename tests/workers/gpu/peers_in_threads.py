"""Trainers as threads of one process, each with a device store that holds its part of the tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from memory_store.carriers.in_process import InProcessCarrier
from memory_store.shard_host import ShardHost
from memory_store.table_spec import TableSpec
from workers.gpu.device_store import DeviceStore

TIMEOUT_S = 60.0
Result = TypeVar("Result")


class Meeting:
    """Where `world` threads give and take."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=TIMEOUT_S)
        self.given: list[Tensor] = [torch.empty(0)] * world
        self.hosts: list[ShardHost | None] = [None] * world

    def exchange(self, rank: int, mine: Tensor) -> list[Tensor]:
        """The tensors of all, at each."""
        self.given[rank] = mine.detach().clone()
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found


class ThreadPeers:
    """`workers.gpu.device_peers.Peers` of one of them."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank, self.world, self._meeting = rank, meeting.world, meeting

    def gather(self, mine: Tensor) -> Tensor:
        return torch.cat(self._meeting.exchange(self.rank, mine))

    def sum_of_mine(self, parts: Tensor) -> Tensor:
        every = self._meeting.exchange(self.rank, parts)
        return torch.stack([whole.chunk(self.world)[self.rank] for whole in every]).sum(0)

    def total(self, number: Tensor) -> Tensor:
        return torch.stack(self._meeting.exchange(self.rank, number)).sum(0)


def shared_stores(specs: Sequence[TableSpec], world: int) -> list[DeviceStore]:
    """The stores of all, which have joined as writers; the first one leads."""
    meeting = Meeting(world)

    def opened(rank: int) -> DeviceStore:
        def reach(host: ShardHost) -> list[InProcessCarrier]:
            meeting.hosts[rank] = host
            meeting.barrier.wait()
            return [InProcessCarrier(host) for host in meeting.hosts if host is not None]

        peers = ThreadPeers(meeting, rank)
        return DeviceStore(specs, torch.device("cpu"), peers=peers, reach=reach, incarnation=f"rank{rank}")

    stores = at_once(world, opened)
    leads = stores[0].take_over(world)
    for rank, store in enumerate(stores):
        store.join(type(leads)(leads.session, leads.epoch, rank), world)
    return stores


def at_once(world: int, work: Callable[[int], Result]) -> list[Result]:
    """What `work(rank)` gives, all at once in threads; raises what one of them raises."""
    with ThreadPoolExecutor(world) as threads:
        return [future.result() for future in [threads.submit(work, rank) for rank in range(world)]]
