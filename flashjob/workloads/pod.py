# SPDX-License-Identifier: Apache-2.0
"""The flashing pod, built from a list of task attempts. Pure.

1. It can do nothing at the API server: no default token; a projected one for the gateway alone, ten minutes, bound to it.
2. It never restarts: one attempt is one pod. The kubelet ends it at the sum of its stages' limits.
3. Serial: it claims the port's Akri Instance as a resource and selects its node by hostname, one device per pod. Network:
   it claims nothing and runs anywhere. It never sets spec.nodeName, and never carries an akri.sh label.
4. It runs as nobody, without privileges, with a read-only root and a work directory of its own.
5. It is owned by the FlashJob: it goes with the job, not with an Instance that a reboot removes.
6. A node cache, where the installation has one, is mounted read-only; nothing else of the node ever is.
7. Overrides add labels (never ours or Akri's), tolerations and a priority class; they take nothing away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashjob.api.flashjob import PodOverrides
from flashjob.api.meta import API_VERSION
from flashjob.errors import FlashJobError
from flashjob.wire import pod as wire
from flashjob.wire.pod import Assignments, TransportKind

COMMAND: Final = ("python", "-m", "flashjob.flasher")
COMPONENT: Final = "flasher"
CONTAINER: Final = "flasher"
TOKEN_SECONDS: Final = 600
GRACE_SECONDS: Final = 30
_RESERVED: Final = ("akri.sh/", "flashjob.dev/")


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What is the same for all flashing pods of an installation.

    Args:
        image: container image of the flasher.
        gateway_url: where the pods reach the gateway.
        ca_config_map: ConfigMap with `ca.crt`, the gateway's CA.
        service_account: of the pods; needs no rights.
        pull_policy: imagePullPolicy.
        serial_groups: supplementary groups that own serial device nodes.
        resources: requests and limits beside the claimed port.
        cache_claim: PersistentVolumeClaim in the jobs' namespace that holds a node cache.
        mirror: URL of a mirror by digest; `$(FLASHJOB_NODE_IP)` in it is the node's address.
    """

    image: str
    gateway_url: str
    ca_config_map: str = "flashjob-gateway-ca"
    service_account: str = wire.POD_SERVICE_ACCOUNT
    pull_policy: str = "IfNotPresent"
    serial_groups: tuple[int, ...] = (20,)
    resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    )
    cache_claim: str | None = None
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """The FlashJob that owns the pod."""

    name: str
    uid: str
    label: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pod must run: on this node, with this port Instance. Both None for network devices."""

    instance: str | None = None
    node: str | None = None


def build_pod(
    name: str,
    owner: Owner,
    assignments: Assignments,
    placement: Placement,
    settings: PodSettings,
    *,
    deadline_seconds: int,
    pull_secrets: Sequence[str] = (),
    overrides: PodOverrides | None = None,
) -> dict[str, Any]:
    """The pod as it is to be created (rules 1 to 6).

    Args:
        deadline_seconds: activeDeadlineSeconds.
        pull_secrets: Secrets of type kubernetes.io/dockerconfigjson, in the job's namespace; the first one is mounted.

    Raises:
        FlashJobError: InvalidAssignment, a serial pod needs exactly one assignment and a placement.
    """
    serial = any(item.transport is TransportKind.SERIAL for item in assignments.items)
    if serial and (len(assignments.items) != 1 or not placement.instance or not placement.node):
        raise FlashJobError(
            "InvalidAssignment",
            f"pod {name}: a serial device needs a pod of its own, a port Instance and its node",
            "this is a defect of the planner",
        )
    refs = [{"task": item.task, "attempt": item.attempt} for item in assignments.items]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": deadline_seconds,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"supplementalGroups": list(settings.serial_groups)} if serial and settings.serial_groups else {}),
        },
        "containers": [_container(assignments, placement, settings, bool(pull_secrets))],
        "volumes": _volumes(settings, pull_secrets),
    }
    if placement.node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": placement.node}
    labels = {}
    if overrides is not None:
        labels = {k: v for k, v in overrides.labels.items() if not k.startswith(_RESERVED)}
        if overrides.tolerations:
            spec["tolerations"] = [t.dump() for t in overrides.tolerations]
        if overrides.priority_class_name:
            spec["priorityClassName"] = overrides.priority_class_name
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": assignments.namespace,
            "labels": {**labels, wire.LABEL_JOB: owner.label, wire.LABEL_COMPONENT: COMPONENT},
            "annotations": {wire.ANNOTATION_ASSIGNMENTS: json.dumps(refs, separators=(",", ":"))},
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": spec,
    }


def owner_reference(owner: Owner) -> dict[str, Any]:
    """The job as controlling owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FlashJob",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _container(
    assignments: Assignments, placement: Placement, settings: PodSettings, credentials: bool
) -> dict[str, Any]:
    env = {
        wire.ENV_ASSIGNMENTS: json.dumps(assignments.dump(), separators=(",", ":")),
        wire.ENV_GATEWAY_URL: settings.gateway_url,
        wire.ENV_TOKEN_FILE: f"{wire.MOUNT_TOKEN}/token",
        wire.ENV_CA_FILE: f"{wire.MOUNT_CA}/ca.crt",
        wire.ENV_WORK_DIR: wire.MOUNT_WORK,
        wire.ENV_TERMINATION_FILE: wire.TERMINATION_FILE,
        **({wire.ENV_DOCKER_CONFIG: wire.MOUNT_DOCKER} if credentials else {}),
        **({wire.ENV_CACHE_DIR: wire.MOUNT_CACHE} if settings.cache_claim else {}),
        **({wire.ENV_MIRROR: settings.mirror} if settings.mirror else {}),
    }
    variables: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in env.items()]
    if settings.mirror and f"$({wire.ENV_NODE_IP})" in settings.mirror:
        source = {"fieldRef": {"fieldPath": "status.hostIP"}}
        variables.insert(0, {"name": wire.ENV_NODE_IP, "valueFrom": source})
    mounts = {
        "token": (wire.MOUNT_TOKEN, True),
        "ca": (wire.MOUNT_CA, True),
        "work": (wire.MOUNT_WORK, False),
        **({"docker": (wire.MOUNT_DOCKER, True)} if credentials else {}),
        **({"cache": (wire.MOUNT_CACHE, True)} if settings.cache_claim else {}),
    }
    resources = {kind: dict(values) for kind, values in settings.resources.items()}
    if placement.instance:
        for kind in ("limits", "requests"):
            resources.setdefault(kind, {})[f"akri.sh/{placement.instance}"] = "1"
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": list(COMMAND),
        "env": variables,
        "volumeMounts": [
            {"name": key, "mountPath": path, "readOnly": read_only} for key, (path, read_only) in mounts.items()
        ],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": wire.TERMINATION_FILE,
        "terminationMessagePolicy": "File",
    }


def _volumes(settings: PodSettings, pull_secrets: Sequence[str]) -> list[dict[str, Any]]:
    token = {"audience": wire.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    volumes: list[dict[str, Any]] = [
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "ca", "configMap": {"name": settings.ca_config_map}},
        {"name": "work", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    if pull_secrets:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        volumes.append({"name": "docker", "secret": {"secretName": pull_secrets[0], "items": items}})
    if settings.cache_claim:
        claim = {"claimName": settings.cache_claim, "readOnly": True}
        volumes.append({"name": "cache", "persistentVolumeClaim": claim})
    return volumes
