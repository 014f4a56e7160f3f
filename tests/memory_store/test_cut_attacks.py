"""Cuts that nobody would write: none is read, none costs memory, and none leads out of the shard's own folder.

Attacks 4 and 5 of docs/security.md, at the shard itself, whatever port they came by.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_store import TableSpec
from memory_store import messages as m
from memory_store.bucket_files import spec_as_json
from memory_store.cuts import MANIFEST, CutFile, Manifest, begin_cut, describe_file, finish_cut, read_manifest
from memory_store.errors import CutError
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec

SPEC = TableSpec("memory", 2048, 4, optimizer=OptimizerSpec("sgd"))
SENDER = m.Sender("session", 1, 0)
MEMORY_MAX = (
    1 << 30
)  # bytes of a process that has read all hostile cuts; what it imports takes a third of that
COLUMNS = pa.schema(
    [
        pa.field("values", pa.list_(pa.float32(), 4), nullable=False),
        pa.field("last_step", pa.uint32(), nullable=False),
    ]
)


def a_host(cuts: Path | None = None) -> ShardHost:
    """The first of 64 shards: 16 buckets of 2 rows."""
    host = ShardHost(ShardCore([SPEC], Placement.even(64), 0), cuts=cuts)
    host.call(m.OpenGroup("session", 1, 1), 10)
    return host


def good_cut(cuts: Path) -> Path:
    folder = begin_cut(cuts, 0)
    written = a_host().call(m.WriteCut(SENDER, str(folder), 0, 1), 60)
    assert isinstance(written, m.CutWritten)
    files = tuple(CutFile.model_validate(file) for file in json.loads(written.files))
    finish_cut(folder, Manifest(step=0, tables=(spec_as_json(SPEC),), files=files))
    return folder


@pytest.fixture
def host(tmp_path: Path) -> ShardHost:
    (tmp_path / "run" / "cuts").mkdir(parents=True)
    return a_host(tmp_path / "run" / "cuts")


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    return good_cut(tmp_path / "run" / "cuts")


def content(host: ShardHost) -> bytes:
    part = host._core.tables["memory"]
    return b"".join(array.tobytes() for _, array in part.columns())


@cache
def first_values() -> bytes:
    return content(a_host())


# ---- where a cut may be ------------------------------------------------------------------------------------------


def outside(cuts: Path) -> list[str]:
    elsewhere = cuts.parent / "elsewhere" / "step-00000000"
    elsewhere.mkdir(parents=True)
    (cuts / "step-00000007").symlink_to(elsewhere)
    (cuts / "step-00000008").symlink_to("step-00000008")
    (cuts / "step-00000009").mkdir()
    (cuts / "step-00000009" / "step-00000000").mkdir()
    return [
        "../../etc", "/etc", "/", "", ".", str(elsewhere), str(cuts), f"{cuts}/../elsewhere/step-00000000",
        f"{cuts}/step-00000007", f"{cuts}/step-00000008", f"{cuts}/step-00000009/step-00000000", f"{cuts}/other",
        f"{cuts}/step-00000001\0", "\0", "x" * 4096, f"{cuts}/{'x' * 4096}", f"{cuts}/step-{'1' * 300}", "/" * 4096,
        f"{cuts}/{'../' * 400}etc", "/proc/self/fd/0", "/dev/zero", "~root", "file:///etc", f"{cuts}/step-00000001/..",
    ]  # fmt: skip


def test_no_request_leads_a_shard_out_of_its_folder(host: ShardHost, tmp_path: Path) -> None:
    before = content(host)
    folders = outside(tmp_path / "run" / "cuts")
    files = sorted(tmp_path.rglob("*"))
    for folder in folders:
        for request in (
            m.BeginCut(SENDER, folder, 0, 1),
            m.WriteCut(SENDER, folder, 0, 1),
            m.LoadCut(SENDER, 1, folder),
        ):
            with pytest.raises(CutError, match="is no cut of this shard") as refused:
                host.call(request, 20)
            assert len(str(refused.value)) < 1000
    assert content(host) == before
    assert sorted(tmp_path.rglob("*")) == files


def test_its_own_folder_is_the_shards_to_write_and_read(host: ShardHost, tmp_path: Path) -> None:
    cuts = tmp_path / "run" / "cuts"
    folder = begin_cut(cuts, 0)
    assert isinstance(host.call(m.WriteCut(SENDER, str(folder), 0, 1), 60), m.CutWritten)
    before = content(host)
    cut = good_cut(cuts)
    (tmp_path / "link").symlink_to(cuts)  # a run folder may be reached by another name
    assert host.call(m.LoadCut(SENDER, 1, str(tmp_path / "link" / cut.name)), 60) == m.Done(duplicate=False)
    assert content(host) == before


@pytest.mark.parametrize("linked", [MANIFEST, "memory"])
def test_a_link_in_a_cut_is_not_followed(host: ShardHost, cut: Path, linked: str, tmp_path: Path) -> None:
    (path,) = cut.glob(f"{linked}*")
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    with pytest.raises(CutError):
        host.call(m.LoadCut(SENDER, 1, str(cut)), 20)


# ---- what a cut may hold -----------------------------------------------------------------------------------------


def signed(folder: Path, body: dict[str, Any]) -> None:
    """A manifest of any content, with the right checksum."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest().encode()
    (folder / MANIFEST).write_bytes(b'{"body":' + canonical + b',"sha256":"' + digest + b'"}\n')


