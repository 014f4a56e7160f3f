"""The runner beside a cluster that does what it is told, dies where it is told, and counts: no job lost, none twice."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memory_store.errors import UsageError
from service.jobs.cluster import ClusterUnreachableError, ProcessState
from service.jobs.database import JobDatabase, KeptJob, NewJob
from service.jobs.demand import GIB, Demand, Host, Resources, demand_of
from service.jobs.errors import JobConflictError, NeverFitsError
from service.jobs.folder import ServiceFolder
from service.jobs.runner import STARTS_IN_VAIN_MAX, Runner, process_name
from service.jobs.scheduling import Quota, Quotas, jobs_to_start
from service.jobs.states import ENDED, JobState
from tests.small_job import small_job
from workers.halt import wanted_halt
from workers.job_status import Outcome, Status, tell_outcome, tell_status
from workers.report import Progress

HOST = Host(cpus=8, gpus=0, memory_bytes=64 * GIB)


class KilledError(BaseException):
    """The service is killed here."""


@dataclass
class FakeCluster:
    """Processes by name. `die` says before or after which start the service is killed."""

    known: dict[str, ProcessState] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    runs: dict[str, tuple[Path, int]] = field(default_factory=dict)
    die: str = ""
    answers: bool = True
    alone: Resources | None = None
    all_hosts: Sequence[Host] = (HOST,)

    def hosts(self) -> Sequence[Host]:
        return self.all_hosts

    def start(self, process: str, run: Path, attempt: int, job_id: str, alone: Resources | None) -> None:
        self.alone = alone
        if self.die == "before":
            raise KilledError
        if process not in self.known:
            self.known[process] = ProcessState.RUNNING
            self.started.append(process)
            self.runs[process] = run, attempt
        if self.die == "after":
            raise KilledError

    def processes(self) -> Mapping[str, ProcessState]:
        if not self.answers:
            raise ClusterUnreachableError("it does not answer")
        return dict(self.known)

    def stop(self, process: str) -> None:
        self.stopped.append(process)
        self.known[process] = ProcessState.ENDED


@dataclass
class World:
    """A service that can be killed and started again, and the cluster that stays."""

    folder: ServiceFolder
    cluster: FakeCluster
    database: JobDatabase
    runner: Runner
    quotas: Quotas = field(default_factory=Quotas)
    submitted: int = 0

    def submit(self, tenant: str = "ann", priority: int = 0, cpus: float = 3) -> KeptJob:
        self.submitted += 1
        demand = Demand(shards=2, shard=Resources(cpus=1), trainers=1, trainer=Resources(cpus=cpus - 2))
        spec = small_job(Path("/nowhere"), store__carrier="auto").model_dump_json()
        return self.database.submit(
            NewJob(tenant, f"request-{self.submitted}", "small", spec, demand, priority)
        )

    def restart(self) -> None:
        self.database.close()
        self.database = JobDatabase(self.folder.database)
        self.runner = Runner(self.database, self.cluster, self.folder, self.quotas)

    def look(self) -> None:
        self.runner.look()

    def now(self, job: KeptJob) -> KeptJob:
        return self.database.get(job.id)

    def tell(self, job: KeptJob, phase: str, step: int = 1) -> None:
        run = self.folder.run(job.tenant, job.id).path
        progress = Progress(phase, step, 60)
        tell_status(run, Status(attempt=self.now(job).attempt, progress=progress))

    def end(self, job: KeptJob, kind: str = "succeeded") -> None:
        job = self.now(job)
        run = self.folder.run(job.tenant, job.id).path
        tell_outcome(run, Outcome.model_validate({"attempt": job.attempt, "kind": kind, "message": kind}))
        self.cluster.known[process_name(job)] = ProcessState.ENDED

    def lose(self, job: KeptJob) -> None:
        self.cluster.known[process_name(self.now(job))] = ProcessState.ENDED


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = ServiceFolder(tmp_path / "service")
    cluster, database = FakeCluster(), JobDatabase(folder.database)
    return World(folder, cluster, database, Runner(database, cluster, folder, Quotas()))


@pytest.fixture(autouse=True)
def _the_demand_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demands of these jobs are made up: those of their job files are others."""
    monkeypatch.setattr(Runner, "_follow_demand", lambda *_: None)


# ---- whose turn it is --------------------------------------------------------------------------------------------


def test_all_that_certainly_fit_start_at_once_in_their_order(world: World) -> None:
    first, second, third = (world.submit() for _ in range(3))
    urgent = world.submit(priority=5)
    world.look()
    states = [world.now(job).state for job in (urgent, first, second, third)]
    assert states == ["starting", "starting", "queued", "queued"]
    world.tell(first, "training")
    world.end(urgent)
    world.look()
    assert [world.now(job).state for job in (urgent, first, second)] == ["succeeded", "running", "starting"]


