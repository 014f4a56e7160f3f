"""deploy/ray-cluster.yaml against the schema that Ray ships, as `ray up` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from workers.host_kinds import HOSTS_LABEL
from workers.ray_cluster import ray_environment

FILE = Path(__file__).resolve().parent.parent.parent / "deploy" / "ray-cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def test_ray_takes_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_a_key_that_ray_does_not_know_is_found(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["shard-host"]["label"] = {}
    with pytest.raises(Exception, match="label"):
        validate_config(prepare_config(cluster))


def test_hosts_are_kept_for_shards_and_for_trainers_and_the_head_for_neither(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert {name: kind.get("labels", {}).get(HOSTS_LABEL) for name, kind in types.items()} == {
        "head": None,
        "shard-host": "shards",
        "trainer-host": "trainers",
    }
    assert types["head"]["resources"] == {"CPU": 0}


def test_hosts_are_started_with_what_a_ray_that_hosts_shards_needs(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert {f"--env={name}={value}" for name, value in ray_environment().items()} <= set(options)
    assert "--env=RAY_AUTH_MODE=token" in options
