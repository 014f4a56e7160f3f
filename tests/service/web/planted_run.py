"""A job whose run folder holds what a training leaves there, written by the code that writes it, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from service.jobs.database import NewJob
from service.jobs.demand import Demand, Resources
from service.jobs.folder import ServiceFolder
from service.jobs.states import JobState
from tests.service.jobs.running_service import Service
from tests.small_job import small_job
from workers.access_map_file import save_access_map
from workers.events import tell
from workers.job_status import Status, tell_status
from workers.metrics_log import MetricsLog
from workers.report import Progress, StepRecord
from workers.run_folder import RunFolder
from workers.shard_load import ShardLoad, tell_loads
from workers.training_map import RecentMap, save_map

DEMAND = Demand(
    shards=2, shard=Resources(cpus=1, memory_bytes=1 << 20), trainers=1, trainer=Resources(cpus=1)
)


@dataclass
class PlantedRun:
    """Job `id` of a tenant, its files in `run`."""

    id: str
    run: RunFolder
    step: int = 0

    def train(self, steps: int) -> None:
        """Go on by so many steps."""
        log = MetricsLog(self.run.metrics_path)
        for step in range(self.step + 1, self.step + steps + 1):
            self.step, validated = step, step % 20 == 0
            record = StepRecord(
                step=self.step,
                loss=4 + 3 * math.exp(-self.step / 40),
                learning_rate=1e-3,
                gradient_norm=1.0,
                seconds=0.1,
                tokens_per_second=2560.0 + self.step % 7,
                memory_usage=0.5 if validated else None,
                validation_perplexity=90.0 if validated else None,
                validation_usage=0.6 if validated else None,
                validation_kl=1.2 if validated else None,
            )
            log.append(record)
        progress = Progress("training", self.step, 200, loss=4.2, seconds_left=60.0)
        tell_status(self.run.path, Status(attempt=1, progress=progress))

    def draw(self, counts: np.ndarray) -> None:
        """Replace the map of the training."""
        save_map(self.run.training_map_path, RecentMap(0, self.step, counts.shape[0], counts))

    def tell_restart(self) -> None:
        tell(self.run.events_path, "restart", self.step, f"Shard 1 died after step {self.step}.", 2.5)


def plant(service: Service, tenant: str = "ann", steps: int = 60, name: str = "small") -> PlantedRun:
    """A job that has trained so far, with two shards, a restart and both maps."""
    spec = small_job(service.data / "shared" / "corpus", name=name)
    asked = NewJob(tenant, f"{name}-{tenant}", name, spec.model_dump_json(), DEMAND, 0)
    job = service.database.submit(asked)
    for state in (JobState.STARTING, JobState.RUNNING):
        service.database.move(job.id, state, "")
    run = ServiceFolder(service.data.parent).run(tenant, job.id)
    run.create(spec)
    planted = PlantedRun(job.id, run)
    planted.train(steps)
    planted.tell_restart()
    tell_loads(
        run.path,
        [ShardLoad(shard=n, address=f"127.0.0.1:{n}", busy_cores=0.5 + n, calls_per_second=10, memory_bytes=1 << 20)
         for n in range(2)],
    )  # fmt: skip
    planted.draw(slots(32))
    save_access_map(run.access_map_path, slots(32).astype(np.float64) / 7)
    return planted


def slots(side: int, seed: int = 0) -> np.ndarray:
    """Counts of reads as they look like: few slots often, many never. uint32 `[side, side]`."""
    generator = np.random.default_rng(seed)
    first, second = generator.pareto(1.2, side) + 0.05, generator.pareto(1.2, side) + 0.05
    return generator.poisson(np.outer(first, second)).astype(np.uint32)
