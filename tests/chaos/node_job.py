"""A job on a Ray cluster of two nodes, one of which is killed with all that runs on it.

    python -m tests.chaos.node_job RUN STEPS

RUN holds the job; after STEPS steps a node that hosts a shard, and is not the head, dies. Prints what died, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from memory_store.actor import NAMESPACE
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train

CPUS = 4  # of each node: the one that is left must hold all processes


def main() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    run, steps = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": CPUS, "object_store_memory": 80 << 20}
    )
    ray.init(address=cluster.address, log_to_driver=False)  # by way of the head, which stays
    other: Any = cluster.add_node(num_cpus=CPUS, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    job, died = run.load_job(), {}

    def kill_node() -> None:
        while len(read_records(run.metrics_path)) < steps:
            time.sleep(0.05)
        for shard in range(job.store.shards):
            actor = ray.get_actor(f"{job.name}-shard-{shard}", namespace=NAMESPACE)
            if ray.get(actor.binding.remote()).node == other.node_id:
                died["shard"] = shard
        died["step"] = len(read_records(run.metrics_path))
        cluster.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=kill_node, daemon=True)
    thread.start()
    report = train(job, run, on_progress=lambda _: None)
    thread.join(60)
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({**died, "restarts": report.restarts}), flush=True)
    os._exit(0)  # or Ray ends the process in its own way, because one of its own has died


if __name__ == "__main__":
    main()
