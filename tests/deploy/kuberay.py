"""A RayCluster as KubeRay 1.5 takes it: the schema that KubeRay publishes for it, and what its operator refuses beyond it.

FIELDS says the same, field by field, as version v1 of the CustomResourceDefinition rayclusters.ray.io of KubeRay 1.5.2, which
is ray-operator/config/crd/bases/ray.io_rayclusters.yaml in KubeRay's repository. What 1.6 has beyond it is refused, for the
manifest is for 1.5 too. Pods and services are in that definition as a copy of the types of Kubernetes 1.34, and are left to
the schemas that Kubernetes publishes for these. Only a quantity is told more closely here, as the definition tells it.
What the operator refuses is in ray-operator/controllers/ray/utils/validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

_DEFINITIONS = "kubernetes-json-schema/v1.34.0-local-strict/_definitions.json"
_TEXT, _TEXTS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
_NUMBER = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}  # the format int32
_SWITCH = {"type": "boolean"}
_DECIMAL = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
# Kubernetes' own schemas take any text and any number for a quantity.
_QUANTITY = {
    "type": ["integer", "string"],
    "pattern": rf"^[+-]?{_DECIMAL}([KMGTPE]i|[numkMGTPE]|[eE][+-]?{_DECIMAL})?$",
}


def _of_kubernetes(name: str) -> dict[str, str]:
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.{name}"}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _fields(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object that has these fields and no others: the API server, too, refuses one that it does not know."""
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


# Of what Kubernetes takes as metadata, the definition names these alone inside the spec.
_METADATA = _fields(
    [],
    annotations=_TEXTS,
    finalizers=_list_of(_TEXT),
    labels=_TEXTS,
    name=_TEXT,
    namespace=_TEXT,
)
_GROUP = {
    "labels": _TEXTS,
    "rayStartParams": _TEXTS,
    "resources": _TEXTS,
    "template": _fields([], metadata=_METADATA, spec=_of_kubernetes("api.core.v1.PodSpec")),
}
_CREDENTIAL = _fields([], value=_TEXT, valueFrom=_of_kubernetes("api.core.v1.EnvVarSource"))
_SPEC = _fields(
    ["headGroupSpec"],
    authOptions=_fields([], mode={"enum": ["disabled", "token"]}),
    autoscalerOptions=_fields(
        [],
        env=_list_of(_of_kubernetes("api.core.v1.EnvVar")),
        envFrom=_list_of(_of_kubernetes("api.core.v1.EnvFromSource")),
        idleTimeoutSeconds=_NUMBER,
        image=_TEXT,
        imagePullPolicy=_TEXT,
        resources=_of_kubernetes("api.core.v1.ResourceRequirements"),
        securityContext=_of_kubernetes("api.core.v1.SecurityContext"),
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        volumeMounts=_list_of(_of_kubernetes("api.core.v1.VolumeMount")),
    ),
    enableInTreeAutoscaling=_SWITCH,
    gcsFaultToleranceOptions=_fields(
        ["redisAddress"],
        externalStorageNamespace=_TEXT,
        redisAddress=_TEXT,
        redisPassword=_CREDENTIAL,
        redisUsername=_CREDENTIAL,
    ),
    headGroupSpec=_fields(
        ["template"],
        enableIngress=_SWITCH,
        headService=_fields(
            [],
            apiVersion=_TEXT,
            kind=_TEXT,
            metadata=_METADATA,
            spec=_of_kubernetes("api.core.v1.ServiceSpec"),
            status=_of_kubernetes("api.core.v1.ServiceStatus"),
        ),
        serviceType=_TEXT,
        **_GROUP,
    ),
    headServiceAnnotations=_TEXTS,
    # The definition has these two values in a rule of validation, and another that says that they do not change.
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    rayVersion=_TEXT,
    suspend=_SWITCH,
    workerGroupSpecs=_list_of(
        _fields(
            # Two of these have a default as well. The API server would fill it in; a mere reader of the schema would not.
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName=_TEXT,
            idleTimeoutSeconds=_NUMBER,
            maxReplicas=_NUMBER,  # 2147483647 by default
            minReplicas=_NUMBER,  # 0 by default
            numOfHosts=_NUMBER,  # 1 by default
            replicas=_NUMBER,  # 0 by default
            scaleStrategy=_fields([], workersToDelete=_list_of(_TEXT)),
            suspend=_SWITCH,
            **_GROUP,
        )
    ),
)
# The definition requires none of these. The API server wants the first three of every resource, and without a spec there is
# no head for the operator to start. The definition's `status` is left out, for it is the operator's to write.
FIELDS = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_of_kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
    spec=_SPEC,
)


def _no_two_alike(
    validator: Validator, keys: list[str], items: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    """Lists that Kubernetes reads as maps, of variables by their names for example, have each key once."""
    if validator.is_type(items, "array"):
        known = [[item.get(key) for key in keys] for item in items if validator.is_type(item, "object")]
        if any(known.count(one) > 1 for one in known):
            yield jsonschema.ValidationError(f"two items have the same {' and '.join(keys)}")


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _no_two_alike}
)


def check_ray_cluster(resource: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for what the schema has not, AssertionError for what the operator refuses."""
    definitions = schema_contents(_DEFINITIONS, "1.34")
    definitions["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"] = _QUANTITY
    _Validator(FIELDS, registry=Resource.from_contents(definitions) @ Registry()).validate(resource)
    assert list(_refused(resource)) == []


# Labels of Ray's nodes become labels of pods.
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_NAME}=({_NAME})?")


def _refused(resource: dict[str, Any]) -> Iterator[str]:
    spec, annotations = resource["spec"], resource["metadata"].get("annotations", {})
    head = spec["headGroupSpec"]
    for group in (head, *spec.get("workerGroupSpecs", [])):
        given, name = group.get("rayStartParams", {}), group.get("groupName", "head")
        if not group["template"].get("spec", {}).get("containers"):
            yield f"{name}: no container"
            return
        if "labels" in given:
            yield f"{name}: labels among rayStartParams"
        for label in group.get("labels", {}).items():
            if not _LABEL.fullmatch("=".join(label)):
                yield f"{name}: {label} as a label"
        if group.get("resources") and given.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{name}: resources twice"
    given = head.get("rayStartParams", {})
    in_head = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
    if "redis-username" in given or "REDIS_USERNAME" in in_head:
        yield "a user of Redis beside gcsFaultToleranceOptions"
    if "gcsFaultToleranceOptions" not in spec:
        if "RAY_REDIS_ADDRESS" in in_head:
            yield "a Redis without gcsFaultToleranceOptions"
        return
    if "redis-password" in given or in_head & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "a Redis beside gcsFaultToleranceOptions"
    if annotations.keys() & {"ray.io/ft-enabled", "ray.io/external-storage-namespace"}:
        yield "annotations of fault tolerance beside gcsFaultToleranceOptions"
