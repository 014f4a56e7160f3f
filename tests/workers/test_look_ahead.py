"""Queries taken some layers before their answers are added: the same numbers as with no asynchrony, and overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_store import OptimizerSpec, StoreClient, TableSpec, connect, in_process_store
from memory_store import messages as m
from memory_store.carriers.grpc_server import ShardServer
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_hosts
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from tests.held_carrier import HeldCarrier
from tests.workers.plain_reference import plain_transformer_hidden
from workers.job_spec import ModelSpec
from workers.memory_layer import Ablation, MemoryLayer
from workers.memory_spec import MemorySpec
from workers.transformer import Layer, Transformer

VOCABULARY, LENGTH, DIM, ROWS = 50, 12, 16, 64
MODEL = ModelSpec(layers=4, dim=DIM, heads=2, feed_forward_dim=24)
MASK = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5], [9]])


def memory_spec(**changes: Any) -> MemorySpec:
    settings = {"layers": (3,), "look_ahead": 1, "sub_keys": 8, "heads": 2, "k": 4, "query_dim": 6, **changes}
    return MemorySpec.model_validate(settings)


def new_model(memory: MemorySpec, store: StoreClient) -> Transformer:
    tables = {name: store.table(name) for name in store.specs}
    return Transformer(MODEL, memory, VOCABULARY, tables, seed=0)


def text(seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(seed))


def values(store: StoreClient, name: str) -> Tensor:
    """A whole table `[K, D]`."""
    ones = np.ones((ROWS, 1), dtype=store.specs[name].compute_dtype)
    return torch.from_numpy(store.table(name).lookup(np.arange(ROWS)[:, None], ones, keep=False).output)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "memory",
    [
        memory_spec(look_ahead=0),
        memory_spec(),
        memory_spec(look_ahead=2, gate=True, query_network="mlp"),
        memory_spec(layers=(2, 3, 4), position="beside", query_norm="layer"),
        memory_spec(layers=(4, 3), look_ahead=2, position="beside", shared_table=False, gate=True),
    ],
    ids=str,
)
def test_loss_and_all_gradients_equal_a_plain_model(memory: MemorySpec, masked: bool) -> None:
    names = dict.fromkeys(memory.table_name(layer) for layer in memory.layers)
    sgd = OptimizerSpec(kind="sgd")  # with learning rate 1, values lose exactly their gradient
    store = in_process_store(
        [TableSpec(name, ROWS, DIM, dtype="float64", seed=i, optimizer=sgd) for i, name in enumerate(names)],
        2,
    )
    model = new_model(memory, store).double()
    before = {name: values(store, name) for name in names}
    mask = MASK if masked else torch.ones_like(MASK)
    loss = model.loss(text(), text(2), mask if masked else None)
    loss.backward()
    store.step(dict.fromkeys(names, 1.0))

    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    tables = {name: table.clone().requires_grad_() for name, table in before.items()}
    hidden = plain_transformer_hidden(
        plain,
        text(),
        mask,
        {layer: tables[memory.table_name(layer)] for layer in memory.layers},
        layers=MODEL.layers,
        heads=MODEL.heads,
        look_ahead=memory.look_ahead,
        k=memory.k,
        norm=memory.query_norm,
    )
    expected = F.cross_entropy((hidden @ plain["embedding.weight"].T)[mask], text(2)[mask])
    expected.backward()

    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: before[name] - values(store, name) for name in names}
    for name, exact in (plain | tables).items():
        assert exact.grad is not None
        size = max(float(exact.grad.abs().max()), 1e-3)  # of a bias before batch norm it is 0
        torch.testing.assert_close(found[name], exact.grad, rtol=1e-5, atol=1e-5 * size, msg=name)


# ---- carriers --------------------------------------------------------------------------------------------------


SPEC = TableSpec("memory", ROWS, DIM, seed=7)


@contextmanager
def over_grpc(lookup: LookupKind, shards: int, in_place: bool) -> Iterator[StoreClient]:
    placement = Placement.even(shards)
    servers = [
        ShardServer(
            ShardHost(ShardCore([SPEC], placement, shard, incarnation=f"life-{shard}", shared=True)),
            "127.0.0.1:0",
            "token",
        )
        for shard in range(shards)
    ]
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    store = connect(addresses, token="token", lookup=lookup, in_place=in_place)
    store.take_over()
    assert store.reads_in_place == in_place
    yield store
    store.close()
    for server in servers:
        server.stop(0)


def trained(store: StoreClient, look_ahead: int) -> list[Tensor]:
    """All numbers after a few steps: losses, weights, values."""
    model = new_model(memory_spec(layers=(3, 4), look_ahead=look_ahead), store)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    losses = []
    for step in range(4):
        loss = model.loss(text(step), text(step + 1), MASK)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        store.step({"memory": 1e-2})
        losses.append(loss.detach())
    return [*losses, *model.state_dict().values(), values(store, "memory")]


@pytest.mark.parametrize("look_ahead", [0, 2])
@pytest.mark.parametrize(
    ("ours", "lookup", "shards", "in_place"),
    [("pool", "pool", 1, False), ("pool", "auto", 1, True), ("fetch", "fetch", 2, False)],
)
def test_every_carrier_gives_the_same_bits(
    ours: LookupKind, lookup: LookupKind, shards: int, in_place: bool, look_ahead: int
) -> None:
    alone = trained(in_process_store([SPEC], shards, lookup=ours), look_ahead)
    with over_grpc(lookup, shards, in_place) as store:
        remote = trained(store, look_ahead)
    assert all(torch.equal(found, expected) for found, expected in zip(remote, alone, strict=True))


# ---- overlap ---------------------------------------------------------------------------------------------------


def held_model(memory: MemorySpec, lookup: LookupKind, *held: type) -> tuple[Transformer, HeldCarrier]:
    carrier = HeldCarrier(in_process_hosts([SPEC], 1)[0], *held)
    store = StoreClient([carrier], [SPEC], Placement.even(1), lookup=lookup)
    store.take_over()
    return new_model(memory, store), carrier


def feed_forward(model: Transformer, number: int) -> nn.Module:
    module = cast(Layer, model.layers[number - 1]).feed_forward
    assert module is not None
    return module


def then(act: Callable[[], object]) -> Callable[..., None]:
    """A hook of a module that does not look at the module."""

    def hook(*_: object) -> None:
        act()

    return hook


def test_a_late_layers_gradient_is_sent_before_an_early_layer_is_differentiated() -> None:
    model, carrier = held_model(memory_spec(look_ahead=0), "fetch", m.RowGradient)
    feed_forward(model, 1).register_full_backward_hook(then(lambda: carrier.log.append("layer 1")))
    model.loss(text(), text(2)).backward()  # and nobody waits for the answer
    assert carrier.log.index("RowGradient") < carrier.log.index("layer 1")


def test_a_lookup_is_under_way_while_the_layers_between_are_computed_and_differentiated() -> None:
    """Rows asked for in layer 1 come when the last part before the answer is needed has been computed, in layer 2;
    the weights' gradient when all parts between have been differentiated, the last of them in layer 1."""
    model, carrier = held_model(memory_spec(look_ahead=2), "pool", m.Pool, m.PoolGradient)
    feed_forward(model, 2).register_forward_hook(then(carrier.release))
    feed_forward(model, 1).register_full_backward_hook(then(carrier.release))
    model.loss(text(), text(2)).backward()
    assert carrier.log.count("PoolGradient") == 1


