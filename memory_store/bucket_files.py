"""Table buckets as Arrow IPC files: one file per shard and table, one record batch per bucket.

Columns of a batch, one line per row of the bucket in order of position: `values` (fixed-size list of D;
bfloat16 as its uint16 bit patterns), `first_state` and `second_state` (fixed-size lists, left out where the
optimizer has none) and `last_step`. A batch depends on its bucket only, so a cut can be read onto any number
of shards.

A *delta* is such a file of only the rows that were touched since an earlier cut, with their `position` (uint32) in the bucket
as the first column, rising. The shard's files of that cut, linked into the folder of the new one, and the delta are the new
cut: every cut is whole in itself, and what is written for it is in proportion to the rows touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from memory_store.arrow_batches import open_messages
from memory_store.cuts import CutFile, Manifest, check_file, describe_file
from memory_store.durable_files import sync_file
from memory_store.errors import CutError, UsageError
from memory_store.frozen_part import FrozenPart
from memory_store.placement import bucket_rows
from memory_store.table import TablePart
from memory_store.table_spec import OptimizerSpec, TableSpec

_POSITION = pa.field("position", pa.uint32(), nullable=False)


def spec_as_json(spec: TableSpec) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(spec))))


def spec_from_json(value: dict[str, Any]) -> TableSpec:
    optimizer = dict(value["optimizer"])
    optimizer["betas"] = tuple(optimizer["betas"])
    return TableSpec(**{**value, "optimizer": OptimizerSpec(**optimizer)})


def _schema(part: TablePart) -> pa.Schema:
    return pa.schema(
        [
            pa.field(
                name,
                pa.from_numpy_dtype(array.dtype)
                if array.ndim == 1
                else pa.list_(pa.from_numpy_dtype(array.dtype), array.shape[1]),
                nullable=False,
            )
            for name, array in part.columns()
        ]
    )


def _column(rows: NDArray[Any]) -> pa.Array:
    if rows.ndim == 1:
        return pa.array(rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def write_buckets(folder: Path, frozen: FrozenPart, writer: str) -> CutFile:
    """Write all buckets of a shard's part of a table into `folder`, on the disk when this returns.

    `writer` names the shard's process in the file's name: no other one ever writes it.
    """
    part = frozen.part
    path = folder / f"{part.spec.name}-shard-{writer}.arrow"
    schema = _schema(part)
    buckets = [bucket for bucket in part.buckets if bucket_rows(part.spec.rows, bucket)]
    with frozen.create(path) as sink, pa.ipc.new_file(sink, schema) as table:
        for bucket in buckets:
            columns = [_column(array) for array in frozen.read(bucket).columns]
            table.write_batch(pa.record_batch(columns, schema=schema))
    sync_file(path)
    return describe_file(path, table=part.spec.name, buckets=buckets)


def write_delta(folder: Path, frozen: FrozenPart, writer: str) -> CutFile:
    """Write the rows that were touched after version `frozen.since` into `folder`, on the disk when this returns."""
    part = frozen.part
    path = folder / f"{part.spec.name}-shard-{writer}-delta-{frozen.version:08d}.arrow"
    schema = _schema(part).insert(0, _POSITION)
    buckets = []
    with frozen.create(path) as sink, pa.ipc.new_file(sink, schema) as table:
        for bucket in part.buckets:
            positions, columns = frozen.read(bucket)
            if positions.size:
                arrays = [_column(array) for array in (positions, *columns)]
                table.write_batch(pa.record_batch(arrays, schema=schema))
                buckets.append(bucket)
    sync_file(path)
    return describe_file(path, table=part.spec.name, buckets=buckets, delta=True)


def link_files(source: Path, folder: Path, files: Iterable[CutFile]) -> None:
    """Let `folder` have the files of an older cut too. Raises OSError where the file system can't, or one is gone."""
    for entry in files:
        os.link(source / entry.name, folder / entry.name)


