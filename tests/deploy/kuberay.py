"""A RayCluster as KubeRay 1.5 takes it: the fields that its custom resource has, and what its operator refuses beyond them.

KubeRay's schema is made from the types in ray-operator/apis/ray/v1/raycluster_types.go; FIELDS says the same of those that
1.5 has, as JSON Schema, and leaves Kubernetes' own types to the schemas that Kubernetes publishes. What the operator refuses
is in ray-operator/controllers/ray/utils/validation.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

_DEFINITIONS = "kubernetes-json-schema/v1.34.0-local-strict/_definitions.json"
_TEXT, _TEXTS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
_NUMBER = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
_SWITCH = {"type": "boolean"}
# As Kubernetes wants labels to be, of Ray's nodes too.
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABELS = {
    "type": "object",
    "propertyNames": {"pattern": rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_NAME}$"},
    "additionalProperties": {"type": "string", "pattern": rf"^({_NAME})?$"},
}


def _of_kubernetes(name: str) -> dict[str, str]:
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.{name}"}


def _fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_GROUP = {
    "rayStartParams": _TEXTS,
    "template": _of_kubernetes("api.core.v1.PodTemplateSpec"),
    "resources": _TEXTS,
    "labels": _LABELS,
}
_CREDENTIAL = _fields([], value=_TEXT, valueFrom=_of_kubernetes("api.core.v1.EnvVarSource"))
FIELDS = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_of_kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
    spec=_fields(
        ["headGroupSpec"],
        rayVersion=_TEXT,
        suspend=_SWITCH,
        managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
        enableInTreeAutoscaling=_SWITCH,
        headServiceAnnotations=_TEXTS,
        gcsFaultToleranceOptions=_fields(
            ["redisAddress"],
            redisAddress=_TEXT,
            redisUsername=_CREDENTIAL,
            redisPassword=_CREDENTIAL,
            externalStorageNamespace=_TEXT,
        ),
        headGroupSpec=_fields(
            ["rayStartParams", "template"],
            headService=_of_kubernetes("api.core.v1.Service"),
            serviceType=_TEXT,
            enableIngress=_SWITCH,
            **_GROUP,
        ),
        workerGroupSpecs={
            "type": "array",
            "items": _fields(
                ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                groupName=_TEXT,
                suspend=_SWITCH,
                replicas=_NUMBER,
                minReplicas=_NUMBER,
                maxReplicas=_NUMBER,
                idleTimeoutSeconds=_NUMBER,
                numOfHosts=_NUMBER,
                scaleStrategy=_fields([], workersToDelete={"type": "array", "items": _TEXT}),
                **_GROUP,
            ),
        },
    ),
)


def check_ray_cluster(resource: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for what KubeRay 1.5 has not, AssertionError for what its operator refuses."""
    definitions = Resource.from_contents(schema_contents(_DEFINITIONS, "1.34"))
    validator = jsonschema.Draft202012Validator(FIELDS, registry=definitions @ Registry())
    validator.validate(resource)
    assert list(_refused(resource)) == []


def _refused(resource: dict[str, Any]) -> Iterator[str]:
    spec, annotations = resource["spec"], resource["metadata"].get("annotations", {})
    head = spec["headGroupSpec"]
    for group in (head, *spec.get("workerGroupSpecs", [])):
        given, name = group["rayStartParams"], group.get("groupName", "head")
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: no container"
        if "labels" in given:
            yield f"{name}: labels among rayStartParams"
        if group.get("resources") and given.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{name}: resources twice"
    in_head = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
    if "redis-username" in head["rayStartParams"] or "REDIS_USERNAME" in in_head:
        yield "a user of Redis beside gcsFaultToleranceOptions"
    if "gcsFaultToleranceOptions" not in spec:
        if "RAY_REDIS_ADDRESS" in in_head:
            yield "a Redis without gcsFaultToleranceOptions"
        return
    if "redis-password" in head["rayStartParams"] or in_head & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "a Redis beside gcsFaultToleranceOptions"
    if annotations.keys() & {"ray.io/ft-enabled", "ray.io/external-storage-namespace"}:
        yield "annotations of fault tolerance beside gcsFaultToleranceOptions"
