"""The trainers of a job as Ray actors, one process for each rank; all are started again when one of them fails.

They take the last bundles of the job's placement group. (Ray Train makes a placement group of its own for its workers: a job
could then get half of its place, its shards without its trainers, and wait for ever.) Rank 0 opens the port at which the
others meet, on the address of its host alone.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from memory_store.errors import StoreError
from workers.ranks import Ranks

RESTARTS_MAX = 100
_PAUSE_S = 1.0
_MEET_TIMEOUT = timedelta(minutes=5)
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)

_log = logging.getLogger(__name__)


class TrainerActor:
    """The process of one trainer."""

    def open_meeting(self, world: int) -> tuple[str, int]:
        """At rank 0, before `train`: the address at which all ranks meet."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port: int = listening.getsockname()[1]
        self._meeting = TCPStore(
            host,
            port,
            world,
            is_master=True,
            timeout=_MEET_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return host, port

    def train(
        self, work: Callable[[Ranks], None], rank: int, world: int, meeting: tuple[str, int] | None
    ) -> None:
        """Do `work` as one of `world` ranks, to its end."""
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from workers.trainer_device import own_device, take_device

        device = own_device(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        take_device(device)
        if meeting is not None:
            store = (
                self._meeting
                if rank == 0
                else TCPStore(*meeting, world, is_master=False, timeout=_MEET_TIMEOUT)
            )
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=_COLLECTIVE_TIMEOUT,
            )
        work(Ranks(rank, world, device))
        # Not after a failure: NCCL would wait for what the others have not begun. The process is about to be ended.
        if meeting is not None:
            dist.destroy_process_group()


def run_trainers(
    work: Callable[[Ranks], None],
    trainers: int,
    place: PlacementGroup,
    *,
    gpus: bool,
    environment: Mapping[str, str],
) -> None:
    """Have every trainer do `work`; all of them again whenever one dies or fails. Returns when all have done it.

    Raises StoreError if they fail more than RESTARTS_MAX times.
    """
    first_bundle = place.bundle_count - trainers
    actor_class = ray.remote(TrainerActor)
    failures = 0
    while True:
        actors: list[Any] = [
            actor_class.options(
                num_cpus=1,
                num_gpus=int(gpus),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    place, placement_group_bundle_index=first_bundle + rank
                ),
                runtime_env={"env_vars": dict(environment)},
            ).remote()
            for rank in range(trainers)
        ]
        try:
            meeting = ray.get(actors[0].open_meeting.remote(trainers)) if trainers > 1 else None
            _wait([actor.train.remote(work, rank, trainers, meeting) for rank, actor in enumerate(actors)])
            return
        except ray.exceptions.RayError as error:
            failures += 1
            _log.warning("the trainers failed (%d of %d): %s", failures, RESTARTS_MAX, error)
            if failures > RESTARTS_MAX:
                raise StoreError(
                    f"The trainers failed more than {RESTARTS_MAX} times; the last failure: {error}"
                ) from error
        finally:
            # A bundle has room for one: the next trainer of a rank starts when the one before is gone.
            for actor in actors:
                ray.kill(actor)


def _wait(working: list[Any]) -> None:
    """Until all have ended well; raises the error of the first that has not, at once."""
    while working:
        ended, working = ray.wait(working, timeout=_PAUSE_S)
        ray.get(ended)
