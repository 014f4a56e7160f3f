"""Which hosts shards and trainers are sent to; and a real Ray with a host of each kind, each with room for one process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.small_job import small_job
from workers import ray_cluster
from workers.host_kinds import HOSTS_LABEL, choices_of_hosts, hosts_for

# In a process of its own: a test process has one Ray, without other nodes.
_PLACE = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from workers.host_kinds import HOSTS_LABEL
from workers.job_spec import JobSpec
from workers.ray_cluster import place

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
kinds = {}
for kind in ("shards", "trainers", ""):
    labels = {HOSTS_LABEL: kind} if kind else {}
    # Ray would choose the host with most memory first.
    memory = (2 if kind else 3) << 30
    kinds[
        cluster.add_node(num_cpus=1, memory=memory, object_store_memory=80 << 20, labels=labels).node_id
    ] = kind
ray.init(address=cluster.address, log_to_driver=False)
def show(job):
    found = place(job, job.name, gpus=False, timeout_s=60, given_up=lambda: False)
    nodes = placement_group_table(found)["bundles_to_node_id"]
    print(json.dumps([kinds[nodes[bundle]] for bundle in sorted(nodes)]), flush=True)
    remove_placement_group(found)

jobs = [JobSpec.model_validate_json(job) for job in sys.argv[1:]]
for job in jobs:
    show(job)
full = placement_group([{"CPU": 1}], bundle_label_selector=[{HOSTS_LABEL: "shards"}])
assert full.wait(60)
show(jobs[0])
"""


GIB = 1 << 30
SHARD, TRAINER = {"CPU": 1.0, "memory": 2.0}, {"CPU": 1.0, "GPU": 1.0}


def host(kept_for: str | None, *, alive: bool = True, **resources: float) -> dict[str, object]:
    labels = {HOSTS_LABEL: kept_for} if kept_for else {}
    return {"Alive": alive, "Labels": labels, "Resources": resources}


@pytest.mark.parametrize("kind", ["shards", "trainers", None])
def test_of_hosts_of_one_sort_there_is_one_choice(kind: str | None) -> None:
    hosts = [host(kind, CPU=4, memory=9), host("shards", alive=False, CPU=4), host(None, memory=9)]
    any_host = [hosts_for("shards")] * 2 + [hosts_for("trainers")]
    assert choices_of_hosts([SHARD] * 2, [TRAINER], hosts) == [any_host]


def test_processes_go_to_hosts_of_their_own_as_far_as_there_is_room_on_them() -> None:
    hosts = [
        host("shards", CPU=2, memory=3),  # memory for one
        host("shards", CPU=2, memory=9),  # CPUs for two
        host("shards", alive=False, CPU=9, memory=9),
        host("trainers", CPU=9),  # no GPU
        host(None, CPU=9, GPU=9, memory=9),
    ]
    own, any_host = choices_of_hosts([SHARD] * 5, [TRAINER] * 2, hosts)
    shared = {HOSTS_LABEL: "!in(shards,trainers)"}
    assert own == [{HOSTS_LABEL: "shards"}] * 3 + [shared] * 2 + [shared] * 2
    assert any_host == [hosts_for("shards")] * 5 + [hosts_for("trainers")] * 2
    assert choices_of_hosts([], [{"CPU": 1.0}], hosts)[0] == [{HOSTS_LABEL: "trainers"}]


@dataclass(frozen=True)
class Asked:
    """A placement group, ready if its selectors are `accepted`."""

    hosts: list[dict[str, str]]
    accepted: list[dict[str, str]]

    def wait(self, seconds: int) -> bool:
        return self.hosts == self.accepted


def test_who_waits_for_a_place_asks_again_where_hosts_have_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = small_job(tmp_path, store__carrier="auto", store__shards=1, train__trainers=1)
    ample = {"CPU": 9, "memory": 2.0**40}
    any_only = [host(None, **ample)]
    both = [*any_only, host("shards", **ample)]
    seen = iter([any_only, any_only, both])
    own, any_host = choices_of_hosts([{"CPU": 1.0}], [{"CPU": 1.0}], both)
    asked: list[Asked] = []
    removed: list[Asked] = []

    def placement_group(
        bundles: object, *, bundle_label_selector: list[dict[str, str]], **_: object
    ) -> Asked:
        asked.append(Asked(bundle_label_selector, own))
        return asked[-1]

    monkeypatch.setattr(ray_cluster, "_TURN_S", 0)
    monkeypatch.setattr("ray.nodes", lambda: next(seen, both))
    monkeypatch.setattr(ray_cluster, "placement_group", placement_group)
    monkeypatch.setattr(ray_cluster, "remove_placement_group", removed.append)
    place = ray_cluster.place(job, "job", gpus=False, timeout_s=60, given_up=lambda: False)
    assert [one.hosts for one in asked] == [any_host, own]  # not once more while nothing had changed
    assert place is asked[-1]
    assert removed == asked[:-1]


@pytest.mark.parametrize(("cpus", "elsewhere"), [(2, False), (3, True)])
def test_who_finds_no_room_is_told_whether_there_is_any(
    monkeypatch: pytest.MonkeyPatch, cpus: int, elsewhere: bool
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": cpus, "memory": 2.0 * GIB})
    message = ray_cluster._no_room([{"CPU": 1.0, "memory": 1.0 * GIB}, {"CPU": 2.0}])
    assert f"ask for 3 CPUs, 0 GPUs and 1.00 GiB in all: free are {cpus}, 0 and 2.00 GiB" in message
    assert ("not on hosts that each of them could take" in message) is elsewhere


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_process_is_on_a_host_that_takes_it(tmp_path: Path) -> None:
    jobs = [
        small_job(tmp_path, store__carrier="auto", store__shards=shards, train__trainers=trainers)
        for shards, trainers in ((1, 1), (2, 1), (1, 2))
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, *(job.model_dump_json() for job in jobs)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one_of_each, two_shards, two_trainers, with_a_host_full = map(json.loads, done.stdout.splitlines()[-4:])
    assert one_of_each == ["shards", "trainers"]
    assert set(two_shards[:2]) == {"shards", ""}
    assert two_shards[2:] == ["trainers"]
    assert two_trainers[:1] == ["shards"]
    assert set(two_trainers[1:]) == {"trainers", ""}
    assert with_a_host_full == ["", "trainers"]