def test_a_lookup_is_under_way_during_the_feed_forward_beside_it() -> None:
    model, carrier = held_model(memory_spec(look_ahead=0, position="beside"), "pool", m.Pool, m.PoolGradient)
    feed_forward(model, 3).register_forward_hook(then(carrier.release))
    feed_forward(model, 3).register_full_backward_hook(then(carrier.release))
    model.loss(text(), text(2)).backward()
    assert carrier.log.count("PoolGradient") == 1


# ---- the rest of the model -------------------------------------------------------------------------------------


def test_under_autocast() -> None:
    model = new_model(memory_spec(gate=True), in_process_store([SPEC]))
    exact = model.loss(text(), text(2), MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(text(), text(2), MASK)
        loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_without_a_gradient_and_ablated() -> None:
    model = new_model(memory_spec(), in_process_store([SPEC])).eval()
    (memory,) = (module for module in model.modules() if isinstance(module, MemoryLayer))
    logits = {}
    kinds: tuple[Ablation, ...] = ("none", "zero", "shuffle")
    for kind in kinds:
        memory.ablation = kind
        logits[kind] = model(text())
        assert torch.equal(model(text()), logits[kind])
    dense = Transformer(MODEL, None, VOCABULARY, {}, seed=0)
    cast(Layer, dense.layers[2]).feed_forward = None
    assert torch.equal(logits["zero"], dense(text()))
    assert not torch.isclose(logits["none"], logits["zero"]).all()
    assert not torch.isclose(logits["none"], logits["shuffle"]).all()
