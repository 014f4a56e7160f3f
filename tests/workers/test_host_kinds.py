"""Shards and trainers on a real Ray cluster some of whose hosts are kept for one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.small_job import small_job

# In a process of its own: a test process has one Ray, without other nodes.
_PLACE = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from workers.host_kinds import HOSTS_LABEL
from workers.job_spec import JobSpec
from workers.ray_cluster import place

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
kinds = {}
for kind in sys.argv[2].split(","):
    labels = {HOSTS_LABEL: kind} if kind else {}
    kinds[cluster.add_node(num_cpus=4, object_store_memory=80 << 20, labels=labels).node_id] = kind
ray.init(address=cluster.address, log_to_driver=False)
found = place(
    JobSpec.model_validate_json(sys.argv[1]), "test", gpus=False, timeout_s=float(sys.argv[3]), given_up=lambda: False
)
nodes = placement_group_table(found)["bundles_to_node_id"]
print(json.dumps([kinds[nodes[bundle]] for bundle in sorted(nodes)]))
"""


def _placed(tmp_path: Path, kinds: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    job: Any = small_job(tmp_path, store__carrier="auto", store__shards=3, train__trainers=2)
    return subprocess.run(
        [sys.executable, "-c", _PLACE, job.model_dump_json(), kinds, str(timeout_s)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_each_process_is_on_a_host_that_takes_it(tmp_path: Path) -> None:
    done = _placed(tmp_path, "shards,trainers")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["shards"] * 3 + ["trainers"] * 2


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_host_that_says_nothing_takes_both(tmp_path: Path) -> None:
    done = _placed(tmp_path, ",shards")
    assert done.returncode == 0, done.stderr[-2000:]
    placed = json.loads(done.stdout.splitlines()[-1])
    assert placed[3:] == ["", ""]
    assert set(placed[:3]) <= {"", "shards"}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_trainers_wait_for_a_host_that_takes_them(tmp_path: Path) -> None:
    done = _placed(tmp_path, "shards", timeout_s=3)
    assert done.returncode != 0
    assert "StoreError" in done.stderr
