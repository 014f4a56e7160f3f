"""What docker-compose.yml promises of every container, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.host_kinds import HOSTS_LABEL
from workers.ray_cluster import ray_environment

FILE = Path(__file__).resolve().parent.parent.parent / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_and_writes_nowhere_else(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].partition(":")[0] == "10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert "cap_add" not in service
    assert not service.get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_tells_whether_it_is_well_and_waits_for_those_that_it_needs(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    for needed in SERVICES[name].get("depends_on", {}).values():
        assert needed == {"condition": "service_healthy"}


def test_only_the_service_is_reached_from_other_machines() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", ())}
    open_to_all = {name for name, port in published.items() if not port.startswith("127.0.0.1:")}
    assert open_to_all == {"service"}
    assert COMPOSE["networks"]["cluster"] == {"internal": True}
    assert all(
        service["networks"] == ["cluster"]
        for service in SERVICES.values()
        if "ray" in service.get("entrypoint", ())
    )


def test_secrets_are_files() -> None:
    for secret in COMPOSE["secrets"].values():
        assert set(secret) == {"file"}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            secret = "TOKEN" in name or "PASSWORD" in name
            assert not secret or value.startswith("/run/secrets/")


def test_what_is_written_lies_in_named_volumes_and_ray_has_room_for_its_objects() -> None:
    for service in SERVICES.values():
        for source, _, *rights in (volume.rsplit(":", 2) for volume in service["volumes"]):
            assert source in COMPOSE["volumes"] or rights == ["ro"]
        if "ray" in service.get("entrypoint", ()):
            (objects,) = (part for part in service["entrypoint"] if part.startswith("--object-store-memory="))
            assert service["shm_size"] == "256mb"
            assert int(objects.partition("=")[2]) < 256 << 20


def test_ray_is_started_as_one_that_hosts_shards_is() -> None:
    on_ray = {name: service for name, service in SERVICES.items() if "ray" in service.get("entrypoint", ())}
    kinds = {name: service.get("command", ["", ""])[1] for name, service in on_ray.items()}
    assert kinds == {
        "ray-head": "",
        "shard-host": f"{HOSTS_LABEL}=shards",
        "trainer-host": f"{HOSTS_LABEL}=trainers",
        "gpu-trainer-host": f"{HOSTS_LABEL}=trainers",
    }
    for service in on_ray.values():
        assert ray_environment().items() <= service["environment"].items()
        assert service["environment"]["RAY_AUTH_MODE"] == "token"


def test_the_image_for_gpus_has_a_compiler_for_what_launches_their_kernels() -> None:
    image = (FILE.parent / "deploy" / "Dockerfile").read_text()
    assert "$(test ${DEVICE} != cuda || echo gcc libc6-dev)" in image.split("\nFROM ")[-1]
