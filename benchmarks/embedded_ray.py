"""A Ray of this process's own, set up as the project sets it up, but for the object store: a peer has all of Ray's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from benchmarks.machine import total_bytes


@contextmanager
def embedded_ray(actors: int) -> Iterator[None]:
    """Run Ray with room for `actors` actors while the block runs."""
    # Ray would run its workers at niceness 15, slower than the trainer they are compared with.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_oom_score_adjustment", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",  # whatever other Ray runs here
        num_cpus=max(os.cpu_count() or 1, actors),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _memory=total_bytes(),
    )
    try:
        yield
    finally:
        ray.shutdown()
