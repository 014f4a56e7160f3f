"""Cuts: what is written is read onto any number of shards, and no damage goes unnoticed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import StoreClient, TableSpec
from memory_store import messages as m
from memory_store.cuts import (
    MANIFEST,
    Manifest,
    begin_cut,
    complete_cuts,
    cut_folder,
    cut_step,
    describe_file,
    finish_cut,
    prune_cuts,
    read_manifest,
    verify_cut,
)
from memory_store.errors import CutError, StoreError
from memory_store.opening import attach, in_process_hosts
from memory_store.shard_host import ShardHost
from memory_store.table_spec import OptimizerSpec
from tests.memory_store.written_cuts import write_cut

SPECS = [
    TableSpec("memory", 1300, 3, optimizer=OptimizerSpec("adam")),
    TableSpec("half", 700, 2, "bfloat16", optimizer=OptimizerSpec("rowwise_adam")),
    TableSpec("plain", 5, 2, "float64", optimizer=OptimizerSpec("sgd")),
]


class Store:
    """A store with its hosts, so that its tables can be compared from the outside."""

    def __init__(self, shards: int = 1, specs: list[TableSpec] | None = None, *, train: int = 0) -> None:
        self.specs = SPECS if specs is None else specs
        self.hosts: list[ShardHost] = in_process_hosts(self.specs, shards)
        self.client: StoreClient = attach(self.hosts, self.specs, lookup="fetch")
        self.client.take_over()
        self.train(train)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            rng = np.random.default_rng(self.client.version)
            for spec in self.specs:
                rows = rng.integers(0, spec.rows, size=(6, 4))
                weights = rng.random((6, 4)).astype(spec.compute_dtype)
                found = self.client.table(spec.name).lookup(rows, weights, keep=True, track=True)
                found.backward(rng.normal(size=found.output.shape))
            self.client.step({spec.name: 0.1 for spec in self.specs})

    def content(self) -> dict[str, bytes]:
        """Every number of every row that exists, in the order of buckets."""
        content = {}
        for spec in self.specs:
            parts = [host._core.tables[spec.name] for host in self.hosts]
            for name in ("values", "first_state", "second_state", "last_step"):
                rows = [
                    getattr(part, name)[part.bucket_slice(bucket)]
                    for part in parts
                    for bucket in part.buckets
                ]
                content[f"{spec.name}.{name}"] = np.concatenate(rows).tobytes()
        return content

    def write(self, cuts: Path) -> Path:
        return write_cut(self.client, cuts)

    def load(self, folder: Path) -> None:
        self.client.load_cut(str(folder), cut_step(folder))


# ---- written and read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_by", [1, 3, 8])
@pytest.mark.parametrize("read_by", [1, 2, 5])
def test_a_cut_moves_every_bit_to_another_number_of_shards(written_by: int, read_by: int, tmp_path: Path):
    writer, reader = Store(written_by, train=3), Store(read_by, train=1)
    reader.load(writer.write(tmp_path))
    assert reader.content() == writer.content()
    assert {info.version for info in reader.client.describe()} == {3}
    # And it goes on from there as if nothing had happened.
    for store in (writer, reader):
        store.train(2)
    assert reader.content() == writer.content()


def test_reading_a_cut_forgets_the_accesses_of_the_table_before(tmp_path: Path):
    store = Store(train=2)
    store.load(store.write(tmp_path))
    assert not any(part.accesses.any() for host in store.hosts for part in host._core.tables.values())


def test_state_comes_back_with_the_manifest(tmp_path: Path):
    folder = begin_cut(tmp_path, 12)
    (folder / "weights").write_bytes(b"abc")
    state = {"seed": 3, "name": "Zürich", "rates": [0.1, None, True]}
    manifest = Manifest(step=12, state=state, files=(describe_file(folder / "weights"),))
    finish_cut(folder, manifest)
    assert read_manifest(folder) == verify_cut(folder) == manifest
    assert read_manifest(folder).state == state


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest cut of a trained table, on two shards."""
    store = Store(2, [TableSpec("memory", 2, 1, optimizer=OptimizerSpec("rowwise_adagrad"))], train=1)
    return store.write(tmp_path_factory.mktemp("cuts"))


