"""Reading in place: the same bits as one process, only at the right version and epoch, and only where it is safe."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import messages as m
from memory_store.arena import CLOCK_VERSION, NO_VERSION
from memory_store.bucket_files import read_buckets, spec_as_json
from memory_store.carriers.grpc_server import ShardServer
from memory_store.client import StoreClient
from memory_store.cuts import CutFile, Manifest, begin_cut, finish_cut
from memory_store.errors import FencedError, StoreError
from memory_store.initialization import fill_normal
from memory_store.mapped_shards import map_shards
from memory_store.opening import connect, in_process_store
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import TableSpec

SPEC = TableSpec("memory", rows=128 * 128, dim=64, seed=5)


@pytest.fixture(params=[1, 2, 3])
def addresses(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    placement = Placement.even(request.param)
    servers = [
        ShardServer(
            ShardHost(ShardCore([SPEC], placement, shard, incarnation=f"life-{shard}", shared=True)),
            "127.0.0.1:0",
            "token",
        )
        for shard in range(request.param)
    ]
    yield [f"127.0.0.1:{server.port}" for server in servers]
    for server in servers:
        server.stop()


def train(store: StoreClient, steps: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    seen = []
    table = store.table("memory")
    for _ in range(steps):
        rows = random.integers(0, SPEC.rows, (50, 16))
        weights = random.random((50, 16), dtype=np.float32)
        found = table.lookup(rows, weights, keep=True)
        seen += [found.output, found.backward(np.sin(found.output))]
        store.step({"memory": 0.01})
    store.synchronise()
    return seen


def test_same_bits_as_one_process_on_any_number_of_shards(addresses: list[str]) -> None:
    store = connect(addresses, token="token")
    store.take_over()
    assert store.reads_in_place
    alone = in_process_store([SPEC], lookup="pool")
    for ours, theirs in zip(train(store), train(alone), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_a_reader_waits_for_the_other_writers(addresses: list[str]) -> None:
    first = connect(addresses, token="token", timeout_s=20)
    first.take_over(writers=2)
    second = connect(addresses, token="token", timeout_s=20)
    second.join(type(first.sender)(first.sender.session, first.sender.epoch, 1), writers=2)
    rows, weights = np.arange(32).reshape(2, 16), np.ones((2, 16), dtype=np.float32)
    before = first.table("memory").lookup(rows, weights, keep=True)
    before.backward(np.ones_like(before.output))
    first.step({"memory": 0.5})
    after: list[np.ndarray] = []
    waiting = threading.Thread(
        target=lambda: after.append(first.table("memory").lookup(rows, weights, keep=False).output)
    )
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()  # the second writer has not committed
    second.step({"memory": 0.5})
    waiting.join(20)
    assert (after[0] != before.output).all()


def test_a_replaced_writer_is_told(addresses: list[str]) -> None:
    old = connect(addresses, token="token")
    old.take_over()
    new = connect(addresses, token="token")
    new.take_over()
    with pytest.raises(FencedError, match="taken over"):
        old.table("memory").lookup(np.zeros((1, 1), np.int64), np.ones((1, 1), np.float32), keep=False)


def test_a_version_that_is_gone_or_never_comes_is_an_error(addresses: list[str]) -> None:
    store = connect(addresses, token="token", timeout_s=0.2)
    store.take_over()
    train(store, steps=2)
    rows, weights = np.zeros((1, 1), np.int64), np.ones((1, 1), np.float32)
    for version in (1, 3):
        store.version = version
        with pytest.raises(StoreError, match=f"{version} was wanted"):
            store.table("memory").lookup(rows, weights, keep=False)


def test_messages_are_used_where_reading_in_place_is_not_safe_or_possible(addresses: list[str]) -> None:
    assert not connect(addresses, token="token").reads_in_place  # no member of the group
    store = connect(addresses, token="token", in_place=False)
    store.take_over()
    assert not store.reads_in_place
    infos = store.describe()
    placement = Placement.even(len(addresses))
    assert map_shards(infos, [SPEC], placement) is not None
    stranger = [type(info)(**{**vars(info), "incarnation": "another-life"}) for info in infos]
    assert map_shards(stranger, [SPEC], placement) is None
    elsewhere = [
        type(info)(**{**vars(info), "arena": '{"path": "/proc/1/fd/999", "offsets": {}}'}) for info in infos
    ]
    assert map_shards(elsewhere, [SPEC], placement) is None


@pytest.mark.parametrize("what", ["empty file", "pipe", "folder", "nothing", "short file"])
def test_a_path_that_leads_to_something_else_is_not_mapped(what: str, tmp_path: Path) -> None:
    path = tmp_path / "arena"
    match what:
        case "empty file" | "short file":
            path.write_bytes(b"x" * (100 if what == "short file" else 0))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    core = ShardCore([SPEC], Placement.even(1), 0, incarnation="life", shared=True)
    (answer,) = core.handle(1, m.Describe())
    assert isinstance(answer.reply, m.ShardInfo)
    arena = json.loads(answer.reply.arena)
    assert map_shards([answer.reply], [SPEC], Placement.even(1)) is not None
    elsewhere = replace(answer.reply, arena=json.dumps({**arena, "path": str(path)}))
    assert map_shards([elsewhere], [SPEC], Placement.even(1)) is None


@pytest.mark.parametrize("replacing", ["cut", "first values"])
def test_no_version_is_shown_while_the_tables_are_being_replaced(
    replacing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = ShardCore([SPEC], Placement.even(1), 0, incarnation="life", shared=True)
    host, sender = ShardHost(core), m.Sender("session", 1, 0)
    host.call(m.OpenGroup("session", 1, 1), 0)
    folder = begin_cut(tmp_path, 0)
    written = host.call(m.WriteCut(sender, str(folder), 0, 1), 60)
    assert isinstance(written, m.CutWritten)
    files = [CutFile.model_validate(entry) for entry in json.loads(written.files)]
    finish_cut(folder, Manifest(step=0, tables=(spec_as_json(SPEC),), files=tuple(files)))
    host.call(
        m.LoadCut(sender, 1, str(folder)), 0
    )  # or there is nothing to replace: the first values are there
    shown = []
    place = "shard_host.read_buckets" if replacing == "cut" else "table.fill_normal"
    whole = read_buckets if replacing == "cut" else fill_normal

    def watched(*given: Any) -> None:
        shown.append(int(core.arena.clock[CLOCK_VERSION]))
        whole(*given)

    monkeypatch.setattr(f"memory_store.{place}", watched)
    host.call(m.LoadCut(sender, 2, str(folder)) if replacing == "cut" else m.Initialise(sender, 2), 0)
    assert shown == [NO_VERSION]
    assert core.arena.clock[CLOCK_VERSION] == 0
