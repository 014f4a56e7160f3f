"""Which jobs start at once, beside brute force: every way in which processes can lie on hosts, and a Ray that chooses any."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.jobs.database import KeptJob
from service.jobs.demand import Demand, Host, Resources, sum_of
from service.jobs.room import certainly_placed
from service.jobs.scheduling import Quota, Quotas, jobs_to_start
from service.jobs.states import JobState
from workers.host_kinds import Kind

UNIT = Resources(cpus=1)
JOB = KeptJob(
    id="", tenant="ann", name="small", priority=0, demand=Demand(shards=0, shard=UNIT, trainers=1, trainer=UNIT),
    state=JobState.QUEUED, reason="", wanted="run", attempt=0, submitted_at=0, changed_at=0, started_at=None,
    ended_at=None, number=0,
)  # fmt: skip

processes = st.builds(Resources, cpus=st.just(1), gpus=st.integers(0, 1), memory_bytes=st.integers(0, 2))
demands = st.builds(
    Demand, shards=st.integers(0, 2), shard=processes, trainers=st.integers(1, 2), trainer=processes
)
any_hosts = st.lists(
    st.builds(
        Host,
        cpus=st.integers(1, 4),
        gpus=st.integers(0, 2),
        memory_bytes=st.integers(0, 5),
        kept_for=st.sampled_from([None, None, "shards", "trainers"]),
    ),
    min_size=1,
    max_size=3,
)


Process = tuple[Kind, Resources]
Room = tuple[Kind | None, tuple[float, ...]]  # of one host: whom it takes, and what is free of each resource
Free = tuple[Room, ...]  # on each host


one_host = any_hosts.map(lambda hosts: [hosts[0].model_copy(update={"kept_for": None})])


def processes_of(demand: Demand) -> list[Process]:
    shards: list[Process] = [("shards", demand.shard)] * demand.shards
    trainers: list[Process] = [("trainers", demand.trainer)] * demand.trainers
    return shards + trainers


def free_on(hosts: Sequence[Host]) -> Free:
    return tuple((host.kept_for, host.amounts()) for host in hosts)


def fits(room: Room, process: Process) -> bool:
    (kept_for, free), (kind, asked) = room, process
    return kept_for in (None, kind) and all(
        have >= ask for have, ask in zip(free, asked.amounts(), strict=True)
    )


def without(free: Free, place: int, process: Process) -> Free:
    kept_for, had = free[place]
    left = tuple(have - ask for have, ask in zip(had, process[1].amounts(), strict=True))
    return (*free[:place], (kept_for, left), *free[place + 1 :])


def ways(asked: Sequence[Process], free: Free) -> set[Free]:
    """What is left on each host, for every way to give each process one."""
    left = {free}
    for process in asked:
        left = {
            without(before, place, process)
            for before in left
            for place in range(len(free))
            if fits(before[place], process)
        }
    return left


def might_not_be_placed(waiting: Sequence[Demand], others: Sequence[Demand], hosts: Sequence[Host]) -> bool:
    """Whether one of the processes that wait finds no host, in some way in which all others can lie."""
    everything = [process for demand in (*waiting, *others) for process in processes_of(demand)]
    for process in {process for demand in waiting for process in processes_of(demand)}:
        rest = list(everything)
        rest.remove(process)
        if any(not any(fits(host, process) for host in free) for free in ways(rest, free_on(hosts))):
            return True
    return False


@settings(max_examples=400, deadline=None)
@given(
    waiting=st.lists(demands, min_size=1, max_size=2), others=st.lists(demands, max_size=1), hosts=any_hosts
)
def test_what_is_certain_is_so_in_every_way_that_processes_can_lie(
    waiting: list[Demand], others: list[Demand], hosts: list[Host]
) -> None:
    taken = sum_of([demand.total() for demand in (*waiting, *others)])
    if certainly_placed(waiting, taken, hosts):
        assert not might_not_be_placed(waiting, others, hosts)


@settings(max_examples=300, deadline=None)
@given(
    case=st.one_of(
        st.tuples(st.lists(demands, min_size=1, max_size=3), one_host),
        st.tuples(
            st.lists(st.builds(Demand, shards=st.integers(0, 2), shard=st.just(UNIT), trainers=st.integers(1, 2),
                               trainer=st.just(UNIT)), min_size=1, max_size=3),
            st.builds(lambda cpus, count: [Host(cpus=cpus)] * count, st.integers(1, 3), st.integers(1, 3)),
        ),
    )
)  # fmt: skip
def test_on_one_host_and_on_like_hosts_of_cpus_all_that_is_certain_is_found(
    case: tuple[list[Demand], list[Host]],
) -> None:
    wanted, hosts = case
    taken = sum_of([demand.total() for demand in wanted])
    if sum_of(hosts).covers(taken) and not might_not_be_placed(wanted[:1], wanted[1:], hosts):
        assert certainly_placed(wanted[:1], taken, hosts)


class AnyRay:
    """Places whole jobs in any order, each process on any host that has room, first on one that has none of its job; it
    never comes back on a choice."""

    def __init__(self, hosts: Sequence[Host], choose: random.Random) -> None:
        self.hosts, self.choose = hosts, choose
        self.places: dict[str, list[tuple[int, Process]]] = {}

    def free(self) -> Free:
        left = free_on(self.hosts)
        for place, process in (each for places in self.places.values() for each in places):
            left = without(left, place, process)
        return left

    def place(self, job: KeptJob) -> bool:
        left, places = self.free(), list[tuple[int, Process]]()
        for process in processes_of(job.demand):
            fitting = [place for place, host in enumerate(left) if fits(host, process)]
            fresh = [place for place in fitting if place not in {used for used, _ in places}]
            if not fitting:
                return False
            chosen = self.choose.choice(fresh or fitting)
            left = without(left, chosen, process)
            places.append((chosen, process))
        self.places[job.id] = places
        return True


def random_demand(choose: random.Random) -> Demand:
    shard, trainer = (
        Resources(cpus=1, gpus=choose.choice([0, 0, gpus]), memory_bytes=choose.randrange(3))
        for gpus in (0, 1)
    )
    return Demand(shards=choose.randrange(3), shard=shard, trainers=choose.randint(1, 2), trainer=trainer)


@pytest.mark.parametrize("seed", range(60))
def test_in_any_history_who_starts_is_placed_and_who_is_first_in_line_waits_only_for_room(seed: int) -> None:
    choose = random.Random(seed)
    hosts = [
        Host(
            cpus=choose.randint(2, 5),
            gpus=choose.randrange(2),
            memory_bytes=choose.randint(2, 6),
            kept_for=choose.choice([None, None, None, "shards", "trainers"]),
        )
        for _ in range(choose.randint(1, 4))
    ]
    quotas = Quotas(tenants={"bob": Quota(cpus=3)})
    ray = AnyRay(hosts, choose)
    line: list[KeptJob] = []
    placed: list[KeptJob] = []
    waiting: list[KeptJob] = []
    for number in range(80):
        demand = random_demand(choose)
        if ways(processes_of(demand), free_on(hosts)):
            line.append(replace(JOB, id=f"job-{number}", tenant=choose.choice(["ann", "bob"]), demand=demand))
        if placed and choose.random() < 0.6:
            ended = placed.pop(choose.randrange(len(placed)))
            del ray.places[ended.id]
        active = [*placed, *waiting]
        started = jobs_to_start(line, active, {job.id for job in waiting}, hosts, quotas)
        allowed = [job for job in line if within_quota(job, line, active, started, quotas)]
        assert started == allowed[: len(started)], "somebody was overtaken"
        if not started and allowed and not waiting:
            assert not ways(processes_of(allowed[0].demand), ray.free()), "held back, and there is room"
        certain = len(started) > 1 or bool(waiting and started)
        line = [job for job in line if job not in started]
        waiting += started
        for job in choose.sample(waiting, len(waiting)):
            if ray.place(job):
                waiting.remove(job)
                placed.append(job)
        assert not (certain and waiting), "a job was started for which there is no room"
        assert len(waiting) <= 1


def within_quota(
    job: KeptJob, line: list[KeptJob], active: list[KeptJob], started: list[KeptJob], quotas: Quotas
) -> bool:
    before = [other for other in started if line.index(other) < line.index(job)]
    mine = [other.demand.total() for other in (*active, *before, job) if other.tenant == job.tenant]
    return quotas.of(job.tenant).allows(sum_of(mine))
