"""The Ray on which a job runs: one started here for this process alone, or a cluster that it shares with other jobs.

All processes of a job are in one placement group: first its shards, then its trainers, spread over the hosts that take them
(host_kinds.py). A job so has its whole place or none of it, and two jobs never wait for each other's half.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from memory_store.actor import shard_bundles
from memory_store.errors import StoreError, UsageError
from workers.host_kinds import choices_of_hosts
from workers.job_spec import JobSpec

_OBJECT_STORE_BYTES = 100 << 20  # nothing that counts goes through it
_LOOK_S = 1  # Ray knows whole seconds
_TURN_S = 10  # for which a place on one choice of hosts is waited for; hosts come and go meanwhile
_embedded_for = 0  # CPUs of the Ray that this process has started for itself


def processes(job: JobSpec) -> int:
    """How many shards and trainers the job has."""
    return job.train.trainers + job.shard_processes()


def start_embedded_ray(room: int) -> None:
    """Start a Ray for this process alone, with room for `room` shards and trainers, unless it is on a Ray already."""
    global _embedded_for
    if ray.is_initialized():
        return
    _embedded_for = max(os.cpu_count() or 1, room)
    # Ray turns its token authentication on by itself for a cluster started here.
    for name, value in ray_environment().items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",  # not one that others have started on this machine
        num_cpus=_embedded_for,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def join_cluster(namespace: str) -> None:
    """Have this process be the driver of a job, whose actors are named in `namespace`, on the cluster it is started by."""
    ray.init(address="auto", namespace=namespace, log_to_driver=True, configure_logging=False)


def ray_environment() -> dict[str, str]:
    """What a Ray that hosts shards is started with."""
    return {
        # Shards hold state: they must not run at lower priority than others, nor be the first to be killed.
        "RAY_worker_niceness": "0",
        "RAY_worker_oom_score_adjustment": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def make_room(room: int) -> None:
    """Replace a Ray that was started here, on which nothing runs now, by one for more processes, if they are more."""
    if 0 < _embedded_for < room:
        ray.shutdown()
        start_embedded_ray(room)


def check_room(room: int) -> None:
    """Raises UsageError if the cluster could never run `room` processes: their placement would be waited for without end."""
    cpus: float = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    if cpus < room:
        raise UsageError(
            f"The job's shards and trainers are {room} processes of one CPU each, and the Ray cluster has "
            f"{cpus:g} CPUs; use fewer store.shards or train.trainers, or more hosts."
        )


def place(
    job: JobSpec, namespace: str, *, gpus: bool, timeout_s: float, given_up: Callable[[], bool]
) -> PlacementGroup | None:
    """The place of all shards and trainers of a job, as soon as the cluster has it free; None if `given_up` is true before.

    Raises StoreError, with the numbers, if it has not been free for `timeout_s` seconds.
    """
    shards = shard_bundles(job.tables(), job.store.shards) if job.shard_processes() else []
    trainer = {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}
    trainers = [trainer] * job.train.trainers

    def hosts_in_turn(turn: int) -> list[dict[str, str]]:
        choices = choices_of_hosts(shards, trainers, ray.nodes())  # type: ignore[no-untyped-call]
        return choices[turn % len(choices)]

    def ask(hosts: list[dict[str, str]]) -> PlacementGroup:
        group: PlacementGroup = placement_group(
            shards + trainers, strategy="SPREAD", name=namespace, bundle_label_selector=hosts
        )
        return group

    deadline = time.monotonic() + timeout_s
    turn, turn_ends = 0, time.monotonic() + _TURN_S
    hosts = hosts_in_turn(turn)
    place = ask(hosts)
    while not place.wait(_LOOK_S):
        if given_up():
            remove_placement_group(place)
            return None
        if time.monotonic() > deadline:
            remove_placement_group(place)
            raise StoreError(_no_room(shards + trainers))
        if time.monotonic() > turn_ends:
            turn, turn_ends = turn + 1, time.monotonic() + _TURN_S
            other_hosts = hosts_in_turn(turn)
            if other_hosts != hosts:
                remove_placement_group(place)
                hosts, place = other_hosts, ask(other_hosts)
    return place


def _no_room(bundles: list[dict[str, float]]) -> str:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    asked = {what: sum(bundle.get(what, 0) for bundle in bundles) for what in ("CPU", "GPU", "memory")}
    elsewhere = all(free.get(what, 0) >= amount for what, amount in asked.items())
    return (
        f"The cluster has no room for {len(bundles)} shards and trainers, which ask for {asked['CPU']:g} CPUs, "
        f"{asked['GPU']:g} GPUs and {asked['memory'] / 2**30:.2f} GiB in all: free are {free.get('CPU', 0):g}, "
        f"{free.get('GPU', 0):g} and {free.get('memory', 0) / 2**30:.2f} GiB"
        f"{', but not on hosts that each of them could take' if elsewhere else ''}. "
        "Use fewer or smaller ones, or more hosts."
    )
