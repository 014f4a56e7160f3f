"""deploy/kubernetes against the schemas that Kubernetes and KubeRay publish, and what its pods promise."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from tests.deploy.kuberay import check_ray_cluster
from workers.host_kinds import HOSTS_LABEL
from workers.ray_cluster import ray_environment

FOLDER = Path(__file__).resolve().parent.parent.parent / "deploy" / "kubernetes"


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
    for resource in resources(overlay):
        if resource["kind"] == "RayCluster":
            check_ray_cluster(resource)
        else:
            kubernetes_validate.validate(resource, "1.34", strict=True)


def test_a_field_that_there_is_not_is_found() -> None:
    (service,) = (item for item in resources("base") if item["kind"] == "Deployment")
    service["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, "1.34", strict=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(gcsFaultTolerance={}),
        lambda spec: spec.update(rayVersion=2.6),
        lambda spec: spec.update(managedBy="us"),
        lambda spec: spec.update(upgradeStrategy={"type": "Recreate"}),  # of 1.6
        lambda spec: spec.update(authOptions={"mode": "tokens"}),
        lambda spec: spec.update(authOptions={"mode": "token", "secretName": "pkm"}),  # of 1.6
        lambda spec: spec.update(autoscalerOptions={"upscalingMode": "conservative"}),
        lambda spec: spec.update(autoscalerOptions={"version": 2}),
        lambda spec: spec.update(autoscalerOptions={"volumeMounts": [{"name": "tmp"}]}),
        lambda spec: spec.pop("headGroupSpec"),
        lambda spec: spec["gcsFaultToleranceOptions"].pop("redisAddress"),
        lambda spec: spec["gcsFaultToleranceOptions"].update(redisPassword="secret"),
        lambda spec: spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"].update(secretRef={}),
        lambda spec: spec["headGroupSpec"].update(replicas=1),
        lambda spec: spec["headGroupSpec"].pop("template"),
        lambda spec: spec["headGroupSpec"].update(headService={"spec": {"ports": [{"name": "dashboard"}]}}),
        lambda spec: spec["headGroupSpec"]["template"]["metadata"].update(generateName="head-"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas=2**31),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="1"),
        lambda spec: spec["workerGroupSpecs"][0].update(labels={"pkm.hosts": 1}),
        lambda spec: spec["workerGroupSpecs"][0].update(scaleStrategy={"workersToDelete": "pkm-1"}),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"].update(container=[]),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0].update(readOnly=True),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"].update(
            limits={"memory": "32GiB"}
        ),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_AUTH_MODE", "value": "token"}
        ),
    ],
)
def test_what_the_schema_of_kuberay_has_not_is_found(spoil: Callable[[dict[str, Any]], object]) -> None:
    (cluster,) = (item for item in resources("base") if item["kind"] == "RayCluster")
    spoil(cluster["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check_ray_cluster(cluster)


def test_what_the_schema_of_kuberay_has_and_we_do_not_use_is_taken() -> None:
    (cluster,) = (item for item in resources("base") if item["kind"] == "RayCluster")
    cluster["spec"].update(
        managedBy="ray.io/kuberay-operator",
        authOptions={"mode": "token"},
        autoscalerOptions={
            "version": "v2",
            "upscalingMode": "Conservative",
            "idleTimeoutSeconds": 60,
            "resources": {"limits": {"cpu": 1, "memory": "1.5e9"}},
            "env": [{"name": "RAY_LOG_LEVEL", "value": "debug"}],
        },
    )
    cluster["spec"]["headGroupSpec"].update(
        serviceType="ClusterIP",
        headService={"metadata": {"name": "pkm"}, "spec": {"ports": [{"port": 8265}]}},
    )
    del cluster["spec"]["headGroupSpec"]["rayStartParams"]
    cluster["spec"]["workerGroupSpecs"][0].update(numOfHosts=2, scaleStrategy={"workersToDelete": ["pkm-1"]})
    check_ray_cluster(cluster)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec["headGroupSpec"]["template"].pop("spec"),
        lambda spec: spec["workerGroupSpecs"][0].update(labels={"pkm.hosts": "shards and more"}),
        lambda spec: spec["workerGroupSpecs"][0]["rayStartParams"].update(labels="pkm.hosts=shards"),
        lambda spec: spec["headGroupSpec"].update(resources={"CPU": "0"}),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"redis-password": "secret"}),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"redis-username": "ann"}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}
        ),
    ],
)
def test_what_the_operator_of_kuberay_refuses_is_found(spoil: Callable[[dict[str, Any]], object]) -> None:
    (cluster,) = (item for item in resources("base") if item["kind"] == "RayCluster")
    spoil(cluster["spec"])
    with pytest.raises(AssertionError):
        check_ray_cluster(cluster)


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_the_ray_cluster_has_a_state_that_outlives_its_head_and_hosts_of_both_kinds(overlay: str) -> None:
    (cluster,) = (item["spec"] for item in resources(overlay) if item["kind"] == "RayCluster")
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    kept_for = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
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
