"""Rows put in the place of others with a step: exact on every carrier and number of shards, kept by log and cuts."""

from __future__ import annotations

import numpy as np
import pytest

from memory_store import messages as m
from memory_store.errors import LogError, StoreError
from memory_store.log_records import LoggedStep, Payload, Replacement, decode_step, encode_step
from memory_store.opening import in_process_hosts, in_process_store
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.statistics import slot_ages
from memory_store.table_spec import OptimizerSpec, TableSpec
from tests.memory_store.batches import clients

ROWS, DIM = 3000, 6
ALL = np.arange(ROWS)[:, None]
ONES = np.ones((ROWS, 1), dtype=np.float32)


def spec(dtype: str = "float32") -> TableSpec:
    return TableSpec("memory", ROWS, DIM, dtype=dtype, seed=1, optimizer=OptimizerSpec("adam"))  # type: ignore[arg-type]


def whole(store) -> np.ndarray:  # type: ignore[no-untyped-def]
    return store.table("memory").lookup(ALL, ONES, keep=False).output


def touch(store, rows: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    lookup = store.table("memory").lookup(rows[None], np.ones((1, rows.size), np.float32), keep=True)
    lookup.backward(np.ones((1, DIM), np.float32))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("carrier", ["in_process", "grpc"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_replaced_after_the_step_and_start_anew(shards: int, carrier: str, dtype: str):
    table = spec(dtype)
    rows = np.array([2999, 0, 7, 1024, 1031])
    values = np.arange(rows.size * DIM, dtype=np.float32).reshape(rows.size, DIM)  # exact in bfloat16
    plain = in_process_store([table])
    with clients(in_process_hosts([table], shards), 1, "fetch", carrier, table) as (store,):
        for client in (plain, store):
            touch(client, np.array([7, 8]))
            client.step({"memory": 0.1})
            touch(client, np.array([7, 9]))
            if client is store:
                client.replace_rows("memory", rows, values)
            client.step({"memory": 0.1})
        found, others = whole(store), np.setdiff1d(np.arange(ROWS), rows)
        np.testing.assert_array_equal(found[rows], values)
        np.testing.assert_array_equal(found[others], whole(plain)[others])
        # The first step of a row whose moments are at 0, at a table's third step, whatever it was before.
        touch(store, rows)
        store.step({"memory": 0.1})
        moved = whole(store)[rows] - values
        if dtype == "float32":
            np.testing.assert_allclose(moved, moved[0, 0], rtol=1e-4)


def test_ages_count_from_the_last_update():
    store = in_process_store([spec()], shards=2)
    for step in range(25):
        touch(store, np.array([step, 2000]))
        if step == 20:
            store.replace_rows("memory", np.array([5]), np.zeros((1, DIM), np.float32))
        store.step({"memory": 0.1})
    # Rows 24 and 2000 in the last step; 15 to 23 and 5 within ten; the others of the first 25 before that.
    assert [(age.steps, age.rows) for age in slot_ages(store, "memory")] == [
        (1, 2),
        (10, 10),
        (25, 14),
        (None, ROWS - 26),
    ]


def test_wrong_rows_are_refused_and_change_nothing():
    store = in_process_store([spec()], shards=2)
    before = whole(store)
    for rows, values, why in [
        (np.array([3, 3]), np.zeros((2, DIM), np.float32), "replaced twice"),
        (np.array([3]), np.zeros((1, DIM + 1), np.float32), "gradient of shape"),
        (np.array([3]), np.full((1, DIM), np.nan, np.float32), "NaN"),
    ]:
        store = in_process_store([spec()], shards=2)
        store.replace_rows("memory", rows, values)
        with pytest.raises(StoreError, match=why):
            store.step({"memory": 0.1})
        np.testing.assert_array_equal(whole(in_process_store([spec()])), before)


def as_read(payload: Payload) -> tuple[bytes, memoryview]:
    data = b"".join(payload.pieces)
    return data[: payload.head_bytes], memoryview(data)[-(-payload.head_bytes // 64) * 64 :]


def test_a_logged_replacement_is_replayed():
    core = ShardCore([spec()], Placement.even(1), 0, logged=True)
    core.handle(0, m.OpenGroup("session", 1, 1))
    sender, addresses = m.Sender("session", 1, 0), np.array([3, 40], np.uint32)
    values = np.ones((2, DIM), np.float32)
    core.handle(1, m.ReplaceRows(sender, 1, 0, "memory", addresses, values))
    core.handle(2, m.Commit(sender, 2, 0, 1, False, 1.0, np.array([0.1])))
    (step,) = [record for record in core.take_records() if isinstance(record, LoggedStep)]
    read = decode_step(0, *as_read(encode_step(step)))
    again = ShardCore([spec()], Placement.even(1), 0)
    again.replay(read)
    for name in ("values", "first_state", "second_state", "last_step"):
        np.testing.assert_array_equal(
            getattr(again.tables["memory"], name), getattr(core.tables["memory"], name)
        )
    assert again.tables["memory"].last_step[3] == 1

    other = LoggedStep(1, {}, (), (Replacement("memory", np.array([1 << 20], np.uint32), values[:1]),))
    with pytest.raises(LogError, match="doesn't have"):
        again.replay(other)
