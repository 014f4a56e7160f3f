"""Measuring this machine at a job's own shapes: some seconds, in place of a run of the job.

Sizes beyond what a few seconds allow are measured smaller and taken in proportion: sequences of a micro-batch,
tokens of a selection, entries of a lookup. The accelerator is used where the job's trainers would use it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn

from memory_store.client import StoreClient
from memory_store.grouping import group_by_address
from memory_store.kernels import pool_rows, weight_gradients
from memory_store.lookups import Entries, FetchedRows, cheaper, split_entries
from memory_store.optimizers import sum_by_row
from memory_store.placement import Placement, addresses_of
from workers.job_spec import JobSpec
from workers.memory_layer import MemoryLayer
from workers.plan_clock import CORES, Stopwatch, repeat
from workers.plan_costs import Calibration, ClientCosts, Cost, DenseCosts
from workers.plan_sample_device import device_costs, device_of, kept_bytes, settle
from workers.plan_sample_shard import ENTRIES_MAX, SAMPLE_BYTES_MAX, shard_costs
from workers.plan_wire import wire_costs
from workers.transformer import Transformer

DENSE_TOKENS_MAX = 8192
_FETCHED_BYTES_MAX = 256 << 20
_SCORES_MAX = 1 << 24  # tokens x sub-keys of a measured selection
_DENSE_BUDGET_S, _DENSE_REPEATS = 4.0, 3
_BUDGET_S = 1.0


def calibrate(job: JobSpec, vocabulary_size: int) -> Calibration:
    """Measure all that a plan of `job` needs."""
    return Calibration(
        cores=CORES,
        dense=dense_costs(job, vocabulary_size),
        client=client_costs(job) if job.memory is not None else None,
        shard=shard_costs(job) if job.memory is not None else None,
        wire=wire_costs(),
        device=device_costs(job) if job.memory is not None and job.memory.placement != "host" else None,
    )


# ---- the model ---------------------------------------------------------------------------------------------


def dense_costs(job: JobSpec, vocabulary_size: int) -> DenseCosts:
    """The model without its lookups: layers with their memories left out, selections, optimizer."""
    train, length = job.train, job.data.sequence_length
    device = device_of(job)
    # A client of no shards: tables of any size for the layers to name, and no memory taken.
    client = StoreClient([], job.tables(), Placement.even(1))
    tables = {name: client.table(name) for name in client.specs}
    model = Transformer(job.model, job.memory, vocabulary_size, tables, job.seed).to(device).train()
    memories = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    for memory in memories:
        memory.ablation = "zero"
    micro_batch = train.batch_tokens // (train.trainers * train.gradient_accumulation)
    most = max(1, min(micro_batch, DENSE_TOKENS_MAX) // length)
    text = torch.randint(vocabulary_size, (most, length + 1), device=device)
    clock = Stopwatch()

    def forward_backward(sequences: int) -> None:
        with _precision(job, device):
            loss = model.loss(text[:sequences, :-1], text[:sequences, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        settle(device)

    one = partial(forward_backward, 1)
    with kept_bytes(model.parameters()) as kept_of_a_sequence:
        one()
    repeat(partial(clock.time, "one sequence", one), 0)
    sequences = int(_DENSE_BUDGET_S / _DENSE_REPEATS / clock.seconds("one sequence"))
    sequences = max(1, min(sequences, most))
    several = partial(forward_backward, sequences)
    repeat(partial(clock.time, "forward and backward", several), _DENSE_BUDGET_S)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameter_groups(train.weight_decay), lr=train.lr, betas=train.betas)

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        settle(device)

    repeat(lambda: clock.time("optimizer", step), _BUDGET_S)
    activation_bytes = kept_of_a_sequence() * micro_batch / length
    selection_s = 0.0
    if job.memory is not None:
        scored = job.memory.sub_keys ** (2 if job.memory.keys == "flat" else 1)
        tokens = max(1, min(micro_batch, _SCORES_MAX // scored))
        layer = memories[0]
        x = torch.randn(tokens, job.model.dim, device=device, requires_grad=True)

        def select() -> None:
            _, scores = layer.select(layer.query_network(x))
            weights = scores.softmax(-1)
            weights.backward(weights.detach())  # type: ignore[no-untyped-call]
            settle(device)

        with kept_bytes(layer.parameters()) as kept_of_a_selection:
            select()
        activation_bytes += len(memories) * kept_of_a_selection() * micro_batch / tokens
        repeat(lambda: clock.time("selection", select), 2 * _BUDGET_S)
        selection_s = clock.seconds("selection") * micro_batch / tokens
    return DenseCosts(
        forward_backward_s=clock.seconds("forward and backward") * micro_batch / (sequences * length),
        selection_s=selection_s,
        optimizer_s=clock.seconds("optimizer"),
        parameters=sum(parameter.numel() for parameter in parameters),
        activation_bytes=activation_bytes,
    )


def _precision(job: JobSpec, device: torch.device) -> AbstractContextManager[object]:
    if job.train.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


# ---- the client's side of a lookup -------------------------------------------------------------------------


def client_costs(job: JobSpec) -> ClientCosts:
    """What a trainer does with its entries, for a job with memory."""
    memory, spec, shards = job.memory, job.tables()[0], job.store.shards
    assert memory is not None
    clock, random = Stopwatch(), np.random.default_rng(0)
    per_token = memory.heads * memory.k
    micro_batch = job.train.batch_tokens // (job.train.trainers * job.train.gradient_accumulation)

    def drawn(tokens: int, addresses_end: int) -> Entries:
        count = tokens * per_token
        addresses = random.integers(addresses_end, size=count).astype(np.uint32)
        bounds = Placement.even(shards).address_bounds(spec.rows)
        return Entries(tokens, per_token, addresses, random.random(count, dtype=np.float32), bounds)

    # Work on entries alone, over all rows of the table, however large it is.
    wide = drawn(max(1, min(micro_batch, ENTRIES_MAX // per_token)), spec.rows)
    rows = wide.addresses.astype(np.int64)

    def choose() -> None:
        addresses_of(rows, spec.rows)
        cheaper(wide)

    _time_each(
        clock,
        ("choose", choose),
        ("split", lambda: split_entries(wide)),
        ("group", lambda: group_by_address(wide.addresses)),
    )

    # Work on rows, over as many as a sample may have.
    value_bytes = spec.dim * spec.storage_dtype.itemsize
    table = np.zeros((min(spec.rows, SAMPLE_BYTES_MAX // value_bytes), spec.dim), dtype=spec.storage_dtype)
    table[:] = 1
    near = drawn(max(1, min(wide.tokens, _FETCHED_BYTES_MAX // (4 * spec.dim * per_token))), len(table))
    groups = group_by_address(near.addresses)
    fetched = FetchedRows(near, groups, np.ones((groups.addresses.size, spec.dim), dtype=np.float32))
    gradient = random.standard_normal((near.tokens, spec.dim), dtype=np.float32)

    def read() -> None:
        output = np.empty((near.tokens, spec.dim), dtype=np.float32)
        pool_rows(table, 0, near.offsets, near.addresses, near.weights, output)

    def weigh() -> None:
        output = np.empty(near.addresses.size, dtype=np.float32)
        weight_gradients(table, 0, near.offsets, near.addresses, gradient, output)

    _time_each(
        clock,
        ("read", read),
        ("weigh", weigh),
        ("pool fetched", lambda: fetched.pooled()),
        ("sum fetched", lambda: sum_by_row(fetched.contributions(gradient))),
        ("weigh fetched", lambda: fetched.weight_gradient(gradient)),
    )

    def entry(name: str) -> Cost:
        return Cost.on_one_core(clock.seconds(name) / wide.addresses.size)

    def row(name: str) -> Cost:
        return Cost.on_all_cores(clock.seconds(name) / near.addresses.size, CORES)

    return ClientCosts(
        choose=entry("choose"),
        split=entry("split"),
        read=row("read"),
        weigh=row("weigh"),
        group=entry("group"),
        pool_fetched=row("pool fetched"),
        sum_fetched=row("sum fetched"),
        weigh_fetched=row("weigh fetched"),
    )


def _time_each(clock: Stopwatch, *actions: tuple[str, Callable[[], object]]) -> None:
    for name, action in actions:
        repeat(partial(clock.time, name, action), _BUDGET_S / 2)
