"""A shard, a trainer and the driver of a real job are killed: it ends by itself, with the bytes of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import chaos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("durability", ["log", "snapshot"])
def test_killed_processes_change_nothing(durability: str, tmp_path: Path) -> None:
    found = chaos(tmp_path, 3, 1, ["shard", "trainer", "driver"], durability, 400)
    print(found.summary())
    assert found.kills_by_kind == {"shard": 1, "trainer": 1, "driver": 1}
    assert found.bytes_equal, found.summary()
