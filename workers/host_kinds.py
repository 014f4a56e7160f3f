"""Which hosts of a Ray cluster take which processes of a job: all take all, unless some are kept for one kind.

`ray start --labels pkm.hosts=shards` makes a host that takes no trainers, `--labels pkm.hosts=trainers` one that takes no
shards: a host with accelerators and one with much memory then do what each of them is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

HOSTS_LABEL = "pkm.hosts"

Kind = Literal["shards", "trainers"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_KEPT_FOR_NONE = {HOSTS_LABEL: f"!in({','.join(_KINDS)})"}
Asked = dict[str, float]  # by one process, of each resource


def hosts_for(kind: Kind) -> dict[str, str]:
    """The selector, as Ray's placement groups and jobs know it, of the hosts that take processes of this kind."""
    other: Kind = "trainers" if kind == "shards" else "shards"
    return {HOSTS_LABEL: f"!{other}"}


def choices_of_hosts(
    shards: list[Asked], trainers: list[Asked], nodes: Iterable[Mapping[str, Any]]
) -> list[list[dict[str, str]]]:
    """One selector for each shard and then each trainer, in one or two ways that take turns until there is a place.

    Ray gives a process the host that has most memory free, and doesn't take it back if another then finds none. So where
    some hosts are kept for one kind and others are not, as many processes as these could ever take are first sent to the
    hosts of their own, and the rest to the others: none takes a place that only the other kind could need. Hosts of their
    own may be full with other jobs, though; then any host that takes them will do.

    Args:
        nodes: the hosts, as `ray.nodes()` has them.
    """
    hosts = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    any_host = [hosts_for("shards")] * len(shards) + [hosts_for("trainers")] * len(trainers)
    if len({node["Labels"].get(HOSTS_LABEL) in _KINDS for node in hosts}) < 2:
        return [any_host]
    return [
        _own_hosts_first("shards", shards, hosts) + _own_hosts_first("trainers", trainers, hosts),
        any_host,
    ]


def _own_hosts_first(
    kind: Kind, processes: list[Asked], hosts: list[Mapping[str, Any]]
) -> list[dict[str, str]]:
    room = 0
    if processes:
        most = {name: max(process.get(name, 0) for process in processes) for name in processes[0]}
        for host in hosts:
            if host["Labels"].get(HOSTS_LABEL) == kind:
                room += int(min(host["Resources"].get(name, 0) // ask for name, ask in most.items() if ask))
    own = min(room, len(processes))
    only_own: dict[str, str] = {HOSTS_LABEL: kind}
    return [only_own] * own + [_KEPT_FOR_NONE] * (len(processes) - own)
