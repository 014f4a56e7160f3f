"""Incremental cuts: a chain of them is read as the table was, onto any number of shards, and costs what was touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store import TableSpec
from memory_store.bucket_files import spec_as_json
from memory_store.client import StoreClient
from memory_store.cuts import (
    Manifest,
    complete_cuts,
    cut_step,
    describe_file,
    finish_cut,
    prune_cuts,
    read_manifest,
    verify_cut,
)
from memory_store.errors import CutError
from memory_store.opening import in_process_store
from memory_store.shard_cuts import DELTAS_MAX
from memory_store.table_spec import OptimizerKind, OptimizerSpec, ValueType
from tests.memory_store.written_cuts import write_cut


def spec_of(dtype: ValueType = "float32", kind: OptimizerKind = "adam") -> TableSpec:
    return TableSpec("memory", rows=5000, dim=8, dtype=dtype, seed=3, optimizer=OptimizerSpec(kind))


def touch(store: StoreClient, rows: int) -> None:
    """A step that touches this many rows."""
    chosen = np.random.default_rng(store.version).choice(5000, (rows, 1), replace=False)
    found = store.table("memory").lookup(
        chosen, np.ones((rows, 1), store.specs["memory"].compute_dtype), keep=True
    )
    found.backward(np.cos(found.output))
    store.step({"memory": 0.1})
    store.synchronise()


def everything(store: StoreClient) -> list[bytes]:
    """The values, and by further steps of all rows also the optimizer's state."""
    rows = np.arange(5000).reshape(-1, 1)
    ones = np.ones((5000, 1), store.specs["memory"].compute_dtype)
    seen = []
    for _ in range(2):
        found = store.table("memory").lookup(rows, ones, keep=True)
        seen.append(found.output.tobytes())
        found.backward(np.sin(found.output))
        store.step({"memory": 0.1})
        store.synchronise()
    return seen


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float32", "adam"), ("bfloat16", "rowwise_adagrad"), ("float64", "sgd"), ("float32", "rowwise_adam")],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_chain_of_cuts_is_read_as_the_table_was(
    dtype: ValueType, kind: OptimizerKind, shards: int, tmp_path: Path
) -> None:
    store, straight = (in_process_store([spec_of(dtype, kind)], shards, lookup="fetch") for _ in range(2))
    for _ in range(4):
        for _ in range(2):
            touch(store, 100)
            touch(straight, 100)
        folder = write_cut(store, tmp_path)
    prune_cuts(tmp_path, 2)
    assert sum(entry.delta for entry in verify_cut(folder).files) == 2 * shards
    # Two, and one that shares no file with the newest.
    assert [cut_step(each) for each in complete_cuts(tmp_path)] == [2, 6, 8]
    assert not any(entry.delta for entry in verify_cut(complete_cuts(tmp_path)[0]).files)
    expected = everything(straight)
    for others in (1, 2, 5):
        restored = in_process_store([spec_of(dtype, kind)], others, lookup="fetch")
        restored.load_cut(str(folder), 8)
        assert everything(restored) == expected


def test_a_cut_costs_what_was_touched(tmp_path: Path) -> None:
    store = in_process_store([spec_of()])
    touch(store, 10)
    write_cut(store, tmp_path)
    touch(store, 10)
    full = read_manifest(write_cut(store, tmp_path)).files[0].size
    sizes = {}
    for rows in (10, 100, 400):
        touch(store, rows)
        folder = write_cut(store, tmp_path)
        *linked, delta = read_manifest(folder).files
        assert all((folder / entry.name).stat().st_nlink > 1 for entry in linked)
        with pa.ipc.open_file(folder / delta.name) as reader:
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        assert sum(batch.num_rows for batch in batches) == rows
        sizes[rows] = delta.size
    assert sizes[10] < sizes[100] < sizes[400] < full / 2


def test_all_rows_are_written_again_when_most_were_touched_or_many_deltas_have_gathered(
    tmp_path: Path,
) -> None:
    store = in_process_store([spec_of()])
    kinds = []
    for rows in (10, 10, 10, 4000, *[5] * (DELTAS_MAX + 1)):
        touch(store, rows)
        kinds.append(len(read_manifest(write_cut(store, tmp_path)).files))
    assert kinds == [1, 1, 2, 1, *range(2, DELTAS_MAX + 2), 1]


def test_after_a_return_to_a_cut_all_rows_are_written(tmp_path: Path) -> None:
    store = in_process_store([spec_of()])
    for _ in range(3):
        touch(store, 10)
        folder = write_cut(store, tmp_path)
    store.load_cut(str(folder), 3)
    touch(store, 30)
    assert [entry.delta for entry in read_manifest(write_cut(store, tmp_path)).files] == [False]


def test_where_there_are_no_links_all_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_process_store([spec_of()])
    for _ in range(2):
        touch(store, 10)
        write_cut(store, tmp_path)
    touch(store, 10)

    def refuse(*_: object) -> None:
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    assert [entry.delta for entry in verify_cut(write_cut(store, tmp_path)).files] == [False]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_file_of_a_chain_is_named(which: int, tmp_path: Path) -> None:
    store = in_process_store([spec_of()])
    for _ in range(4):
        touch(store, 10)
        folder = write_cut(store, tmp_path)
    entry = read_manifest(folder).files[which]
    content = bytearray((folder / entry.name).read_bytes())
    content[len(content) // 3] ^= 4
    (folder / entry.name).write_bytes(content)
    with pytest.raises(CutError, match=entry.name):
        in_process_store([spec_of()]).load_cut(str(folder), 4)


@pytest.mark.parametrize("wrong", ["beyond", "doubled", "order"])
def test_a_delta_that_names_other_rows_is_refused(wrong: str, tmp_path: Path) -> None:
    store = in_process_store([spec_of()])
    for _ in range(2):
        touch(store, 10)
        write_cut(store, tmp_path)
    touch(store, 2000)
    folder = write_cut(store, tmp_path)
    full, delta = read_manifest(folder).files
    with pa.ipc.open_file(folder / delta.name) as reader:
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    place = next(index for index, batch in enumerate(batches) if batch.num_rows >= 2)
    positions = batches[place].column("position").to_numpy().copy()
    if wrong == "beyond":
        positions[-1] = 5
    elif wrong == "doubled":
        positions[1] = positions[0]
    else:
        positions = positions[::-1].copy()
    changed = batches[place].set_column(0, batches[place].schema.field(0), pa.array(positions))
    with pa.OSFile(str(folder / delta.name), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
        for index, batch in enumerate(batches):
            writer.write_batch(changed if index == place else batch)
    entry = describe_file(folder / delta.name, table="memory", buckets=delta.buckets, delta=True)
    (folder / "manifest.json").unlink()
    finish_cut(folder, Manifest(step=3, tables=(spec_as_json(spec_of()),), files=(full, entry)))
    with pytest.raises(CutError, match="not in it, or not in their order"):
        in_process_store([spec_of()]).load_cut(str(folder), 3)