def with_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def attack(cut: Path) -> None:
        body = json.loads((cut / MANIFEST).read_bytes())["body"]
        change(body)
        signed(cut, body)

    return attack


def with_table_file(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The table's file as `write` makes it, with the right checksum in the manifest."""

    def attack(cut: Path) -> None:
        manifest = read_manifest(cut)
        (entry,) = manifest.files
        write(cut / entry.name)
        made = describe_file(cut / entry.name, table="memory", buckets=entry.buckets)
        finish_cut(cut, manifest.model_copy(update={"files": (made,)}))

    return attack


def batches(
    rows: int = 2, schema: pa.Schema = COLUMNS, compression: str | None = None, count: int = 16
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        columns = [
            pa.FixedSizeListArray.from_arrays(
                pa.array(np.zeros(rows * field.type.list_size, field.type.value_type.to_pandas_dtype())),
                field.type.list_size,
            )
            if pa.types.is_fixed_size_list(field.type)
            else pa.array(np.zeros(rows, field.type.to_pandas_dtype()))
            for field in schema
        ]
        batch = pa.record_batch(columns, schema=schema)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as table:
            for _ in range(count):
                table.write_batch(batch)

    return write


def patched(old: bytes, new: bytes) -> Callable[[Path], None]:
    """A good file in which some bytes are others, wherever they stand."""

    def write(path: Path) -> None:
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))

    return write


def huge_head(path: Path) -> None:
    batches(schema=COLUMNS.append(pa.field("x" * (8 << 20), pa.uint32())))(path)


