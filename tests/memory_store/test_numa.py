"""NUMA nodes as Linux tells of them, in a made-up /sys, and the cores that each shard of a host keeps to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from memory_store.numa import (
    Neighbours,
    cores_of_nodes,
    keep_beside_device,
    keep_to_one_node,
    neighbours,
)

ALL = frozenset(range(64))
TWO = {"node0": "0-3,8-11\n", "node1": "4-7,12-15\n"}


def made_up(folder: Path, nodes: Mapping[str, str]) -> Path:
    for name, cores in nodes.items():
        (folder / name).mkdir()
        (folder / name / "cpulist").write_text(cores)
    (folder / "possible").write_text("0-1\n")
    return folder


@pytest.mark.parametrize(
    ("nodes", "allowed", "found"),
    [
        ({"node0": "0-63\n"}, ALL, [set(range(64))]),
        (TWO, ALL, [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]),
        (TWO, frozenset({2, 3, 4}), [{2, 3}, {4}]),
        (TWO, frozenset({0, 1}), [{0, 1}]),
        ({"node0": "0\n", "node2": "5\n", "node10": "7\n"}, ALL, [{0}, {5}, {7}]),
        ({"node0": "0-1\n", "node1": "\n"}, ALL, [{0, 1}]),  # memory alone
        ({}, ALL, []),
    ],
)
def test_cores_are_found_by_node(
    nodes: dict[str, str], allowed: frozenset[int], found: list[set[int]], tmp_path: Path
) -> None:
    assert cores_of_nodes(allowed, made_up(tmp_path, nodes)) == found


def test_this_machine_has_each_core_on_one_node() -> None:
    mine = frozenset(os.sched_getaffinity(0))
    found = cores_of_nodes(mine)
    assert sum(len(cores) for cores in found) in (0, len(mine))
    assert not found or frozenset.union(*found) == mine


@pytest.mark.parametrize(
    ("shards", "nodes", "expected"),
    [
        (1, TWO, {0: None}),
        (2, TWO, {0: 0, 1: 4}),
        (5, TWO, {0: 0, 1: 4, 2: 0, 3: 4, 4: 0}),
        (4, {"node0": "0-63\n"}, {0: None, 3: None}),
        (4, {}, {0: None}),
    ],
)
def test_shards_take_the_nodes_in_turn(
    shards: int,
    nodes: dict[str, str],
    expected: dict[int, int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(tmp_path, nodes)
    for place, first_core in expected.items():
        kept: list[frozenset[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(ALL))
        monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores, kept=kept: kept.append(cores))
        keep_to_one_node(Neighbours(place, shards), tmp_path)
        assert [min(cores) for cores in kept] == ([] if first_core is None else [first_core])


def test_a_host_that_does_not_tell_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node0").mkdir()  # without its list
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pytest.fail("moved"))
    keep_to_one_node(Neighbours(0, 4), tmp_path)


@pytest.mark.parametrize(
    ("node", "nodes", "allowed", "kept"),
    [
        ("1\n", TWO, ALL, {4, 5, 6, 7, 12, 13, 14, 15}),
        ("0\n", TWO, frozenset({2, 3, 4}), {2, 3}),
        ("1\n", TWO, frozenset({0, 1}), None),  # it may use none of them
        ("1\n", TWO, frozenset({4, 5}), None),  # it has no others
        ("0\n", {"node0": "0-63\n"}, ALL, None),
        ("-1\n", TWO, ALL, None),
        ("2\n", TWO, ALL, None),
        ("\n", TWO, ALL, None),
        (None, TWO, ALL, None),
        ("0\n", {"node0": "\n", "node1": "0-63\n"}, ALL, None),  # memory alone
    ],
)
def test_a_process_keeps_to_the_cores_beside_a_device(
    node: str | None,
    nodes: dict[str, str],
    allowed: frozenset[int],
    kept: set[int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tmp_path / "devices" / "0001:c1:00.0"
    device.mkdir(parents=True)
    if node is not None:
        (device / "numa_node").write_text(node)
    (tmp_path / "nodes").mkdir()
    made_up(tmp_path / "nodes", nodes)
    found: list[frozenset[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed))
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: found.append(cores))
    keep_beside_device(device.name, device.parent, tmp_path / "nodes")
    assert found == ([] if kept is None else [kept])


def test_a_device_that_is_not_there_moves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pytest.fail("moved"))
    keep_beside_device("ffff:ff:1f.0")


def test_neighbours_are_numbered_on_each_host() -> None:
    assert neighbours(["a", "b", "a", "c", "a", "b"]) == [
        Neighbours(0, 3),
        Neighbours(0, 2),
        Neighbours(1, 3),
        Neighbours(0, 1),
        Neighbours(2, 3),
        Neighbours(1, 2),
    ]
