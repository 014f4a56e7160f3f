"""The `plan` benchmark: what `pkm plan` predicts for a step against what the step takes.

Real training steps with shards in processes of their own: rows read in place, and by gRPC over links that token
buckets limit, every shard in a network namespace. Predicted from the same calibration that the command makes. The
error of a case is |predicted / measured - 1|. As all hosts are one machine here, the prediction is for shared cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median

from benchmarks.limited_links import LimitedLinks, LinksNotAllowedError
from benchmarks.results import BenchmarkRun, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.training_steps import Batch, ModelKind, TrainedModel
from memory_store.client import StoreClient
from memory_store.opening import connect
from workers.job_spec import DataSpec, JobSpec, ModelSpec, StoreSpec, TrainSpec
from workers.memory_spec import MemorySpec
from workers.plan import Network, make_plan
from workers.plan_calibration import client_costs, dense_costs
from workers.plan_costs import Calibration, DenseCosts
from workers.plan_sample_shard import shard_costs
from workers.plan_wire import wire_costs
from workers.shard_process import ShardProcess, ShardSettings

MBIT = 125e3
_SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class PlannedKind:
    """A model, the sequences of its batch, and the numbers of shards it is tried with."""

    name: str
    kind: ModelKind
    sequences: int
    shards: tuple[int, ...]

    def job(self, shards: int, carrier: str) -> JobSpec:
        """The job whose steps these are."""
        return JobSpec(
            name="plan",
            data=DataSpec(corpus=Path("none"), sequence_length=_SEQUENCE_LENGTH),
            model=self.kind.model,
            memory=self.kind.memory,
            train=TrainSpec(steps=1, batch_tokens=self.sequences * _SEQUENCE_LENGTH, device="cpu"),
            store=StoreSpec.model_validate({"shards": shards, "carrier": carrier}),
        )


@dataclass(frozen=True)
class PlanSize:
    """The models, the rates of the links in Mbit/s, and how many samples of how many steps are taken."""

    kinds: tuple[PlannedKind, ...]
    rates: tuple[int, ...]
    repeats: int
    steps_per_sample: int


_SMALL = ModelKind(
    ModelSpec(layers=4, dim=128, heads=4),
    MemorySpec(layers=(2,), sub_keys=128, heads=4, k=32, query_dim=128),
    vocabulary_size=4096,
)
_WIDE = ModelKind(
    ModelSpec(layers=2, dim=256, heads=4, feed_forward_dim=512),
    MemorySpec(layers=(1,), sub_keys=512, heads=4, k=32, query_dim=128),
    vocabulary_size=1024,
)
FULL = PlanSize(
    (PlannedKind("small", _SMALL, 8, (1, 2, 4)), PlannedKind("wide", _WIDE, 8, (1, 2, 4))),
    (200, 1000, 10_000),
    5,
    3,
)
QUICK = PlanSize((PlannedKind("wide", _WIDE, 4, (2,)),), (200, 1000), 3, 2)


def run(size: PlanSize, *, quick: bool) -> BenchmarkRun:
    """Calibrate for every model, then predict and measure its cases."""
    recorder = Recorder("plan", quick=quick)
    use_threads(CORES)
    wire, errors = wire_costs(), []
    for kind in size.kinds:
        for shards in kind.shards:
            job, vocabulary_size = kind.job(shards, "auto"), kind.kind.vocabulary_size
            # The model takes the most of a step: timed before the steps and after them, as a machine's mood changes.
            before = dense_costs(job, vocabulary_size)
            client, shard = client_costs(job), shard_costs(job)
            measured = list(_measured(kind, shards, size))
            dense = _mean(before, dense_costs(job, vocabulary_size))
            calibration = Calibration(CORES, dense, client, shard, wire)
            for way, network, seconds in measured:
                job = kind.job(shards, "auto" if network.bytes_per_second is None else "grpc")
                predicted = make_plan(job, calibration, network).step_seconds
                error = abs(predicted / median(seconds) - 1)
                errors.append(error)
                case: dict[str, str | int] = {"model": kind.name, "shards": shards, "way": way}
                recorder.add("step measured", "ms", [1e3 * sample for sample in seconds], **case)
                recorder.add("step predicted", "ms", [1e3 * predicted], **case)
                recorder.add("error", "ratio", [error], **case)
    recorder.ratio("plan_median_error", recorder.add("median of the errors", "ratio", errors))
    return recorder.finish()


def _mean(one: DenseCosts, other: DenseCosts) -> DenseCosts:
    return DenseCosts(
        forward_backward_s=(one.forward_backward_s + other.forward_backward_s) / 2,
        selection_s=(one.selection_s + other.selection_s) / 2,
        optimizer_s=(one.optimizer_s + other.optimizer_s) / 2,
        parameters=one.parameters,
        activation_bytes=one.activation_bytes,
    )


def _measured(kind: PlannedKind, shards: int, size: PlanSize) -> Iterator[tuple[str, Network, list[float]]]:
    """Every way to the shards, the network that it is, and seconds per step."""
    with ExitStack() as stack:
        links = None
        try:
            links = stack.enter_context(LimitedLinks(shards))
        except LinksNotAllowedError as error:
            print(f"Links can't be limited here, and those cases are left out: {error}.", file=sys.stderr)
        addresses = _start_shards(kind, shards, links, stack)
        with _connected(addresses, in_place=True) as store:
            if store.reads_in_place:
                yield "shared memory", Network(), _step_seconds(kind, store, size)
        for rate in size.rates if links is not None else ():
            assert links is not None
            links.limit(rate * MBIT)
            with _connected(addresses, in_place=False) as store:
                yield f"gRPC, {rate} Mbit/s", Network(rate * MBIT), _step_seconds(kind, store, size)


def _start_shards(kind: PlannedKind, shards: int, links: LimitedLinks | None, stack: ExitStack) -> list[str]:
    """Their addresses; they live until `stack` is closed."""
    settings = ShardSettings([kind.kind.table()], shards, 0, threads=max(1, CORES // shards))
    running = []
    for shard in range(shards):
        here = replace(settings, shard=shard)
        if links is None:
            process = ShardProcess(here)
        else:
            process = ShardProcess(replace(here, host=links.address(shard)), links.launcher(shard))
        running.append(stack.enter_context(process))
    return [process.address() for process in running]


@contextmanager
def _connected(addresses: list[str], *, in_place: bool) -> Iterator[StoreClient]:
    store = connect(addresses, in_place=in_place)
    store.take_over()
    store.initialise()
    try:
        yield store
    finally:
        store.close()


def _step_seconds(kind: PlannedKind, store: StoreClient, size: PlanSize) -> list[float]:
    """Seconds per step of each sample; the first sample is a warm-up."""
    model: TrainedModel = kind.kind.with_store(store)
    lengths = (kind.sequences, _SEQUENCE_LENGTH, kind.kind.vocabulary_size)
    batches = cycle([Batch.drawn(*lengths, seed) for seed in range(4)])
    seconds = []
    for sample in range(1 + size.repeats):
        begun = time.perf_counter()
        for _ in range(size.steps_per_sample):
            model.step(next(batches))
        model.settle()
        if sample:
            seconds.append((time.perf_counter() - begun) / size.steps_per_sample)
    return seconds
