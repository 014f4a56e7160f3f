"""Whether processes certainly find their places among the hosts, wherever others lie.

Which host a process gets is Ray's to choose: it gives a job all its places or none, and each process any host that has room,
first one that has none of the job's yet. So a place is certain only if some host has room however all else is divided among
the hosts. A host is kept from a process by whoever takes more of one resource than that host can spare; the hosts that can
be kept from it, with what is taken in all, are counted for each resource. Where they are fewer than there are hosts, one is
left. (Of one host, and of like hosts and one resource, the count is exact; else, and where hosts are kept for shards or for
trainers, it may call uncertain what is certain.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor

from service.jobs.demand import Demand, Host, Resources
from workers.host_kinds import Kind


def certainly_placed(waiting: Iterable[Demand], taken: Resources, hosts: Sequence[Host]) -> bool:
    """Whether all that wait find their places, in whatever order they are served. `taken` is what they and all others take
    together; amounts are whole CPUs, GPUs and bytes."""
    processes: set[tuple[Kind, Resources]] = {
        (kind, process) for demand in waiting for kind, count, process in demand.parts() if count
    }
    return all(
        _finds_room(process, taken, [host for host in hosts if host.takes(kind)])
        for kind, process in processes
    )


def _finds_room(process: Resources, taken: Resources, hosts: Sequence[Host]) -> bool:
    large_enough = [host.amounts() for host in hosts if host.covers(process)]
    kept_from_it = 0
    for resource, (ask, all_take) in enumerate(zip(process.amounts(), taken.amounts(), strict=True)):
        if ask > 0:
            spare = [host[resource] - ask for host in large_enough]
            kept_from_it += _hosts_filled(all_take - ask, spare)
    return kept_from_it < len(large_enough)


def _hosts_filled(amount: float, spare: Sequence[float]) -> int:
    """Of how many hosts an amount can take more than they can spare."""
    filled = 0
    for least in sorted(spare):
        amount -= floor(least) + 1
        if amount < 0:
            break
        filled += 1
    return filled
