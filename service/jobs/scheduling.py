"""Which jobs start now: by priority, then first come, first served; within each tenant's quota, and what the cluster has.

The first in line waits until there is room, and all behind it wait too: else small jobs would keep a large one out for ever.
Only who waits for his own tenant's quota lets others pass. All whose places are certain (room.py) start at once. Whether the
room that is left can be divided so among the hosts is else for Ray to find out: a job whose places are not certain is
started alone, and waits there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory_store.errors import UsageError
from service.jobs.database import KeptJob
from service.jobs.demand import Demand, Host, Resources, sum_of
from service.jobs.errors import NeverFitsError
from service.jobs.room import certainly_placed


class Quota(BaseModel):
    """What the jobs of a tenant may take at one time; any amount where nothing is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Annotated[float, Field(ge=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    memory_bytes: Annotated[int, Field(ge=0)] | None = None

    def allows(self, total: Resources) -> bool:
        given = (self.cpus, self.gpus, self.memory_bytes)
        return all(
            limit is None or amount <= limit
            for limit, amount in zip(given, (total.cpus, total.gpus, total.memory_bytes), strict=True)
        )

    def __str__(self) -> str:
        limits = {"CPUs": self.cpus, "GPUs": self.gpus, "bytes of memory": self.memory_bytes}
        return ", ".join(f"{limit:g} {what}" for what, limit in limits.items() if limit is not None) or "any"


class Quotas(BaseModel):
    """The quota of each tenant, and `default` for those who have none of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Quota = Quota()
    tenants: Mapping[str, Quota] = {}

    @classmethod
    def read(cls, path: Path) -> Quotas:
        """The quotas of a YAML file. Raises UsageError if it is not one."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except OSError as error:
            raise UsageError(f"The quotas in {path} can't be read: {error.strerror}.") from None
        except (yaml.YAMLError, ValidationError) as error:
            raise UsageError(
                f"{path} holds no quotas: {error}. Write for example: default: {{cpus: 16}}"
            ) from None

    def of(self, tenant: str) -> Quota:
        return self.tenants.get(tenant, self.default)

    def check(self, tenant: str, demand: Demand) -> None:
        """Raises NeverFitsError if a job asks for more than its tenant may ever have."""
        quota = self.of(tenant)
        if not quota.allows(demand.total()):
            raise NeverFitsError(
                f"The job asks for {demand.total()} in all, and the quota of {tenant} is {quota}; ask for less."
            )


def jobs_to_start(
    line: Iterable[KeptJob],
    active: Sequence[KeptJob],
    waiting: Collection[str],
    hosts: Sequence[Host],
    quotas: Quotas,
) -> list[KeptJob]:
    """The jobs of `line`, which is in its order, that start now beside those that are `active`. The ids of those of them
    are `waiting` that have a process already but not their places."""
    cluster = sum_of(hosts)
    taken = sum_of([job.demand.total() for job in active])
    placeless = [job.demand for job in active if job.id in waiting]
    of_tenant: defaultdict[str, Resources] = defaultdict(lambda: Resources(cpus=0))
    for job in active:
        of_tenant[job.tenant] = sum_of([of_tenant[job.tenant], job.demand.total()])
    started: list[KeptJob] = []
    for job in line:
        asked = job.demand.total()
        tenants = sum_of([of_tenant[job.tenant], asked])
        if not quotas.of(job.tenant).allows(tenants):
            continue
        taken = sum_of([taken, asked])
        if not cluster.covers(taken):
            break
        if placeless and not certainly_placed([*placeless, job.demand], taken, hosts):
            break  # two could wait for each other's room
        started.append(job)
        placeless.append(job.demand)
        of_tenant[job.tenant] = tenants
    return started
