"""Bucket files: columns as documented, readable by anyone, and only into the same table."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_store.bucket_files import check_buckets, read_buckets, spec_as_json, write_buckets
from memory_store.cuts import CutFile, Manifest
from memory_store.errors import CutError
from memory_store.frozen_part import FrozenPart
from memory_store.placement import Placement, addresses_of
from memory_store.shard import ShardCore
from memory_store.table import TablePart
from memory_store.table_spec import OptimizerSpec, TableSpec, ValueType

STATE_COLUMNS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 1, "adam": 2, "rowwise_adam": 2}


def part_of(spec: TableSpec, shard: int = 0, shards: int = 1, *, scrambled: bool = False) -> TablePart:
    part = ShardCore([spec], Placement.even(shards), shard).tables[spec.name]
    if scrambled:
        rng = np.random.default_rng(shard)
        for array in (part.values, part.first_state, part.second_state, part.last_step):
            array.view(np.uint8).reshape(-1)[:] = rng.integers(0, 100, size=array.nbytes)
    return part


def frozen(part: TablePart) -> FrozenPart:
    return FrozenPart(part, 2**32 - 1, threading.Lock())


def manifest_of(spec: TableSpec, *files: CutFile) -> Manifest:
    return Manifest(step=1, tables=(spec_as_json(spec),), files=files)


@pytest.mark.parametrize("kind", STATE_COLUMNS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_file_holds_the_columns_of_its_rows_by_bucket(kind: str, dtype: ValueType, tmp_path: Path):
    spec = TableSpec("memory", 2500, 3, dtype, optimizer=OptimizerSpec(kind))  # type: ignore[arg-type]
    part = part_of(spec, 1, 2, scrambled=True)
    entry = write_buckets(tmp_path, frozen(part), "0001")
    assert (entry.name, entry.table, entry.buckets) == (
        "memory-shard-0001.arrow",
        "memory",
        tuple(range(512, 1024)),
    )
    with pa.ipc.open_file(tmp_path / entry.name) as reader:
        assert reader.num_record_batches == 512
        for index in (0, 100, 511):
            batch = reader.get_batch(index)
            names = ["values", "first_state", "second_state"][: 1 + STATE_COLUMNS[kind]]
            assert batch.schema.names == [*names, "last_step"]
            rows = np.arange(512 + index, spec.rows, 1024)
            where = addresses_of(rows, spec.rows).astype(int) - part.first_address
            for name in batch.schema.names:
                column = np.array(batch.column(name).to_pylist()).reshape(rows.size, -1)
                array = getattr(part, name)
                np.testing.assert_array_equal(column, array[where].reshape(rows.size, -1))


@pytest.mark.parametrize("kind", STATE_COLUMNS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_what_was_written_is_read_bit_for_bit(kind: str, dtype: ValueType, tmp_path: Path):
    spec = TableSpec("memory", 1500, 3, dtype, optimizer=OptimizerSpec(kind))  # type: ignore[arg-type]
    written, read = part_of(spec, scrambled=True), part_of(spec)
    manifest = manifest_of(spec, write_buckets(tmp_path, frozen(written), "0000"))
    read_buckets(tmp_path, check_buckets(tmp_path, manifest, read), read)
    exist = addresses_of(np.arange(spec.rows), spec.rows)
    for name in ("values", "first_state", "second_state", "last_step"):
        assert getattr(read, name)[exist].tobytes() == getattr(written, name)[exist].tobytes()


def test_a_shard_without_any_row_writes_and_reads_nothing(tmp_path: Path):
    spec = TableSpec("memory", 3, 2)
    parts = [part_of(spec, shard, 2) for shard in range(2)]
    files = [write_buckets(tmp_path, frozen(part), f"{shard:04d}") for shard, part in enumerate(parts)]
    assert [file.buckets for file in files] == [(0, 1, 2), ()]
    manifest = manifest_of(spec, *files)
    assert [check_buckets(tmp_path, manifest, part) for part in parts] == [[files[0]], []]


@pytest.mark.parametrize(
    "other",
    [
        TableSpec("memory", 1500, 4),
        TableSpec("memory", 1501, 3),
        TableSpec("memory", 1500, 3, "bfloat16"),
        TableSpec("memory", 1500, 3, seed=1),
        TableSpec("memory", 1500, 3, optimizer=OptimizerSpec("sgd")),
        TableSpec("other", 1500, 3),
    ],
)
def test_another_table_does_not_take_it(other: TableSpec, tmp_path: Path):
    spec = TableSpec("memory", 1500, 3)
    manifest = manifest_of(spec, write_buckets(tmp_path, frozen(part_of(spec)), "0000"))
    with pytest.raises(CutError, match="not into another table"):
        check_buckets(tmp_path, manifest, part_of(other))


def test_a_missing_bucket_is_named(tmp_path: Path):
    spec = TableSpec("memory", 1500, 3)
    manifest = manifest_of(spec, write_buckets(tmp_path, frozen(part_of(spec, 0, 2)), "0000"))
    check_buckets(tmp_path, manifest, part_of(spec, 0, 4))
    with pytest.raises(CutError, match="lacks bucket 512 of table 'memory'"):
        check_buckets(tmp_path, manifest, part_of(spec))


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        (tuple(range(1023)), "lacks bucket"),
        ((1, 0, *range(2, 1024)), "another form"),
        (tuple(range(1024)) * 2, "1024 buckets"),
    ],
)
def test_a_manifest_that_does_not_fit_its_file_is_refused(
    buckets: tuple[int, ...], said: str, tmp_path: Path
):
    spec = TableSpec("memory", 1025, 3)  # bucket 0 has two rows, the others one
    entry = write_buckets(tmp_path, frozen(part_of(spec)), "0000").model_copy(update={"buckets": buckets})
    part = part_of(spec)
    with pytest.raises(CutError, match=said):
        read_buckets(tmp_path, check_buckets(tmp_path, manifest_of(spec, entry), part), part)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    spec = TableSpec("memory", 10, 3)
    entry = write_buckets(tmp_path, frozen(part_of(spec)), "0000")
    for content in (b"", b"not arrow at all", (tmp_path / entry.name).read_bytes()[:200]):
        (tmp_path / entry.name).write_bytes(content)
        with pytest.raises(CutError, match=entry.name):
            read_buckets(tmp_path, [entry], part_of(spec))
