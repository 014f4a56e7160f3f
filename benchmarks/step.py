"""The `step` benchmark: a whole training step, with the table in this process, in shards, or in plain PyTorch.

A sample of a store is the mean of a few steps, at the end of which the shards have applied all of them: a step
returns before they have, and what they still do must not fall into the time of the next model. Inference is
the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch

from benchmarks.embedded_ray import embedded_ray
from benchmarks.local_store import LocalStore
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.results import BenchmarkRun, Measurement, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.training_steps import Batch, ModelKind, TrainedModel
from memory_store.actor import RunningShards, start_shards
from workers.job_spec import MemorySpec, ModelSpec

IN_PROCESS, GRPC, SHARED_MEMORY = "store in process", "shards by gRPC", "shards by shared memory"
SPARSE_ADAM, DENSE_ADAM = "PyTorch, SparseAdam", "PyTorch, dense Adam"
TWICE_THE_LAYERS = "dense, twice the layers"


@dataclass(frozen=True)
class StepSize:
    """The model, the batch, and how many samples of how many steps are taken."""

    kind: ModelKind
    sequences: int
    sequence_length: int
    shards: int
    steps_per_sample: int
    repeats: int


_KIND = ModelKind(
    ModelSpec(layers=4, dim=256, heads=4, feed_forward_dim=1024),
    MemorySpec(layers=(2,), sub_keys=512, heads=4, k=32, query_dim=128),
    vocabulary_size=8192,
)
FULL = StepSize(_KIND, 16, 256, 2, 3, 15)
QUICK = StepSize(_KIND, 16, 256, 2, 1, 3)


def run(size: StepSize, *, quick: bool) -> BenchmarkRun:
    """Build every model, find their first losses equal, and measure them in turn."""
    recorder = Recorder("step", quick=quick)
    use_threads(CORES)
    lengths = (size.sequences, size.sequence_length, size.kind.vocabulary_size)
    batches = [Batch.drawn(*lengths, seed) for seed in range(4)]
    with embedded_ray(2 * size.shards), ExitStack() as stack:
        models = _models(size, stack)
        _check(models, batches)
        training = _measure_training(models, batches, size)
        for model in models.values():
            model.settle()
        inference = paired_seconds(
            {name: partial(model.infer, batches[0]) for name, model in models.items()}, size.repeats
        )
    tokens = size.sequences * size.sequence_length
    for mode, seconds in (("training", training), ("inference", inference)):
        for name, samples in seconds.items():
            recorder.add(mode, "ms", samples * 1e3, model=name)
            recorder.add(f"{mode} rate", "tokens/s", tokens / samples, model=name)
    _set_ratios(recorder, training)
    ours = SHARED_MEMORY if SHARED_MEMORY in models else GRPC
    speed = inference[TWICE_THE_LAYERS] / inference[ours]
    recorder.add(f"inference: {TWICE_THE_LAYERS} / {ours}", "ratio", speed)
    return recorder.finish()


def _models(size: StepSize, stack: ExitStack) -> dict[str, TrainedModel]:
    """All models by name; the shards of some run until `stack` is closed."""
    kind, spec = size.kind, size.kind.table()
    local = LocalStore(spec)
    values = local.read_all()
    models = {IN_PROCESS: kind.with_store(local.client)}
    for name, in_place in ((GRPC, False), (SHARED_MEMORY, True)):
        shards: RunningShards = start_shards(f"benchmark-{int(in_place)}", [spec], size.shards)
        stack.callback(shards.stop)
        store = shards.group.connect(in_place=in_place)
        stack.callback(store.close)
        model = kind.with_store(store)
        if store.reads_in_place == in_place:
            models[name] = model
    for name, sparse in ((SPARSE_ADAM, True), (DENSE_ADAM, False)):
        models[name] = kind.in_plain_pytorch(local.client, torch.from_numpy(values.copy()), sparse=sparse)
    models[TWICE_THE_LAYERS] = kind.dense_of_twice_the_layers()
    return models


def _check(models: dict[str, TrainedModel], batches: list[Batch]) -> None:
    """Two steps of each; raises AssertionError unless all models with a memory have the same losses.

    The second loss depends on the first update of every part. After it dense Adam moves rows that no token
    selected, as it should, and goes its own way.
    """
    losses = {name: [model.step(batch) for batch in batches[:2]] for name, model in models.items()}
    for name in losses.keys() - {TWICE_THE_LAYERS}:
        np.testing.assert_allclose(losses[name], losses[IN_PROCESS], rtol=1e-4, err_msg=name)


def _measure_training(
    models: dict[str, TrainedModel], batches: list[Batch], size: StepSize
) -> dict[str, Samples]:
    """Seconds per step of every model, in turn."""

    def sample(model: TrainedModel, steps: int) -> None:
        for batch, _ in zip(cycle(batches), range(steps), strict=False):
            model.step(batch)
        model.settle()

    steps = {
        name: size.steps_per_sample if name in (IN_PROCESS, GRPC, SHARED_MEMORY) else 1 for name in models
    }
    actions: dict[str, Callable[[], object]] = {
        name: partial(sample, model, steps[name]) for name, model in models.items()
    }
    seconds = paired_seconds(actions, size.repeats, slow=True)
    return {name: samples / steps[name] for name, samples in seconds.items()}


def _set_ratios(recorder: Recorder, seconds: dict[str, Samples]) -> None:
    """Ours is shared memory, the way rows go on one host; gRPC where memory can't be shared."""

    def ratio(upper: str, lower: str) -> Measurement:
        return recorder.add(f"training: {upper} / {lower}", "ratio", seconds[upper] / seconds[lower])

    ours = SHARED_MEMORY if SHARED_MEMORY in seconds else GRPC
    if SHARED_MEMORY in seconds:
        recorder.ratio("step_shm_over_inprocess", ratio(SHARED_MEMORY, IN_PROCESS))
    else:
        recorder.missing(
            "step_shm_over_inprocess", "the shards' memory could not be mapped into this process"
        )
    recorder.ratio("step_grpc_over_inprocess", ratio(GRPC, IN_PROCESS))
    recorder.ratio("step_vs_torch_sparse_adam", ratio(SPARSE_ADAM, ours))
    recorder.ratio("step_vs_torch_dense_adam", ratio(DENSE_ADAM, ours))
    recorder.ratio("step_vs_dense_twice_the_layers", ratio(TWICE_THE_LAYERS, ours))