def lying_bomb(path: Path) -> None:
    """A bucket of 2 rows whose compressed buffer says that it is a terabyte."""
    batches(compression="zstd")(path)
    path.write_bytes(path.read_bytes().replace((32).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little")))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.parent / "trap")))


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def other_columns(kind: pa.DataType) -> pa.Schema:
    return pa.schema(
        [pa.field("values", kind, nullable=False), pa.field("last_step", pa.uint32(), nullable=False)]
    )


def entry(**change: object) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["files"][0].update(change)


ROWS_PER_BATCH = (2).to_bytes(8, "little") + (0).to_bytes(8, "little")  # a FieldNode: length, nulls
ATTACKS: dict[str, Callable[[Path], None]] = {
    "a pickle for a table": with_table_file(pickled),
    "a pickle for a manifest": lambda cut: pickled(cut / MANIFEST),
    "a compressed bomb": with_table_file(batches(rows=1 << 22, compression="zstd", count=1)),
    "a bomb in each bucket": with_table_file(batches(rows=1 << 16, compression="zstd")),
    "a small compressed file": with_table_file(batches(compression="lz4")),
    "a buffer that says it is a terabyte": with_table_file(lying_bomb),
    "a huge head": with_table_file(huge_head),
    "a number of another type": with_table_file(batches(schema=other_columns(pa.list_(pa.float64(), 4)))),
    "another width": with_table_file(batches(schema=other_columns(pa.list_(pa.float32(), 5)))),
    "no list": with_table_file(batches(schema=other_columns(pa.float32()))),
    "a column more": with_table_file(batches(schema=COLUMNS.append(pa.field("more", pa.uint32())))),
    "too many rows": with_table_file(batches(rows=3)),
    "no rows": with_table_file(batches(rows=0)),
    "too few buckets": with_table_file(batches(count=15)),
    "too many buckets": with_table_file(batches(count=5000)),
    "fewer than no rows": with_table_file(patched(ROWS_PER_BATCH, b"\xff" * 8 + b"\0" * 8)),
    "more rows than bytes": with_table_file(patched(ROWS_PER_BATCH, b"\xff" * 7 + b"\x7f" + b"\0" * 8)),
    "missing numbers": with_table_file(patched(ROWS_PER_BATCH, (2).to_bytes(8, "little") * 2)),
    "an empty file": with_table_file(lambda path: path.write_bytes(b"")),
    "a file that ends": with_table_file(lambda path: path.write_bytes(path.read_bytes()[:2000])),
    "a file twice": with_manifest(lambda body: body["files"].append(body["files"][0])),
    "a bucket twice": with_manifest(lambda body: body["files"][0]["buckets"].append(0)),
    "a file from elsewhere": with_manifest(entry(name="../../../etc/passwd")),
    "an absolute name": with_manifest(entry(name="/etc/passwd")),
    "the folder itself": with_manifest(entry(name=".")),
    "no name": with_manifest(entry(name="")),
    "a name with a NUL": with_manifest(entry(name="memory\0.arrow")),
    "a name of 4 KiB": with_manifest(entry(name="x" * 4096)),
    "fewer than no bytes": with_manifest(entry(size=-1)),
    "more bytes than there can be": with_manifest(entry(size=1 << 62)),
    "a table of negative rows": with_manifest(lambda body: body["tables"][0].update(rows=-1)),
    "a table of negative width": with_manifest(lambda body: body["tables"][0].update(dim=-4)),
    "a table of text": with_manifest(lambda body: body["tables"][0].update(rows="many")),
    "a table without its optimizer": with_manifest(lambda body: body["tables"][0].pop("optimizer")),
    "a table of unknown things": with_manifest(lambda body: body["tables"][0].update(surprise=1)),
    "lists in lists": lambda cut: (cut / MANIFEST).write_bytes(b"[" * 1_000_000),
    "8 MiB of nothing": with_manifest(lambda body: body.update(step="x", state={"x": [[]] * 2_700_000})),
    "a manifest without end": lambda cut: os.truncate(cut / MANIFEST, 1 << 40),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_cut_is_refused(host: ShardHost, cut: Path, name: str, tmp_path: Path) -> None:
    ATTACKS[name](cut)
    allocated = pa.total_allocated_bytes()
    with pytest.raises(CutError) as refused:
        host.call(m.LoadCut(SENDER, 1, str(cut)), 60)
    assert str(cut) in str(refused.value)
    assert len(str(refused.value)) < 6000
    assert pa.total_allocated_bytes() - allocated < 1 << 20
    assert not (cut / "trap").exists()
    # The shard lives, and can be brought to a state that is known.
    host.call(m.Initialise(SENDER, 2), 20)
    assert content(host) == first_values()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hostile_cuts_cost_no_memory(tmp_path: Path) -> None:
    """All of them, read one after the other by a process of its own."""
    for number, attack in enumerate(ATTACKS.values()):
        attack(good_cut(tmp_path / f"{number:02d}"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory_store.test_cut_attacks", str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, resident, by_arrow = map(int, done.stdout.split())
    assert refused == len(ATTACKS)
    assert resident < MEMORY_MAX
    assert by_arrow < 1 << 20


def _read_them_all(folder: Path) -> None:
    """Print how many were refused, and the most bytes that this process, and Arrow in it, have held."""
    host, refused = a_host(), 0
    for seq, cut in enumerate(sorted(folder.glob("*/step-*")), start=1):
        try:
            host.call(m.LoadCut(SENDER, seq, str(cut)), 60)
        except CutError:
            refused += 1
    # Not ru_maxrss, which begins with what the process held that started this one.
    (peak,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    resident = int(peak.split()[1]) * 1024
    print(refused, resident, pa.default_memory_pool().max_memory())


if __name__ == "__main__":
    _read_them_all(Path(sys.argv[1]))
