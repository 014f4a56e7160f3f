"""The NUMA nodes of a host: memory is read fastest by the cores beside it.

A shard that keeps to the cores of one node has its rows in the memory of that node, where Linux puts a page when it is first
touched. The shards of a host take its nodes in turn. Where there are fewer shards than nodes, each has all cores: to do
without half of them would cost more than the way to the other half of the memory.

A process that copies from and to a device, as a trainer does with its GPU, keeps to the node at which the device is attached.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NODES = Path("/sys/devices/system/node")
_PCI_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Neighbours:
    """A shard is number `place` of the `shards` of its host."""

    place: int
    shards: int


def neighbours(hosts: Sequence[str]) -> list[Neighbours]:
    """Of every shard, by the hosts on which they are."""
    shards, before = Counter(hosts), Counter[str]()
    found = []
    for host in hosts:
        found.append(Neighbours(before[host], shards[host]))
        before[host] += 1
    return found


def cores_of_nodes(allowed: frozenset[int], nodes: Path = _NODES) -> list[frozenset[int]]:
    """The `allowed` cores of each node that has some, in the order of the nodes; [] if Linux tells of no nodes."""
    folders = sorted(nodes.glob("node[0-9]*"), key=lambda folder: int(folder.name.removeprefix("node")))
    found = [_numbers((folder / "cpulist").read_text()) & allowed for folder in folders]
    return [cores for cores in found if cores]


def _numbers(text: str) -> frozenset[int]:
    """Those of a list such as 0-3,8,10-11."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return frozenset(
        number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)
    )


def keep_to_one_node(shard: Neighbours, nodes: Path = _NODES) -> None:
    """Have this thread, and those that it starts, run on the cores of the shard's own node."""
    try:
        found = cores_of_nodes(frozenset(os.sched_getaffinity(0)), nodes)
    except OSError:
        return
    if 1 < len(found) <= shard.shards:
        os.sched_setaffinity(0, found[shard.place % len(found)])


def keep_beside_device(address: str, devices: Path = _PCI_DEVICES, nodes: Path = _NODES) -> None:
    """Have this thread, and those that it starts, run on the cores beside the device with a PCI address (0000:3b:00.0).

    Nothing changes where Linux does not tell its node (-1 on a host with one), or that node has all cores that this thread
    may use, or none of them.
    """
    try:
        node = int((devices / address / "numa_node").read_text())
        cores = _numbers((nodes / f"node{node}" / "cpulist").read_text())
        allowed = frozenset(os.sched_getaffinity(0))
    except (OSError, ValueError):
        return
    if frozenset() < cores & allowed < allowed:
        os.sched_setaffinity(0, cores & allowed)
