"""What a job asks for; and that no job is refused which a brute force finds a place for."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.actor import shard_bundles
from service.jobs.demand import GIB, Demand, Host, Resources, check_ever_fits, demand_of
from service.jobs.errors import NeverFitsError
from tests.small_job import small_job

amounts = st.integers(0, 4)
kinds = st.sampled_from([None, "shards", "trainers"])
processes = st.builds(Resources, cpus=st.just(1), gpus=st.integers(0, 1), memory_bytes=amounts)
hosts_of_a_cluster = st.lists(
    st.builds(Host, cpus=amounts, gpus=st.integers(0, 2), memory_bytes=amounts, kept_for=kinds), max_size=3
)
demands = st.builds(
    Demand, shards=st.integers(0, 3), shard=processes, trainers=st.integers(1, 2), trainer=processes
)


def can_be_placed(demand: Demand, hosts: list[Host]) -> bool:
    """Try every way to give each process a host."""
    asked = [demand.shard] * demand.shards + [demand.trainer] * demand.trainers
    of_kinds = ["shards"] * demand.shards + ["trainers"] * demand.trainers
    for chosen in product(range(len(hosts)), repeat=len(asked)):
        if any(hosts[host].kept_for not in (None, kind) for host, kind in zip(chosen, of_kinds, strict=True)):
            continue
        left = [[host.cpus, host.gpus, host.memory_bytes] for host in hosts]
        for host, process in zip(chosen, asked, strict=True):
            for place, amount in enumerate((process.cpus, process.gpus, process.memory_bytes)):
                left[host][place] -= amount
        if min((amount for host in left for amount in host), default=0) >= 0:
            return True
    return False


@settings(max_examples=300)
@given(demand=demands, hosts=hosts_of_a_cluster)
def test_a_job_that_fits_is_never_refused(demand: Demand, hosts: list[Host]) -> None:
    if can_be_placed(demand, hosts):
        check_ever_fits(demand, hosts)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ([Host(cpus=8, memory_bytes=3 * GIB)] * 2, "asks for 4 shards of 1 CPUs, 0 GPUs and 2 GiB each.* 2 of them"),
        ([Host(cpus=2, memory_bytes=64 * GIB)] * 2, "6 CPUs, 0 GPUs and 8 GiB in all.* has 4 CPUs"),
        ([Host(cpus=1, memory_bytes=64 * GIB)] * 3, "the 3 hosts of the cluster have room for 3 of them"),
        ([], "the 0 hosts of the cluster have room for 0"),
    ],
)  # fmt: skip
def test_a_job_that_never_fits_is_refused_with_the_numbers(hosts: list[Host], message: str) -> None:
    demand = Demand(
        shards=4, shard=Resources(cpus=1, memory_bytes=2 * GIB), trainers=2, trainer=Resources(cpus=1)
    )
    with pytest.raises(NeverFitsError, match=message):
        check_ever_fits(demand, hosts)


def test_a_host_kept_for_shards_takes_no_trainers_and_the_other_way_round() -> None:
    one = Resources(cpus=1)
    demand = Demand(shards=2, shard=one, trainers=1, trainer=one)
    for_shards, for_trainers = Host(cpus=4, kept_for="shards"), Host(cpus=4, kept_for="trainers")
    check_ever_fits(demand, [for_shards, for_trainers])
    with pytest.raises(
        NeverFitsError, match=r"1 trainers .* room for 0 of them; .* add hosts that take trainers"
    ):
        check_ever_fits(demand, [for_shards])
    with pytest.raises(
        NeverFitsError, match=r"2 shards .* room for 0 of them; .* add hosts that take shards"
    ):
        check_ever_fits(demand, [for_trainers])


def test_a_trainer_that_insists_on_a_gpu_asks_for_one() -> None:
    demand = Demand(shards=0, shard=Resources(cpus=1), trainers=1, trainer=Resources(cpus=1, gpus=1))
    with pytest.raises(NeverFitsError, match="1 trainers of 1 CPUs, 1 GPUs each"):
        check_ever_fits(demand, [Host(cpus=64, memory_bytes=GIB)])
    check_ever_fits(demand, [Host(cpus=64, memory_bytes=GIB), Host(cpus=1, gpus=1)])


def test_a_job_asks_for_a_cpu_each_and_the_memory_of_its_table(tmp_path: Path) -> None:
    job = small_job(tmp_path, store__carrier="auto", store__shards=4, train__trainers=2)
    demand = demand_of(job)
    assert (demand.shards, demand.trainers) == (4, 2)
    assert demand.total().cpus == 6
    assert demand.shards * demand.shard.memory_bytes >= job.table_bytes()
    assert demand.trainer == Resources(cpus=1)


def test_a_job_in_one_process_asks_for_that_one(tmp_path: Path) -> None:
    job = small_job(tmp_path, store__carrier="in_process", train__device="cuda")
    demand = demand_of(job)
    assert (demand.shards, demand.trainers) == (0, 1)
    assert demand.total().cpus == demand.total().gpus == 1
    assert demand.total().memory_bytes >= job.table_bytes()


def test_a_dense_job_asks_for_no_shards(tmp_path: Path) -> None:
    demand = demand_of(small_job(tmp_path, store__carrier="auto", memory=None))
    assert demand.shards == 0
    assert demand.total() == Resources(cpus=1)


def test_what_is_reckoned_with_is_what_ray_is_asked_for() -> None:
    job = small_job(Path("/nowhere"), store__carrier="auto", store__shards=3)
    demand = demand_of(job)
    bundles = shard_bundles(job.tables(), 3)
    assert len(bundles) == demand.shards
    assert max(bundle["memory"] for bundle in bundles) == demand.shard.memory_bytes
    assert {bundle["CPU"] for bundle in bundles} == {demand.shard.cpus}
