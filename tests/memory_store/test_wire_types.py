"""bfloat16 on the wire: what rounding may change, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import OptimizerSpec, TableSpec, connect
from memory_store import messages as m
from memory_store.carriers.grpc_server import ShardServer
from memory_store.client import StoreClient
from memory_store.errors import UsageError
from memory_store.lookups import LookupKind
from memory_store.opening import in_process_hosts
from memory_store.wire import CHUNK_BYTES, Terms, frames, read_frames
from memory_store.wire_types import WireType, narrow, widen

SPEC = TableSpec("memory", rows=4096, dim=64, optimizer=OptimizerSpec("sgd"))
ROWS_USED = 200
_CHANCE = np.random.default_rng(0)
USED = _CHANCE.integers(0, ROWS_USED, (30, 6))
WEIGHTS = _CHANCE.random((30, 6)).astype(np.float32)
GRADIENT = _CHANCE.standard_normal((30, 64)).astype(np.float32)
OFF = 2.0**-8
NARROW = Terms(wire="bfloat16")


def travelled(numbers: np.ndarray) -> np.ndarray:
    return widen(narrow(np.asarray(numbers, np.float32)))


# ---- rounding ----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1))
def test_an_element_is_off_by_at_most_the_stated_part_of_itself(drawn: list[float]):
    numbers = np.array(drawn, np.float32)
    back = travelled(numbers).astype(np.float64)
    bound = np.maximum(np.abs(numbers.astype(np.float64)) * OFF, 2.0**-134)
    assert (np.abs(back - numbers) <= bound).all()
    np.testing.assert_array_equal(np.signbit(back), np.signbit(numbers))


def test_ties_go_to_the_even_neighbour_and_infinities_and_nans_stay():
    step = 2.0**-7
    numbers = [1 + step / 2, 1 + 1.5 * step, np.inf, -np.inf, 3.4e38, -0.0]
    np.testing.assert_array_equal(travelled(np.array(numbers)), [1, 1 + 2 * step, np.inf, -np.inf, np.inf, 0])
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(travelled(nans)).all()


@pytest.mark.parametrize("size", [0, 1, 33, (1 << 20) - 1, (1 << 20) + 1])
def test_numbers_that_bfloat16_holds_come_back_as_they_were(size: int):
    patterns = np.random.default_rng(size).integers(0, 0x7F80, size).astype(np.uint16)
    np.testing.assert_array_equal(narrow(widen(patterns)), patterns)


# ---- messages ----------------------------------------------------------------------------------------------


def test_vectors_are_narrowed_and_everything_else_is_not():
    chance = np.random.default_rng(0)
    gradient = chance.standard_normal((CHUNK_BYTES // 256 + 3, 193)).astype(np.float32)
    message = m.EntryGradient(
        m.Sender("session", 1, 0),
        1,
        2,
        "memory",
        np.arange(len(gradient) + 1, dtype=np.int32),
        np.arange(77, dtype=np.uint32),
        chance.standard_normal(77).astype(np.float32),
        gradient,
    )
    sent = list(frames(message, NARROW))
    assert max(map(len, sent)) <= CHUNK_BYTES + 1024  # the first has the header too
    back, terms = read_frames(sent)
    assert terms == NARROW
    assert isinstance(back, m.EntryGradient)
    for field in fields(message):
        if field.name == "output_gradient":
            np.testing.assert_array_equal(
                back.output_gradient, travelled(gradient.reshape(-1)).reshape(gradient.shape)
            )
        else:
            np.testing.assert_array_equal(getattr(back, field.name), getattr(message, field.name))
    assert sent == list(frames(message, NARROW))


def test_vectors_of_float64_travel_as_they_are():
    values = np.random.default_rng(0).random((5, 7))
    back, _ = read_frames(frames(m.Rows(values), NARROW))
    assert isinstance(back, m.Rows)
    np.testing.assert_array_equal(back.values, values)


def test_bytes_of_vectors_halve():
    rows = m.Rows(np.ones((5000, 256), np.float32))
    plain, narrowed = (sum(map(len, frames(rows, terms))) for terms in (Terms(), NARROW))
    assert 0.5 <= narrowed / plain < 0.501


# ---- over gRPC ---------------------------------------------------------------------------------------------


@contextmanager
def served(spec: TableSpec, shards: int) -> Iterator[list[str]]:
    servers = [ShardServer(host, "127.0.0.1:0", "token") for host in in_process_hosts([spec], shards)]
    try:
        yield [f"127.0.0.1:{server.port}" for server in servers]
    finally:
        for server in servers:
            server.stop(0)


def all_rows(client: StoreClient) -> np.ndarray:
    rows = np.arange(ROWS_USED)[:, None]
    return client.table("memory").lookup(rows, np.ones(rows.shape, np.float32), keep=False).output


def results(addresses: list[str], lookup: LookupKind, wire: WireType) -> dict[str, np.ndarray]:
    """What a lookup returns, forward and backward, and how far its step moves the rows."""
    exact = connect(addresses, token="token", in_place=False)
    client = connect(addresses, token="token", lookup=lookup, wire=wire, in_place=False)
    client.take_over()
    client.initialise()
    exact.version = 0
    before = all_rows(exact)
    found = client.table("memory").lookup(USED, WEIGHTS, keep=True)
    weight_gradient = found.backward(GRADIENT)
    client.step({"memory": 1.0})
    exact.version = 1
    moved = before - all_rows(exact)
    client.close()
    exact.close()
    return {"rows": before, "output": found.output, "weight gradient": weight_gradient, "moved": moved}


@pytest.mark.parametrize("lookup", ["fetch", "pool"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_narrow_wire_keeps_within_its_bound_forward_and_backward(lookup: LookupKind, shards: int):
    """A sum of what has travelled is off by at most the stated part of the sum of sizes."""
    with served(SPEC, shards) as addresses:
        plain = results(addresses, lookup, "float32")
        narrowed = results(addresses, lookup, "bfloat16")
        again = results(addresses, lookup, "bfloat16")
    rows, gradient = np.abs(plain["rows"])[USED], np.abs(GRADIENT)[:, None, :]
    weighted = gradient * WEIGHTS[:, :, None]
    moved = np.zeros((ROWS_USED, SPEC.dim))
    np.add.at(moved, USED.reshape(-1), weighted.reshape(-1, SPEC.dim))
    sizes = {
        "output": (rows * WEIGHTS[:, :, None]).sum(1),
        "weight gradient": (rows * gradient).sum(2),
        "moved": moved,
    }
    for name, size in sizes.items():
        np.testing.assert_array_equal(narrowed[name], again[name])
        off = np.abs(plain[name] - narrowed[name])
        assert off.max() > 0, name
        assert (off <= size * OFF + 1e-6).all(), name  # 1e-6: the sums themselves are rounded too


def test_a_float64_table_does_not_take_a_narrow_wire():
    with (
        served(TableSpec("memory", rows=4096, dim=8, dtype="float64"), 1) as addresses,
        pytest.raises(UsageError, match="float64"),
    ):
        connect(addresses, token="token", wire="bfloat16")
