"""The transformer: causality, positions, padding, tied embedding, loss, dense twin, tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memory_store import StoreClient, TableSpec, in_process_store
from workers.job_spec import ModelSpec
from workers.memory_layer import MemoryLayer
from workers.memory_spec import MemorySpec
from workers.transformer import Transformer, rotary_angles, rotate

VOCABULARY, LENGTH = 50, 12
MODEL = ModelSpec(layers=3, dim=16, heads=2, feed_forward_dim=24)


def memory_spec(**changes: Any) -> MemorySpec:
    settings = {"layers": (2,), "sub_keys": 8, "heads": 2, "k": 4, "query_dim": 6, **changes}
    return MemorySpec.model_validate(settings)


def build(
    memory: MemorySpec | None = None, seed: int = 0, model: ModelSpec = MODEL
) -> tuple[Transformer, StoreClient]:
    names = (
        ["unused"] if memory is None else dict.fromkeys(memory.table_name(layer) for layer in memory.layers)
    )
    store = in_process_store([TableSpec(name, 64, model.dim, seed=i) for i, name in enumerate(names)])
    tables = {name: store.table(name) for name in names} if memory else {}
    return Transformer(model, memory, VOCABULARY, tables, seed), store


def new_tokens(seed: int = 1, sequences: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))


MEMORIES = [
    None,
    memory_spec(),
    memory_spec(layers=(1, 3), position="beside", shared_table=False, gate=True),
    memory_spec(layers=(2, 3), look_ahead=1),
]


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_logits_depend_on_earlier_tokens_alone(memory: MemorySpec | None) -> None:
    model = build(memory)[0].eval()
    tokens = new_tokens()
    logits = model(tokens)
    assert logits.shape == (3, LENGTH, VOCABULARY)
    for place in (0, 5, LENGTH - 1):
        changed = tokens.clone()
        changed[:, place] = (tokens[:, place] + 1) % VOCABULARY
        difference = (model(changed) - logits).abs().amax(-1)
        assert difference[:, :place].max() == 0 if place else True
        assert difference[:, place:].min() > 0


def test_look_ahead_adds_no_weights() -> None:
    shapes = [
        {name: value.shape for name, value in build(memory_spec(look_ahead=ahead))[0].state_dict().items()}
        for ahead in (0, 1)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_parameter_learns(memory: MemorySpec | None) -> None:
    model, _ = build(memory)
    model.loss(new_tokens(), new_tokens(2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_mean_cross_entropy_of_real_tokens(masked: bool) -> None:
    model, _ = build(memory_spec())
    model.eval()
    # More tokens than one chunk of logits holds.
    tokens, targets = new_tokens(1, sequences=50), new_tokens(2, sequences=50)
    mask = torch.arange(LENGTH) < torch.randint(
        LENGTH + 1, (50, 1), generator=torch.Generator().manual_seed(3)
    )
    chosen = mask if masked else None
    loss = model.loss(tokens, targets, chosen)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    logits = model(tokens, chosen)
    expected = F.cross_entropy(logits[mask], targets[mask]) if masked else F.cross_entropy(logits.mT, targets)
    torch.testing.assert_close(loss, expected)
    for gradient, exact in zip(
        gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-6)


def test_loss_without_a_real_token_is_zero() -> None:
    model, _ = build(memory_spec())
    loss = model.loss(new_tokens(), new_tokens(2), torch.zeros(3, LENGTH, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


@pytest.mark.parametrize("memory", [memory_spec(layers=(1, 2)), memory_spec(layers=(2, 3), look_ahead=1)])
@torch.no_grad()
def test_padding_does_not_reach_real_tokens(memory: MemorySpec) -> None:
    model, _ = build(memory)
    tokens = new_tokens()
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 7:] = False
    padded = tokens.where(mask, 0)
    model.train()
    logits = model(padded, mask)[:, :7]
    alone = build(memory)[0](tokens[:, :7])
    torch.testing.assert_close(logits, alone)  # in training mode: batch statistics must not see the padding


@torch.no_grad()
def test_embedding_is_the_output_layer() -> None:
    model, _ = build()
    assert [name for name, p in model.named_parameters() if VOCABULARY in p.shape] == ["embedding.weight"]
    before = model(new_tokens())
    absent = next(token for token in range(VOCABULARY) if token not in new_tokens())
    model.embedding.weight[absent] *= 2
    after = model(new_tokens())
    torch.testing.assert_close(after[..., absent], 2 * before[..., absent])
    others = torch.arange(VOCABULARY) != absent
    assert torch.equal(after[..., others], before[..., others])


def test_memory_stands_where_it_is_told() -> None:
    def parts(memory: MemorySpec | None) -> list[str]:
        layers = build(memory)[0].layers
        return [
            "fm"[: 2 if layer.memory and layer.feed_forward else 1] if layer.feed_forward else "m"
            for layer in layers
        ]

    assert parts(None) == ["f", "f", "f"]
    assert parts(memory_spec(layers=(1, 3))) == ["m", "f", "m"]
    assert parts(memory_spec(layers=(3,), position="beside")) == ["f", "f", "fm"]


def test_tables_are_shared_or_separate() -> None:
    def names(memory: MemorySpec) -> list[str]:
        return [module.table.name for module in build(memory)[0].modules() if isinstance(module, MemoryLayer)]

    assert names(memory_spec(layers=(3, 1))) == ["memory", "memory"]
    assert names(memory_spec(layers=(3, 1), shared_table=False)) == ["memory-1", "memory-3"]


@pytest.mark.parametrize("shared", [True, False])
def test_both_layers_teach_their_tables(shared: bool) -> None:
    model, store = build(memory_spec(layers=(1, 3), shared_table=shared))
    every_row = np.arange(64)[:, None]

    def values() -> list[np.ndarray[Any, Any]]:
        ones = np.ones((64, 1), dtype=np.float32)
        return [store.table(name).lookup(every_row, ones, keep=False).output for name in store.specs]

    before = values()
    model.loss(new_tokens(), new_tokens(2)).backward()
    store.step(dict.fromkeys(store.specs, 0.1))
    assert len(before) == (1 if shared else 2)
    assert all((old != new).any() for old, new in zip(before, values(), strict=True))


def test_first_weights_depend_on_seed_and_place_alone() -> None:
    dense = build()[0].state_dict()
    torch.manual_seed(99)
    for memory in MEMORIES[1:]:
        with_memory = build(memory)[0].state_dict()
        common = dense.keys() & with_memory.keys()
        assert len(common) > 10
        assert all(torch.equal(dense[name], with_memory[name]) for name in common)
    deep = build(model=MODEL.model_copy(update={"layers": 6}))[0].state_dict()
    assert torch.equal(
        dense["layers.2.feed_forward.inner.weight"], deep["layers.2.feed_forward.inner.weight"]
    )
    assert not torch.equal(dense["embedding.weight"], build(seed=1)[0].state_dict()["embedding.weight"])
    assert not torch.equal(
        dense["layers.0.feed_forward.inner.weight"], dense["layers.1.feed_forward.inner.weight"]
    )
    both = build(memory_spec(layers=(1, 2)))[0].state_dict()
    assert not torch.equal(
        both["layers.0.memory.product_keys.sub_keys"], both["layers.1.memory.product_keys.sub_keys"]
    )


def test_only_matrices_decay() -> None:
    model, _ = build(memory_spec(gate=True))
    decaying, others = model.parameter_groups(0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert len(decaying["params"]) + len(kept) == len(names)
    assert "layers.1.memory.product_keys.sub_keys" in kept
    assert {name for name in names.values() if "norm" in name or name.endswith("bias")} <= kept
    assert "embedding.weight" not in kept


def test_rotated_products_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    rotation = rotary_angles(20, 8, torch.device("cpu"))
    products = rotate(query.expand(20, 8), rotation) @ rotate(key.expand(20, 8), rotation).T
    assert products[0, 0] == pytest.approx(float(query @ key))
    for distance in (1, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    # Every pair of coordinates turns: the slowest by 10000 ** -(6 / 8) a position.
    turned = rotate(torch.eye(8, dtype=torch.float64)[3].expand(20, 8), rotation)[1]
    assert turned[7] == pytest.approx(np.sin(10_000 ** -(6 / 8)))


def test_a_small_model_learns_to_copy() -> None:
    """Predict the token before: attention, positions, memory and loss have to work together."""
    model, store = build(memory_spec())
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=3e-2)
    losses = []
    for step in range(130):
        tokens = new_tokens(step, sequences=16)
        loss = model.loss(tokens[:, 1:], tokens[:, :-1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        store.step({"memory": 1e-2})
        losses.append(loss.item())
    assert losses[0] > 3.5
    assert losses[-1] < 2
