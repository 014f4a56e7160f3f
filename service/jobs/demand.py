"""What the processes of a job ask of a cluster, and whether a cluster could ever give it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from memory_store.table import PROCESS_BYTES
from service.jobs.errors import NeverFitsError
from workers.host_kinds import Kind
from workers.job_spec import JobSpec
from workers.plan_sizes import shard_bytes

GIB = 1 << 30


class Resources(BaseModel):
    """Of one process, or of one host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float
    gpus: float = 0
    memory_bytes: int = 0

    def room_for(self, process: Resources) -> int:
        """How many such processes these resources are enough for."""
        return int(
            min(have // ask for have, ask in zip(self.amounts(), process.amounts(), strict=True) if ask > 0)
        )

    def covers(self, other: Resources) -> bool:
        """Whether there is as much of everything here."""
        return all(have >= ask for have, ask in zip(self.amounts(), other.amounts(), strict=True))

    def amounts(self) -> tuple[float, ...]:
        """CPUs, GPUs, bytes of memory."""
        return self.cpus, self.gpus, self.memory_bytes

    def __str__(self) -> str:
        memory = f" and {self.memory_bytes / GIB:.3g} GiB" if self.memory_bytes else ""
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs{memory}"


class Host(Resources):
    """What a host has, and `kept_for`, the only kind of process that it takes, if it is kept for one."""

    kept_for: Kind | None = None

    def takes(self, kind: Kind) -> bool:
        """Whether processes of this kind may run here."""
        return self.kept_for in (None, kind)


class Demand(BaseModel):
    """`shards` processes that take `shard` each, and `trainers` that take `trainer` each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int
    shard: Resources
    trainers: int
    trainer: Resources

    def parts(self) -> tuple[tuple[Kind, int, Resources], ...]:
        """How many processes of each kind, and what each takes."""
        return ("shards", self.shards, self.shard), ("trainers", self.trainers, self.trainer)

    def total(self) -> Resources:
        return sum_of([self.shard] * self.shards + [self.trainer] * self.trainers)


def sum_of(parts: Sequence[Resources]) -> Resources:
    """All of them together."""
    return Resources(
        cpus=sum(part.cpus for part in parts),
        gpus=sum(part.gpus for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
    )


def larger(one: Demand, other: Demand) -> Demand:
    """The one that asks for more processes."""
    return max(one, other, key=lambda demand: demand.shards + demand.trainers)


def demand_of(job: JobSpec) -> Demand:
    """A CPU for every process, a GPU for every trainer of a job that insists on them, and the memory of the shards: what
    memory_store/actor.py asks Ray for."""
    tables = job.tables()
    table_bytes = shard_bytes(tables, job.store.shards) if tables else 0
    inside = job.store.carrier == "in_process"
    if tables and inside and job.train.trainers > 1:  # each has its part
        table_bytes = shard_bytes(tables, job.train.trainers)
    return Demand(
        shards=job.shard_processes(),
        shard=Resources(cpus=1, memory_bytes=0 if inside else PROCESS_BYTES + table_bytes),
        trainers=job.train.trainers,
        trainer=Resources(
            cpus=1,
            gpus=int(job.train.device == "cuda"),
            memory_bytes=table_bytes * job.store.shards if inside else 0,
        ),
    )


def check_ever_fits(demand: Demand, hosts: Sequence[Host]) -> None:
    """Raises NeverFitsError, with the numbers, if the job could not run were all `hosts` free of other jobs.

    A job that passes may still not fit, where its processes can't be divided among the hosts; none that fits is refused.
    """
    for what, count, process in demand.parts():
        room = sum(host.room_for(process) for host in hosts if host.takes(what))
        if count > room:
            raise NeverFitsError(
                f"The job asks for {count} {what} of {process} each, and the {len(hosts)} hosts of the cluster have room "
                f"for {room} of them; ask for fewer or smaller ones, or add hosts that take {what}."
            )
    total = demand.total()
    cluster = sum_of(hosts)
    if not cluster.room_for(total):
        raise NeverFitsError(
            f"The job asks for {total} in all, and the whole cluster has {cluster}; use fewer store.shards or "
            "train.trainers, or add hosts."
        )
