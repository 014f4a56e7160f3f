"""Which hosts of a Ray cluster take which processes of a job: all take all, unless some are kept for one kind.

`ray start --labels pkm.hosts=shards` makes a host that takes no trainers, `--labels pkm.hosts=trainers` one that takes no
shards: a host with accelerators and one with much memory then do what each of them is for.
"""

from __future__ import annotations

from typing import Literal

HOSTS_LABEL = "pkm.hosts"

Kind = Literal["shards", "trainers"]


def hosts_for(kind: Kind) -> dict[str, str]:
    """The selector, as Ray's placement groups and jobs know it, of the hosts that take processes of this kind."""
    other: Kind = "trainers" if kind == "shards" else "shards"
    return {HOSTS_LABEL: f"!{other}"}
