"""deploy/kubernetes against the published schemas of Kubernetes, and what its pods promise.

KubeRay's own schema is in no package registry: a RayCluster's pod templates are held to Kubernetes' schema, and its other
fields to those that KubeRay 1.5 names.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from workers.host_kinds import HOSTS_LABEL
from workers.ray_cluster import ray_environment

FOLDER = Path(__file__).resolve().parent.parent.parent / "deploy" / "kubernetes"
GROUP_FIELDS = {"groupName", "labels", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CLUSTER_FIELDS = {"rayVersion", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"}


def resources(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` of an overlay would create, by our own reading of its kustomization."""
    folder = FOLDER / overlay
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        if (folder / name).is_dir():
            found += resources(str((folder / name).resolve().relative_to(FOLDER)))
        else:
            found += yaml.safe_load_all((folder / name).read_text())
    found = copy.deepcopy(found)  # anchors make parts of a file the same object
    for resource in found:
        if resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = kustomization["namespace"]
    for patch in kustomization.get("patches", []):
        (target,) = (item for item in found if item["kind"] == patch["target"]["kind"])
        for change in yaml.safe_load((folder / patch["path"]).read_text()):
            _apply(target, change)
    return found


def _apply(target: Any, change: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902)."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:])
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if change["op"] == "test":
        assert target[last] == change["value"]
    else:
        assert change["op"] == "add" or last in target
        target[last] = change["value"]


def pod_templates(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in found:
        spec = resource.get("spec", {})
        if resource["kind"] == "RayCluster":
            yield "head", spec["headGroupSpec"]["template"]
            for group in spec["workerGroupSpecs"]:
                yield group["groupName"], group["template"]
        elif "template" in spec:
            yield resource["metadata"]["name"], spec["template"]


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_everything_fits_the_published_schemas(overlay: str) -> None:
    found = resources(overlay)
    for resource in found:
        if resource["kind"] != "RayCluster":
            kubernetes_validate.validate(resource, "1.34", strict=True)
    for _, template in pod_templates(found):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"} | template["metadata"]}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, "1.34", strict=True)


def test_a_field_that_there_is_not_is_found() -> None:
    (service,) = (item for item in resources("base") if item["kind"] == "Deployment")
    service["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, "1.34", strict=True)


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_the_ray_cluster_has_fields_that_kuberay_knows_and_a_state_that_outlives_its_head(
    overlay: str,
) -> None:
    (cluster,) = (item["spec"] for item in resources(overlay) if item["kind"] == "RayCluster")
    assert set(cluster) <= CLUSTER_FIELDS
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    kept_for = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= GROUP_FIELDS
        assert "labels" not in group["rayStartParams"]  # KubeRay refuses it there
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        kept_for.append(group.get("labels", {}).get(HOSTS_LABEL))
    assert kept_for == [None, "shards", "trainers"]


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_pods_have_no_rights_and_the_secrets_that_are_theirs_alone(overlay: str) -> None:
    for name, template in pod_templates(resources(overlay)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert "readinessProbe" in container
        (secret,) = (volume["secret"] for volume in pod["volumes"] if "secret" in volume)
        keys = {item["key"] for item in secret["items"]}
        of_ray = name in ("head", "shard-host", "trainer-host")
        assert keys == {"ray-token"} if of_ray else "ray-token" not in keys or name == "service"


def test_hosts_are_started_with_what_a_ray_that_hosts_shards_needs() -> None:
    for name, template in pod_templates(resources("base")):
        if name in ("head", "shard-host", "trainer-host"):
            given = {entry["name"]: entry["value"] for entry in template["spec"]["containers"][0]["env"]}
            assert ray_environment().items() <= given.items()
            assert given["RAY_AUTH_MODE"] == "token"


def test_trainers_have_gpus_and_shards_none() -> None:
    limits = {
        name: template["spec"]["containers"][0]["resources"]["limits"]
        for name, template in pod_templates(resources("gpu"))
    }
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["trainer-host"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl: only our own reading was looked at")
@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kubectl_reads_it_as_we_do(overlay: str) -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", FOLDER / overlay], capture_output=True, text=True, timeout=60, check=True
    )

    def key(item: dict[str, Any]) -> tuple[str, str]:
        return item["kind"], item["metadata"]["name"]

    assert sorted(yaml.safe_load_all(rendered.stdout), key=key) == sorted(resources(overlay), key=key)