def check_buckets(folder: Path, manifest: Manifest, part: TablePart) -> list[CutFile]:
    """The files of a cut that hold the buckets of a part, whatever number of shards wrote them, found right.

    Raises CutError naming the file, or the bucket that is missing; the part is as it was.
    """
    try:
        specs = {spec.name: spec for spec in map(spec_from_json, manifest.tables)}
    except (UsageError, ValueError, TypeError, KeyError) as error:
        raise CutError(f"{folder} says of a table what no table is: {error}.") from None
    if specs.get(part.spec.name) != part.spec:
        raise CutError(
            f"{folder} holds table {part.spec.name!r} as {specs.get(part.spec.name)}; {part.spec} is wanted. "
            "A cut can be read onto other shards, but not into another table."
        )
    wanted = {bucket for bucket in part.buckets if bucket_rows(part.spec.rows, bucket)}
    missing = set(wanted)
    needed = []
    for entry in manifest.files:
        if entry.table == part.spec.name and (wanted if entry.delta else missing).intersection(entry.buckets):
            check_file(folder, entry)
            needed.append(entry)
            if not entry.delta:
                missing.difference_update(entry.buckets)
    if missing:
        raise CutError(f"{folder} lacks bucket {min(missing)} of table {part.spec.name!r}.")
    return needed


def read_buckets(folder: Path, files: Iterable[CutFile], part: TablePart) -> None:
    """Fill a part with its buckets out of the files that `check_buckets` found. Raises CutError naming the file."""
    for entry in files:
        path = folder / entry.name
        schema = _schema(part)
        if entry.delta:
            schema = schema.insert(0, _POSITION)
        fill = _fill_touched if entry.delta else _fill
        try:
            for bucket, message in _messages(path, schema, entry.buckets):
                if bucket in part.buckets:
                    batch = pa.ipc.read_record_batch(message, schema)
                    if any(column.null_count for column in batch.columns):
                        raise CutError(f"{path} lacks numbers of bucket {bucket}.")
                    fill(part, bucket, batch, path)
        except (pa.ArrowException, OSError) as error:
            raise CutError(f"{path} is not a table file: {error}.") from None


def _messages(path: Path, schema: pa.Schema, buckets: Sequence[int]) -> Iterator[tuple[int, pa.Message]]:
    with open_messages(path, schema) as messages:
        found = list(islice(messages, len(buckets) + 1))
        if len(found) != len(buckets):
            many = len(found) if len(found) < len(buckets) else f"more than {len(buckets)}"
            raise CutError(f"{path} has {many} buckets; the manifest says {len(buckets)}.")
        yield from zip(buckets, found, strict=True)


def _fill(part: TablePart, bucket: int, batch: pa.RecordBatch, path: Path) -> None:
    where = part.bucket_slice(bucket)
    if batch.num_rows != where.stop - where.start:
        raise CutError(f"{path} holds bucket {bucket} in another form than table {part.spec.name!r} has.")
    batch.validate(full=True)
    for name, array in part.columns():
        column = batch.column(name)
        flat = column if array.ndim == 1 else column.flatten()
        array[where] = flat.to_numpy(zero_copy_only=True).reshape(array[where].shape)


def _fill_touched(part: TablePart, bucket: int, batch: pa.RecordBatch, path: Path) -> None:
    where = part.bucket_slice(bucket)
    rows = where.stop - where.start
    if not 0 < batch.num_rows <= rows:
        raise CutError(f"{path} holds bucket {bucket} in another form than table {part.spec.name!r} has.")
    batch.validate(full=True)
    positions = batch.column("position").to_numpy(zero_copy_only=True)
    if positions[-1] >= rows or (positions[1:] <= positions[:-1]).any():
        raise CutError(f"{path} names rows of bucket {bucket} that are not in it, or not in their order.")
    for name, array in part.columns():
        column = batch.column(name)
        flat = column if array.ndim == 1 else column.flatten()
        touched = flat.to_numpy(zero_copy_only=True).reshape(positions.size, *array.shape[1:])
        array[where][positions] = touched
