# SPDX-License-Identifier: Apache-2.0
"""PURE: what a pod's spec asks this node for, and what this node refuses.

Rules of admission, in order; each refusal ends the pod `Failed` with the reason named:
1. `UnsupportedPod`: exactly one container, no init or ephemeral containers, restartPolicy Never.
2. `UnsupportedPod`: volumes are projected, secret, configMap, emptyDir or downwardAPI; never hostPath.
3. `EntryPointNotAllowed`: the container's command is `python -m MODULE` with MODULE in the node's allow-list. A container
   without a command runs the first module of the list, as an image's entry point would.
4. `UnexpectedAdmissionError` (the kubelet's own word): every claimed `akri.sh/<instance>` exists on this node and the pods
   that run here leave enough of its capacity.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flashjob.errors import FlashJobError

Json = dict[str, Any]
RESOURCE_PREFIX: Final = "akri.sh/"
DEFAULT_TERMINATION_PATH: Final = "/dev/termination-log"
_VOLUME_KINDS: Final = frozenset({"projected", "secret", "configMap", "emptyDir", "downwardAPI"})
_PYTHONS: Final = frozenset({"python", "python3"})


def refuse(reason: str, message: str, next_step: str) -> FlashJobError:
    """An admission refusal."""
    return FlashJobError(reason, message, next_step)


def container_of(pod: Json) -> Json:
    """Rules 1 and 2: the pod's only container."""
    spec = pod["spec"]
    containers: list[Json] = spec["containers"]
    if len(containers) != 1 or spec.get("initContainers") or spec.get("ephemeralContainers"):
        raise refuse("UnsupportedPod", "this node runs pods of exactly one container", "use a real kubelet for others")
    if spec.get("restartPolicy", "Always") != "Never":
        raise refuse("UnsupportedPod", "this node restarts nothing", "set restartPolicy: Never")
    for volume in spec.get("volumes") or ():
        kinds = volume.keys() - {"name"}
        if not kinds <= _VOLUME_KINDS:
            raise refuse(
                "UnsupportedPod",
                f"volume {volume['name']} is of kind {', '.join(sorted(kinds))}, which this node does not mount",
                f"use one of {', '.join(sorted(_VOLUME_KINDS))}",
            )
    return containers[0]


def command_of(container: Json, allowed: Sequence[str]) -> list[str]:
    """Rule 3: the argument list to run; the interpreter is this process' own."""
    command = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not container.get("command"):
        command = ["python", "-m", allowed[0], *command]
    if len(command) >= 3 and os.path.basename(command[0]) in _PYTHONS and command[1] == "-m" and command[2] in allowed:
        return [sys.executable, *command[1:]]
    raise refuse(
        "EntryPointNotAllowed",
        f"container {container['name']} asks for {' '.join(command)!r}; this node runs only "
        + ", ".join(f"`python -m {module}`" for module in allowed),
        "this node is part of the sandbox and runs no foreign programs; use a real kubelet for them",
    )


def claims_of(pod: Json) -> dict[str, int]:
    """The claimed Instances: name -> how many of its slots."""
    claims: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for resource, amount in (container.get("resources", {}).get("limits") or {}).items():
            if resource.startswith(RESOURCE_PREFIX):
                name = resource.removeprefix(RESOURCE_PREFIX)
                claims[name] = claims.get(name, 0) + int(amount)
    return claims


def check_claims(claims: Mapping[str, int], capacity: Mapping[str, int], in_use: Mapping[str, int]) -> None:
    """Rule 4.

    Args:
        claims: what the pod claims.
        capacity: slots of every Instance on this node.
        in_use: slots held by pods that run here.
    """
    for name, amount in claims.items():
        free = capacity.get(name, 0) - in_use.get(name, 0)
        if amount > free:
            raise refuse(
                "UnexpectedAdmissionError",
                f"Allocate failed: {amount} of {RESOURCE_PREFIX}{name} requested, {free} available on this node",
                "the device is in use or gone; a new pod is scheduled when it is free again",
            )


def mounts_of(container: Json) -> list[tuple[str, str, str]]:
    """(mountPath, volume name, subPath or "") of every mount, the longest path first."""
    mounts = [
        (mount["mountPath"].rstrip("/") or "/", mount["name"], mount.get("subPath", ""))
        for mount in container.get("volumeMounts") or ()
    ]
    return sorted(mounts, key=lambda mount: (-len(mount[0]), mount[0]))


def termination_path_of(container: Json) -> str:
    """Where the container writes its termination message, as the pod's author knows it."""
    return str(container.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH)