def test_beside_one_that_might_not_fit_nobody_starts_until_it_has_its_place(world: World) -> None:
    world.cluster.all_hosts = [Host(cpus=3, memory_bytes=GIB)] * 3
    first, second, third = (
        world.submit(cpus=4) for _ in range(3)
    )  # of 2 shards, and a trainer that takes 2 CPUs
    world.look()
    assert [world.now(job).state for job in (first, second)] == ["starting", "queued"]
    world.tell(first, "waiting")
    world.look()
    assert world.now(second).state == JobState.QUEUED
    world.tell(first, "starting")
    world.look()
    assert [world.now(job).state for job in (first, second, third)] == ["starting", "starting", "queued"]


def test_a_large_job_that_waits_is_not_overtaken_by_small_ones(world: World) -> None:
    running, large, small = world.submit(), world.submit(cpus=8), world.submit()
    world.look()
    world.tell(running, "training")
    world.look()
    assert [world.now(job).state for job in (running, large, small)] == ["running", "queued", "queued"]
    world.end(running)
    world.look()
    assert [world.now(job).state for job in (large, small)] == [JobState.STARTING, JobState.QUEUED]


def test_who_waits_for_the_quota_of_his_tenant_lets_others_pass(world: World) -> None:
    quotas = Quotas(default=Quota(cpus=3))
    mine, mine_too, other = world.submit("ann"), world.submit("ann"), world.submit("bob")
    line = world.database.in_line()
    assert jobs_to_start(line, [], (), [HOST], quotas) == [mine, other]
    assert jobs_to_start(line[1:], [mine], (), [HOST], quotas) == [other]
    assert jobs_to_start(line[1:2], [mine], (), [HOST], quotas) == []
    assert jobs_to_start(line, [], (), [HOST], Quotas()) == [mine, mine_too]


def test_a_job_beyond_its_tenants_quota_is_refused_with_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text("default: {cpus: 2}\ntenants: {ann: {cpus: 4, memory_bytes: 1024}}\n")
    quotas = Quotas.read(path)
    demand = Demand(shards=2, shard=Resources(cpus=1), trainers=1, trainer=Resources(cpus=1))
    quotas.check("ann", demand)
    with pytest.raises(NeverFitsError, match=r"asks for 3 CPUs.*quota of bob is 2 CPUs"):
        quotas.check("bob", demand)
    path.write_text("defautl: {cpus: 2}\n")
    with pytest.raises(UsageError, match="holds no quotas"):
        Quotas.read(path)


# ---- what becomes of a job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "state"), [("succeeded", "succeeded"), ("failed", "failed")])
def test_a_job_ends_as_its_process_says(world: World, kind: str, state: str) -> None:
    job = world.submit()
    world.look()
    world.tell(job, "training")
    world.look()
    world.tell(job, "recovering")
    world.look()
    assert world.now(job).state == JobState.RECOVERING
    world.tell(job, "training")
    world.look()
    world.end(job, kind)
    world.look()
    states = [change.state for change in world.database.changes(world.now(job))]
    assert states == ["queued", "starting", "running", "recovering", "running", state]
    assert world.now(job).reason == kind


def test_a_job_pauses_and_goes_on_as_another_attempt(world: World) -> None:
    job = world.submit()
    world.look()
    world.tell(job, "training")
    world.look()
    world.database.pause(job.id, "lunch")
    world.look()
    halt_path = world.folder.run("ann", job.id).halt_path
    halt = wanted_halt(halt_path)
    assert halt is not None
    assert halt.purpose == "pause"
    world.end(job, "halted")
    world.look()
    assert world.now(job).state == JobState.PAUSED
    world.database.resume(job.id, "")
    world.look()
    assert (world.now(job).state, world.now(job).attempt) == (JobState.STARTING, 2)
    assert not halt_path.exists()
    assert world.now(job).state not in ENDED  # the outcome that lies there is of the first attempt
    world.look()
    assert world.now(job).state == JobState.STARTING


def test_a_cancelled_job_that_does_not_stop_is_ended(world: World) -> None:
    world.runner = Runner(world.database, world.cluster, world.folder, Quotas(), cancel_patience_s=-1)
    job = world.submit()
    world.look()
    world.tell(job, "training")
    world.look()
    world.database.pause(job.id, "")
    world.look()
    world.database.cancel(job.id, "")
    world.look()
    assert world.cluster.stopped == [process_name(world.now(job))]
    world.look()
    assert world.now(job).state == JobState.CANCELLED


def test_a_job_whose_process_is_lost_waits_again_but_not_for_ever(world: World) -> None:
    job = world.submit()
    for attempt in range(1, STARTS_IN_VAIN_MAX + 1):
        world.look()
        assert world.now(job).attempt == attempt
        world.lose(job)
        world.runner._follow(world.now(job), ProcessState.ENDED)
        assert world.now(job).state == JobState.QUEUED
    world.look()
    assert world.now(job).state == JobState.FAILED
    assert "without a new cut" in world.now(job).reason


def test_a_cluster_that_was_started_anew_gets_all_running_jobs_again(world: World) -> None:
    job = world.submit()
    world.look()
    world.tell(job, "training")
    world.look()
    world.cluster.known.clear()
    world.look()
    world.look()
    assert (world.now(job).state, world.now(job).attempt) == (JobState.STARTING, 2)


