"""The memory layer against plain PyTorch with a dense table: outputs, all gradients, padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memory_store import OptimizerSpec, StoreClient, TableSpec, UsageError, in_process_store
from memory_store.statistics import access_report
from tests.workers.plain_reference import plain_memory
from workers.memory_layer import MemoryLayer

DIM, SUB_KEYS, K, TOKENS = 6, 7, 5, 9
ROWS = SUB_KEYS**2
OPTIONS: list[dict[str, Any]] = [
    {"query_norm": "batch"},
    {"query_norm": "layer", "query_network": "mlp"},
    {"query_norm": "none", "gate": True},
    {"query_norm": "batch", "query_network": "mlp", "gate": True},
    {"query_norm": "none", "qk_norm": True},
    {"query_norm": "batch", "qk_norm": True, "keys": "flat"},
    {"query_norm": "layer", "keys": "flat", "weights": "scores"},
    {"query_norm": "batch", "weights": "scores", "value_dim": 3},
    {"query_norm": "none", "gate": True, "value_dim": 3},
    {"query_norm": "batch", "slots": "experts"},
    {"query_norm": "none", "slots": "experts", "weights": "scores", "gate": True},
    {"query_norm": "batch", "value_expansion": 7},
    {"query_norm": "layer", "value_expansion": 7, "value_dim": 3, "weights": "scores"},
]
GRADCHECKED = [*OPTIONS[:4], {"query_norm": "batch", "slots": "experts", "heads": 1, "query_dim": 4}]


def open_store(dtype: str = "float64", **options: Any) -> StoreClient:
    """A table for a layer with `options`, whose values lose exactly their gradient at a step with learning rate 1."""
    rows = ROWS // options.get("value_expansion", 1)
    width = 2 * DIM if options.get("slots") == "experts" else options.get("value_dim", DIM)
    spec = TableSpec("memory", rows, width, dtype=dtype, seed=3, optimizer=OptimizerSpec(kind="sgd"))  # type: ignore[arg-type]
    return in_process_store([spec], shards=2)


def new_layer(store: StoreClient, **options: Any) -> MemoryLayer:
    settings = {"sub_keys": SUB_KEYS, "heads": 2, "k": K, "query_dim": 8, "seed": 1, **options}
    layer = MemoryLayer(DIM, store.table("memory"), **settings)
    layer.to(torch.float64 if store.specs["memory"].dtype == "float64" else torch.float32)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in layer.named_parameters():
        if ".norm." in name or name.endswith(".scale"):  # away from 0 and 1, where a mistake would not show
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return layer


def new_x(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> Tensor:
    return torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def values(store: StoreClient) -> Tensor:
    """The whole table `[K, D]`."""
    spec = store.specs["memory"]
    ones = np.ones((spec.rows, 1), dtype=spec.compute_dtype)
    return torch.from_numpy(
        store.table("memory").lookup(np.arange(spec.rows)[:, None], ones, keep=False).output
    )


class Fresh(torch.autograd.Function):
    """A module's output as a function of x and the parameters that may be differentiated any number of
    times: every backward pass runs the forward pass again, since one lookup serves one backward pass."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, *inputs: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(*inputs)
        return Fresh.call(module, inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            output = Fresh.call(ctx.module, inputs)
        return None, *torch.autograd.grad(output, inputs, upstream)

    @staticmethod
    def call(module: nn.Module, inputs: Iterable[Tensor]) -> Tensor:
        x, *parameters = inputs
        names = [name for name, _ in module.named_parameters()]
        output: Tensor = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return output


@pytest.mark.parametrize("options", GRADCHECKED, ids=str)
def test_layer_passes_gradcheck(options: dict[str, Any]) -> None:
    layer = new_layer(open_store(**options), **options)
    inputs = [new_x(tokens=4), *(parameter.detach() for parameter in layer.parameters())]
    assert torch.autograd.gradcheck(
        lambda *inputs: Fresh.apply(layer, *inputs), [tensor.clone().requires_grad_() for tensor in inputs]
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-5)])
def test_output_and_all_gradients_equal_plain_pytorch(
    options: dict[str, Any], dtype: str, tolerance: float
) -> None:
    store = open_store(dtype, **options)
    layer = new_layer(store, **options)
    x = new_x(getattr(torch, dtype)).requires_grad_()
    before = values(store)
    upstream = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    output = layer(x)
    output.backward(upstream.to(x.dtype))
    store.step({"memory": 1.0})

    table = before.double().requires_grad_()
    plain_x = x.detach().double().requires_grad_()
    plain = {name: value.detach().double().requires_grad_() for name, value in layer.named_parameters()}
    settings = {name: options[name] for name in ("weights", "slots") if name in options}
    expected = plain_memory(plain_x, table, plain, k=K, norm=options["query_norm"], **settings)
    expected.backward(upstream)

    found = {"output": output, "x": x.grad, "values": before - values(store)}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    wanted = {"output": expected, "x": plain_x.grad, "values": table.grad}
    wanted |= {name: parameter.grad for name, parameter in plain.items()}
    for name, exact in wanted.items():
        # A bias before batch norm has gradient 0, of which float32 leaves rounding errors that depend on the processor.
        size = max(float(exact.detach().abs().max()), 0.1)
        torch.testing.assert_close(
            found[name].double(),
            exact,
            rtol=tolerance,
            atol=tolerance * size,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_padding_changes_nothing_and_comes_out_as_zero() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    real = new_x(tokens=int(mask.sum()))
    padded = torch.full((3, 3, DIM), torch.nan, dtype=torch.float64)
    padded[mask] = real

    def run(x: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        store = open_store()
        layer = new_layer(store, gate=True)
        layer.track_access = True
        x = x.clone().requires_grad_()
        before = values(store)
        output = layer(x, mask)
        output[mask if mask is not None else ...].square().sum().backward()
        store.step({"memory": 1.0})
        assert x.grad is not None
        gradients = {
            name: parameter.grad for name, parameter in layer.named_parameters()
        } | layer.state_dict()
        accesses = access_report(store, "memory")
        return (
            output.detach(),
            gradients | {"x": x.grad},
            before - values(store),
            torch.tensor(accesses.kl_to_uniform),
        )

    output, gradients, value_gradient, accesses = run(padded, mask)
    expected, expected_gradients, expected_value_gradient, expected_accesses = run(real, None)
    assert torch.equal(output[mask], expected)
    assert torch.equal(output[~mask], torch.zeros_like(output[~mask]))
    x_gradient = gradients.pop("x")
    assert torch.equal(x_gradient[mask], expected_gradients.pop("x"))
    assert torch.equal(x_gradient[~mask], torch.zeros_like(x_gradient[~mask]))
    assert all(torch.equal(gradients[name], value) for name, value in expected_gradients.items())
    assert torch.equal(value_gradient, expected_value_gradient)
    assert torch.equal(accesses, expected_accesses)


@pytest.mark.parametrize("query_norm", ["batch", "layer", "none"])
def test_a_batch_of_padding_alone(query_norm: str) -> None:
    store = open_store()
    layer = new_layer(store, query_norm=query_norm)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    output = layer(new_x(), torch.zeros(TOKENS, dtype=torch.bool))
    output.sum().backward()
    assert torch.equal(output, torch.zeros(TOKENS, DIM, dtype=torch.float64))
    # Gradients of 0, not None: DistributedDataParallel waits for every rank's gradients.
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())  # type: ignore[arg-type]
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_several_layers_share_one_table() -> None:
    store = open_store()
    layers = [new_layer(store, seed=seed, query_norm="none") for seed in (1, 2)]
    x, before = new_x(), values(store)
    sum(layer(x).square().sum() for layer in layers).backward()
    store.step({"memory": 1.0})
    table = before.clone().requires_grad_()
    for layer in layers:
        parameters = {name: value.detach() for name, value in layer.named_parameters()}
        plain_memory(x, table, parameters, k=K, norm="none").square().sum().backward()
    torch.testing.assert_close(before - values(store), table.grad)


def test_the_table_is_no_part_of_the_module() -> None:
    layer = new_layer(open_store())
    assert all(ROWS not in value.shape for value in layer.state_dict().values())
    assert sum(value.numel() for value in layer.parameters()) < ROWS * DIM * 10


def test_first_weights_depend_on_the_seed_alone() -> None:
    store = open_store()
    first, again, other = (new_layer(store, seed=seed, gate=True).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("query_network.network.0.weight", "product_keys.sub_keys", "gate.gate.weight"):
        assert not torch.equal(first[name], other[name])


def test_ablations() -> None:
    layer = new_layer(open_store()).eval()
    x = new_x()
    with torch.no_grad():
        whole = layer(x)
        layer.ablation = "zero"
        assert torch.equal(layer(x), torch.zeros_like(x))
        layer.ablation = "shuffle"
        shuffled = layer(x)
        assert torch.equal(shuffled, layer(x))
        layer.ablation = "none"
        assert torch.equal(layer(x), whole)
    assert not torch.isclose(shuffled, whole).any(-1).all()


@pytest.mark.parametrize("options", [{}, {"slots": "experts"}, {"value_expansion": 7}], ids=str)
def test_only_rows_that_are_chosen_learn(options: dict[str, Any]) -> None:
    def gradient_of_values(chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        store = open_store(**options)
        layer = new_layer(store, **options)
        layer.requires_grad_(False)
        if chosen is not None:
            layer.choose_learning = lambda rows: torch.isin(rows, chosen)
        before = values(store)
        output = layer(new_x())
        output.square().sum().backward()
        store.step({"memory": 1.0})
        return output.detach(), before - values(store)

    output, whole = gradient_of_values(None)
    learned = whole.any(-1).nonzero().flatten()
    for chosen in (learned[::2], learned[3:4]):
        same, part = gradient_of_values(chosen)
        torch.testing.assert_close(same, output)
        torch.testing.assert_close(part[chosen], whole[chosen])
        others = torch.ones(len(whole), dtype=torch.bool)
        others[chosen] = False
        assert not part[others].any()


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "scores"}, {"slots": "experts"}, {"value_expansion": 7}, {"keys": "flat"}],
    ids=str,
)
def test_accesses_are_counted_by_the_size_of_their_weights(options: dict[str, Any]) -> None:
    store = open_store(**options)
    layer = new_layer(store, **options).eval()
    layer.track_access = True
    x, rows = new_x(), store.specs["memory"].rows
    with torch.no_grad():
        layer(x)
        keys, scores = layer.select(layer.query_network(x))
    weights = scores / K if options.get("weights") == "scores" else scores.softmax(-1)
    sums = np.zeros(rows)
    np.add.at(sums, keys.flatten().numpy() % rows, weights.flatten().abs().numpy())
    used = sums[sums > 0] / sums.sum()
    found = access_report(store, "memory")
    assert found.accesses == keys.numel()
    assert found.rows_used == used.size
    assert found.kl_to_uniform == pytest.approx(np.log(rows) + (used * np.log(used)).sum(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 49, 128**2, 65_527**2])
def test_shuffling_is_a_permutation(count: int) -> None:
    from workers.memory_layer import _permuted

    rows = torch.arange(max(0, count - 20_000), count)
    shuffled = _permuted(rows, count)
    assert shuffled.unique().numel() == rows.numel()
    assert 0 <= shuffled.min() <= shuffled.max() < count
    assert count == 1 or (shuffled != rows).float().mean() > 0.9


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (8, {}, r"width 6 .* dim is 8"),
        (6, {"sub_keys": 8}, r"49 rows .* 64"),
        (6, {"k": 8}, r"can't select 8 rows with 7 sub-keys"),
        (6, {"k": 0}, r"can't select 0 rows"),
        (6, {"query_dim": 7}, r"query_dim 7 is odd"),
        (6, {"value_dim": 3}, r"width 6 .* must be 3 wide"),
        (6, {"slots": "experts"}, r"width 6 .* must be 12 wide"),
        (6, {"value_expansion": 7}, r"49 rows .* 7 of them each"),
    ],
)
def test_impossible_shapes_are_refused(dim: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MemoryLayer(dim, open_store().table("memory"), **{"sub_keys": SUB_KEYS, "k": K, **options})
