"""docker-compose.yml is the same to Compose v2 as to docker-compose 1.29."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.deployment import ROOT, run

pytestmark = [
    pytest.mark.compose,
    pytest.mark.skipif(
        "PKM_COMPOSE_V2" not in os.environ, reason="Compose v2 can't be had (tests/deploy/with-engine)"
    ),
]


def read_by_v2(file: Path, secrets: Path) -> dict[str, Any]:
    """What Compose v2 makes of a file, every short form written out, without the parts that are only there to be reused."""
    told = run(
        *(os.environ["PKM_COMPOSE_V2"], "--project-name", "one", "--project-directory", ROOT, "--file", file),
        *("--profile", "gpu", "config", "--format", "json"),
        PKM_SECRETS=str(secrets),
    )
    found: dict[str, Any] = json.loads(told[told.index("{") :])  # it may have warned before
    return {name: part for name, part in found.items() if not name.startswith("x-")}


def test_both_read_the_same_in_it(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    run(ROOT / "deploy" / "secrets", secrets)
    read_by_v1 = tmp_path / "read-by-v1.yml"
    read_by_v1.write_text(
        run("docker-compose", "--profile", "gpu", "config", PKM_SECRETS=str(secrets)), encoding="utf-8"
    )
    found = read_by_v2(ROOT / "docker-compose.yml", secrets)
    assert found == read_by_v2(read_by_v1, secrets)
    assert set(found["services"]) == {
        *("ray-head", "shard-host", "trainer-host", "gpu-trainer-host", "service", "prometheus", "grafana"),
    }