def test_while_the_cluster_does_not_answer_nothing_is_lost(world: World) -> None:
    job = world.submit()
    world.cluster.answers = False
    with pytest.raises(ClusterUnreachableError):
        world.look()
    assert world.now(job).state == JobState.QUEUED
    world.cluster.answers = True
    world.look()
    assert world.now(job).state == JobState.STARTING


def test_a_job_that_can_not_be_looked_after_does_not_keep_others_from_it(world: World) -> None:
    broken, other = world.submit(), world.submit()
    for job in (broken, other):
        world.look()
        world.tell(job, "training")
        world.look()
    (world.folder.run("ann", broken.id).path / "status.json").write_text("{")
    world.end(other)
    world.look()
    assert [world.now(job).state for job in (broken, other)] == [JobState.RUNNING, JobState.SUCCEEDED]


@pytest.mark.parametrize(
    ("changes", "takes_it"),
    [
        ({"store__carrier": "auto"}, False),
        ({"store__carrier": "auto", "memory": None}, False),  # no shards, but trainers in a placement group
        ({"store__carrier": "in_process"}, True),
    ],
)
def test_only_a_driver_that_trains_itself_takes_what_that_needs(
    world: World, changes: dict[str, Any], takes_it: bool
) -> None:
    spec = small_job(Path("/nowhere"), **changes)
    demand = demand_of(spec)
    world.database.submit(NewJob("ann", "r", "small", spec.model_dump_json(), demand, 0))
    world.look()
    assert world.cluster.alone == (demand.trainer if takes_it else None)


# ---- a service that is killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("die", ["before", "after"])
def test_a_service_killed_at_a_start_starts_the_job_once(world: World, die: str) -> None:
    job = world.submit()
    world.cluster.die = die
    with pytest.raises(KilledError):
        world.look()
    world.cluster.die = ""
    world.restart()
    world.look()
    world.look()
    assert world.cluster.started == [process_name(world.now(job))]
    assert (world.now(job).state, world.now(job).attempt) == (JobState.STARTING, 1)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_job_ends_where_it_was_wanted_and_none_runs_twice(
    world: World, seed: int
) -> None:
    choose = random.Random(seed)
    jobs: list[KeptJob] = []
    wishes: dict[str, str] = {}

    def happen() -> None:
        what = choose.choice(
            [
                "submit",
                "look",
                "look",
                "kill",
                "die",
                "get on",
                "halt",
                "end",
                "lose",
                "cancel",
                "pause",
                "resume",
            ]
        )
        if what == "submit" and len(jobs) < 6:
            jobs.append(world.submit(choose.choice(["ann", "bob"]), choose.randrange(3)))
        elif what == "look":
            world.look()
        elif what == "kill":
            world.restart()
        elif what == "die":
            world.cluster.die = choose.choice(["before", "after"])
            try:
                world.look()
            except KilledError:
                world.restart()
            world.cluster.die = ""
        elif jobs:
            act(what, choose.choice(jobs))

    def act(what: str, job: KeptJob) -> None:
        running = world.cluster.known.get(process_name(world.now(job))) is ProcessState.RUNNING
        halt = world.folder.run(job.tenant, job.id).halt_path
        if what in ("cancel", "pause", "resume"):
            try:
                getattr(world.database, what)(job.id, "")
            except JobConflictError:
                return
            wishes[job.id] = what
        elif running and what == "get on":
            world.tell(job, choose.choice(["waiting", "starting", "training", "recovering"]))
        elif running and what == "halt" and halt.exists():
            world.end(job, "halted")
        elif running and what == "end" and choose.random() < 0.3:
            world.end(job)
        elif running and what == "lose" and choose.random() < 0.2:
            world.lose(job)

    for _ in range(200):
        happen()
        alive = [name for name, state in world.cluster.known.items() if state is ProcessState.RUNNING]
        owners = [name.rpartition("-")[0] for name in alive]
        assert len(owners) == len(set(owners)), "a job has two processes"
        assert len(world.cluster.started) == len(set(world.cluster.started)), "an attempt was started twice"
    for _ in range(60):  # people go home, and everything comes to its end
        world.look()
        for job in jobs:
            state = world.now(job).state
            if state == JobState.PAUSED:
                world.database.resume(job.id, "")
                wishes.pop(job.id, None)
            elif world.cluster.known.get(process_name(world.now(job))) is ProcessState.RUNNING:
                world.tell(job, "training")
                halted = world.folder.run(job.tenant, job.id).halt_path.exists()
                world.look()
                world.end(job, "halted" if halted else "succeeded")
    for job in jobs:
        allowed = {"cancelled", "succeeded"} if wishes.get(job.id) == "cancel" else {"succeeded", "failed"}
        assert world.now(job).state in allowed, world.database.changes(world.now(job))
    assert ProcessState.RUNNING not in world.cluster.known.values(), "a process is left without a job"
