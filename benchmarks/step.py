"""The `step` benchmark: a whole training step, with the table in this process, in shards, or in plain PyTorch.

The model with look-ahead takes its query one layer before its answer. It is another model, with other losses, whose
table lies beside that of the model by gRPC: the same shards, reached in the same way.

A sample of a store is the mean of a few steps, at the end of which the shards have applied all of them: a step
returns before they have, and what they still do must not fall into the time of the next model. Inference is
the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import numpy as np
import torch

from benchmarks.embedded_ray import embedded_ray
from benchmarks.local_store import LocalStore
from benchmarks.measuring import Samples, paired_seconds
from benchmarks.placed_shards import placed_shards
from benchmarks.results import BenchmarkRun, Measurement, Recorder
from benchmarks.threads import CORES, use_threads
from benchmarks.training_steps import Batch, ModelKind, TrainedModel, dense_model
from workers.job_spec import ModelSpec
from workers.memory_spec import MemorySpec

IN_PROCESS, GRPC, SHARED_MEMORY = "store in process", "shards by gRPC", "shards by shared memory"
GRPC_AHEAD = "shards by gRPC, look-ahead"
SPARSE_ADAM, DENSE_ADAM = "PyTorch, SparseAdam", "PyTorch, dense Adam"
TWICE_THE_LAYERS = "dense, twice the layers"


@dataclass(frozen=True)
class StepSize:
    """The model, the batch, how many samples of how many steps are taken, and whether one looks ahead."""

    kind: ModelKind
    sequences: int
    sequence_length: int
    shards: int
    steps_per_sample: int
    repeats: int
    look_ahead: bool


_KIND = ModelKind(
    ModelSpec(layers=4, dim=256, heads=4, feed_forward_dim=1024),
    MemorySpec(layers=(2,), sub_keys=512, heads=4, k=32, query_dim=128),
    vocabulary_size=8192,
)
FULL = StepSize(_KIND, 16, 256, 2, 3, 7, look_ahead=True)
# The same work, hardly repeated: smaller tables and batches flatter or wrong the peers.
QUICK = StepSize(_KIND, 16, 256, 2, 2, 1, look_ahead=False)


def run(size: StepSize, *, quick: bool) -> BenchmarkRun:
    """Build every model, find their first losses equal, and measure them in turn."""
    recorder = Recorder("step", quick=quick)
    use_threads(CORES)
    lengths = (size.sequences, size.sequence_length, size.kind.vocabulary_size)
    batches = [Batch.drawn(*lengths, seed) for seed in range(4)]
    small = [Batch.drawn(1, *lengths[1:], seed) for seed in range(2)]
    with embedded_ray(2 * size.shards), ExitStack() as stack:
        models = _models(size, stack)
        _check(models, small)
        training = _measure_training(models, batches, size)
        for model in models.values():
            model.settle()
        inference = paired_seconds(
            {name: partial(model.infer, batches[0]) for name, model in models.items()},
            size.repeats,
            slow=True,
        )
    tokens = size.sequences * size.sequence_length
    for mode, seconds in (("training", training), ("inference", inference)):
        for name, samples in seconds.items():
            recorder.add(mode, "ms", samples * 1e3, model=name)
            recorder.add(f"{mode} rate", "tokens/s", tokens / samples, model=name)
    _set_ratios(recorder, training)
    ours = SHARED_MEMORY if SHARED_MEMORY in models else GRPC
    speed = inference[TWICE_THE_LAYERS] / inference[ours]
    recorder.ratio(
        "inference_vs_dense_twice_the_layers",
        recorder.add(f"inference: {TWICE_THE_LAYERS} / {ours}", "ratio", speed),
    )
    return recorder.finish()


def _models(size: StepSize, stack: ExitStack) -> dict[str, TrainedModel]:
    """All models by name; the shards of some run until `stack` is closed."""
    kind, spec = size.kind, size.kind.table()
    ahead, spec_ahead = kind.looking_ahead(1), replace(spec, name="memory-ahead")
    local = LocalStore(spec)
    values = local.read_all()
    models = {IN_PROCESS: kind.with_store(local.client)}
    kinds = {GRPC: [spec, spec_ahead] if size.look_ahead else [spec], SHARED_MEMORY: [spec]}
    for name, of_store in kinds.items():
        shards = stack.enter_context(placed_shards(name, of_store, size.shards))
        in_place = name == SHARED_MEMORY
        store = shards.group.connect(in_place=in_place)
        stack.callback(store.close)
        model = kind.with_store(store)
        if store.reads_in_place == in_place:
            models[name] = model
        if spec_ahead.name in store.specs:
            models[GRPC_AHEAD] = ahead.with_store(store, spec_ahead.name)
    for name, sparse in ((SPARSE_ADAM, True), (DENSE_ADAM, False)):
        models[name] = kind.in_plain_pytorch(local.client, torch.from_numpy(values.copy()), sparse=sparse)
    twice = kind.model.model_copy(update={"layers": 2 * kind.model.layers})
    models[TWICE_THE_LAYERS] = dense_model(twice, kind.vocabulary_size, kind.seed)
    return models


def _check(models: dict[str, TrainedModel], batches: list[Batch]) -> None:
    """A step of each with each of two batches.

    Raises AssertionError unless all models with a memory have the same losses, but for the one with look-ahead.

    The second loss depends on the first update of every part. After it dense Adam moves rows that no token
    selected, as it should, and goes its own way.
    """
    losses = {name: [model.step(batch) for batch in batches] for name, model in models.items()}
    for name in losses.keys() - {TWICE_THE_LAYERS, GRPC_AHEAD}:
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
        name: size.steps_per_sample if name in (IN_PROCESS, GRPC, GRPC_AHEAD, SHARED_MEMORY) else 1
        for name in models
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
    if GRPC_AHEAD in seconds:
        ratio(GRPC_AHEAD, GRPC)
    recorder.ratio("step_vs_torch_sparse_adam", ratio(SPARSE_ADAM, ours))
    recorder.ratio("step_vs_torch_dense_adam", ratio(DENSE_ADAM, ours))
    recorder.ratio("step_vs_dense_twice_the_layers", ratio(TWICE_THE_LAYERS, ours))
