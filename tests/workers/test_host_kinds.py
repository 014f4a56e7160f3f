"""Shards and trainers on a real Ray cluster with hosts of each kind, each with room for one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_job import small_job

# In a process of its own: a test process has one Ray, without other nodes.
_PLACE = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table, remove_placement_group
from workers.host_kinds import HOSTS_LABEL
from workers.job_spec import JobSpec
from workers.ray_cluster import place

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
kinds = {}
for kind in ("shards", "trainers", ""):
    labels = {HOSTS_LABEL: kind} if kind else {}
    kinds[cluster.add_node(num_cpus=1, object_store_memory=80 << 20, labels=labels).node_id] = kind
ray.init(address=cluster.address, log_to_driver=False)
for job in sys.argv[1:]:
    job = JobSpec.model_validate_json(job)
    found = place(job, job.name, gpus=False, timeout_s=60, given_up=lambda: False)
    nodes = placement_group_table(found)["bundles_to_node_id"]
    print(json.dumps([kinds[nodes[bundle]] for bundle in sorted(nodes)]), flush=True)
    remove_placement_group(found)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_process_is_on_a_host_that_takes_it(tmp_path: Path) -> None:
    jobs = [
        small_job(tmp_path, store__carrier="auto", store__shards=shards, train__trainers=trainers)
        for shards, trainers in ((2, 1), (1, 2))
    ]
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, *(job.model_dump_json() for job in jobs)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two_shards, two_trainers = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert set(two_shards[:2]) == {"shards", ""}
    assert two_shards[2:] == ["trainers"]
    assert two_trainers[:1] == ["shards"]
    assert set(two_trainers[1:]) == {"trainers", ""}