def flips(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The content with one bit flipped in each byte in turn."""
    for place in range(len(content)):
        yield place, content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


def test_one_flipped_bit_in_any_byte_is_found_and_its_file_is_named(small_cut: Path, tmp_path: Path):
    folder = shutil.copytree(small_cut, tmp_path / small_cut.name)
    assert len(list(folder.iterdir())) == 3
    for path in folder.iterdir():
        content = path.read_bytes()
        for place, damaged in flips(content):
            path.write_bytes(damaged)
            print(f"byte {place} of {path.name}")  # shown if it goes unnoticed
            with pytest.raises(CutError, match=re.escape(str(path))):
                verify_cut(folder)
        path.write_bytes(content)
    verify_cut(folder)


def test_a_damaged_cut_is_not_loaded_and_nothing_of_it_stays(small_cut: Path, tmp_path: Path):
    folder = shutil.copytree(small_cut, tmp_path / small_cut.name)
    store = Store(1, [TableSpec("memory", 2, 1, optimizer=OptimizerSpec("rowwise_adagrad"))], train=5)
    before = store.content()
    damaged = next(path for path in folder.iterdir() if "shard-0000" in path.name)
    content = bytearray(damaged.read_bytes())
    for place in range(0, len(content), 97):
        content[place] ^= 1
        damaged.write_bytes(content)
        content[place] ^= 1
        with pytest.raises(CutError, match=re.escape(str(damaged))):
            store.load(folder)
        assert store.content() == before
        assert {info.version for info in store.client.describe()} == {5}


def test_damage_in_the_last_table_leaves_the_first_ones_alone(tmp_path: Path):
    folder = Store(2, train=2).write(tmp_path)
    store = Store(1, train=1)
    before = store.content()
    damaged = next(folder.glob("plain-shard-0000*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CutError, match="plain-shard-0000"):
        store.load(folder)
    assert store.content() == before


def test_damage_that_concerns_one_of_many_shards_is_told_and_another_cut_mends_it(tmp_path: Path):
    writer, store = Store(2, train=1), Store(4, train=1)
    good, content = writer.write(tmp_path), writer.content()
    writer.train(1)
    bad = writer.write(tmp_path)
    damaged = next(bad.glob("memory-shard-0001*"))
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    with pytest.raises(CutError, match="memory-shard-0001"):
        store.load(bad)
    store.load(good)
    assert store.content() == content


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_file_is_refused(small_cut: Path, tmp_path: Path, share: float):
    for name in [path.name for path in small_cut.iterdir()]:
        folder = shutil.copytree(small_cut, tmp_path / f"{name}-{share}" / small_cut.name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(CutError, match=re.escape(str(folder / name))):
            verify_cut(folder)


def test_a_missing_file_is_named(small_cut: Path, tmp_path: Path):
    for name in [path.name for path in small_cut.iterdir() if path.name != MANIFEST]:
        folder = shutil.copytree(small_cut, tmp_path / name / small_cut.name)
        (folder / name).unlink()
        with pytest.raises(CutError, match=f"{name} is missing"):
            verify_cut(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"body"',
        b'{"body":{}}',
        b'{"body":{},"sha256":""}\n',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CutError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_the_manifest_can_not_point_outside_its_folder(tmp_path: Path):
    (tmp_path / "outside").write_bytes(b"abc")
    entry = describe_file(tmp_path / "outside").model_copy(update={"name": "../outside"})
    folder = begin_cut(tmp_path / "cuts", 1)
    (tmp_path / "cuts" / "outside").write_bytes(b"abc")
    finish_cut(folder, Manifest(step=1, files=(entry,)))
    with pytest.raises(CutError, match=r"manifest\.json is damaged"):
        verify_cut(folder)


def test_an_unknown_key_in_the_manifest_is_refused(tmp_path: Path):
    class Newer(Manifest):
        shape: str = "round"

    folder = begin_cut(tmp_path, 1)
    finish_cut(folder, Newer(step=1, files=()))
    with pytest.raises(CutError, match="damaged"):
        read_manifest(folder)


# ---- which cuts exist --------------------------------------------------------------------------------------


def made(cuts: Path, *steps: int) -> list[Path]:
    for step in steps:
        finish_cut(begin_cut(cuts, step), Manifest(step=step, files=()))
    return [cut_folder(cuts, step) for step in steps]


def test_a_cut_without_its_manifest_does_not_exist(tmp_path: Path):
    made(tmp_path, 4)
    folder = begin_cut(tmp_path, 8)
    (folder / "half-written").write_bytes(b"abc")
    (tmp_path / "step-0000000x").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert complete_cuts(tmp_path) == [cut_folder(tmp_path, 4)]
    with pytest.raises(CutError, match=f"{folder} is not a complete cut"):
        read_manifest(folder)
    # The next attempt starts from nothing.
    assert list(begin_cut(tmp_path, 8).iterdir()) == []
    assert complete_cuts(tmp_path / "nowhere") == []


def test_a_complete_cut_is_not_written_over(tmp_path: Path):
    store = Store(train=1)
    folder = store.write(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CutError, match="nothing was written over"):
        begin_cut(tmp_path, 1)
    with pytest.raises(CutError, match="nothing was written over"):
        store.client.begin_cut(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_cut_of_another_step_than_the_tables_have_is_refused(tmp_path: Path):
    store = Store(train=1)
    with pytest.raises(StoreError, match="A cut of step 2 was asked for; the tables are at 1"):
        store.client.ask(m.BeginCut(store.client.sender, str(tmp_path), 2, 1), m.Done)


def test_cuts_are_listed_and_pruned_by_age(tmp_path: Path):
    folders = made(tmp_path, 900, 50, 100_000_000, 1000)
    oldest_first = [folders[1], folders[0], folders[3], folders[2]]
    assert complete_cuts(tmp_path) == oldest_first
    unfinished = begin_cut(tmp_path, 2)
    prune_cuts(tmp_path, 5)
    assert complete_cuts(tmp_path) == oldest_first
    prune_cuts(tmp_path, 2)
    assert complete_cuts(tmp_path) == oldest_first[2:]
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {*oldest_first[2:], unfinished}


def test_a_cut_half_removed_no_longer_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(tmp_path, 1, 2)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memory_store.cuts.shutil.rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        prune_cuts(tmp_path, 1)
    assert complete_cuts(tmp_path) == [cut_folder(tmp_path, 2)]
