"""The query network against its formula, and its choices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.workers.plain_reference import plain_queries
from workers.query_network import QueryNetwork, QueryNetworkKind, QueryNorm
from workers.synchronised_batch_norm import SynchronisedBatchNorm

X = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))


def new_network(kind: QueryNetworkKind = "linear", norm: QueryNorm = "batch", seed: int = 5) -> QueryNetwork:
    return QueryNetwork(12, 3, 8, kind, norm, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_queries_equal_the_formula(kind: QueryNetworkKind, norm: QueryNorm) -> None:
    network = new_network(kind, norm)
    for name, parameter in network.named_parameters():  # away from 0 and 1, where a mistake would not show
        nn.init.normal_(parameter, mean=float(name.startswith("norm.weight")), std=0.3)
    parameters = {f"query_network.{name}": value for name, value in network.named_parameters()}
    queries = network(X)
    assert queries.shape == (20, 3, 8)
    torch.testing.assert_close(queries.flatten(1), plain_queries(X, parameters, norm))


def test_norm_spans_all_heads() -> None:
    batch, layer = new_network(norm="batch").norm, new_network(norm="layer").norm
    assert isinstance(batch, SynchronisedBatchNorm)
    assert batch.num_features == 3 * 8
    assert isinstance(layer, nn.LayerNorm)
    assert layer.normalized_shape == (3 * 8,)


def test_mlp_has_one_hidden_layer() -> None:
    linears = [module for module in new_network("mlp").modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(12, 12), (12, 24)]


def test_first_weights_come_from_the_generator_alone() -> None:
    first = new_network().state_dict()
    torch.manual_seed(99)
    again, other = new_network().state_dict(), new_network(seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_queries_are_float32_under_autocast(norm: QueryNorm) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert new_network(norm=norm)(X).dtype == torch.float32
