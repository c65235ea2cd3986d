"""What KubeRay's custom resources may hold, as a schema: the fields that the manifests use.

Names and types are those of the API reference of KubeRay (ray.io/v1, 1.1 and newer) and of
Kubernetes' pods (core/v1). The reference has many more; a manifest with one of those needs it here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RAY_JOB", "RAY_SERVICE"]

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGT]|[KMGT]i)?$"}


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


VARIABLE = fields(
    "name",
    name=TEXT,
    value={"type": "string"},
    valueFrom=fields("secretKeyRef", secretKeyRef=fields("name key", name=NAME, key=TEXT)),
)
CONTAINER = fields(
    "name image",
    name=NAME,
    image=TEXT,
    env=items(VARIABLE),
    ports=items(fields("containerPort", name=NAME, containerPort=PORT)),
    resources=fields(requests=mapping(QUANTITY), limits=mapping(QUANTITY)),
    volumeMounts=items(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
VOLUME = fields(
    "name",
    name=NAME,
    persistentVolumeClaim=fields("claimName", claimName=NAME, readOnly=FLAG),
)
POD = fields(
    "spec",
    spec=fields(
        "containers",
        serviceAccountName=NAME,
        securityContext=fields(runAsNonRoot=FLAG, runAsUser=NUMBER, fsGroup=NUMBER),
        containers=items(CONTAINER) | {"minItems": 1},
        volumes=items(VOLUME),
    ),
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    # The words of `ray start`, all of them texts.
    headGroupSpec=fields("rayStartParams template", rayStartParams=mapping(TEXT), template=POD),
    workerGroupSpecs=items(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=mapping(TEXT),
            template=POD,
        )
    ),
)


def resource(kind: str, spec: Schema) -> Schema:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name=NAME),
        spec=spec,
    )


RAY_JOB = resource(
    "RayJob",
    fields(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=CLUSTER,
    ),
)
RAY_SERVICE = resource(
    "RayService",
    fields("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
)
