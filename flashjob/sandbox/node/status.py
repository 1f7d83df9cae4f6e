# SPDX-License-Identifier: Apache-2.0
"""PURE: the `status` of a pod in each state, in the kubelet's words, and the status of the node itself.

All functions return the value of `status` for a strategic merge patch (conditions merge by type, so the scheduler's own
condition stays).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Final

from .environment import LOOPBACK

Json = dict[str, Any]
MESSAGE_LIMIT: Final = 4096
LOG_FALLBACK_BYTES: Final = 2048
LOG_FALLBACK_LINES: Final = 80
RESOURCE_PREFIX: Final = "akri.sh/"


def timestamp(moment: datetime.datetime) -> str:
    """Kubernetes' form of a point in time."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(*, ready: bool, reason: str, now: str) -> list[Json]:
    state = "True" if ready else "False"
    changed = {"lastTransitionTime": now}
    because = {} if ready else {"reason": reason}
    return [
        {"type": "Initialized", "status": "True", **changed},
        {"type": "PodReadyToStartContainers", "status": state, **changed},
        {"type": "ContainersReady", "status": state, **changed, **because},
        {"type": "Ready", "status": state, **changed, **because},
    ]


def _status(phase: str, pod: Json, state: Json, *, ready: bool, reason: str, now: datetime.datetime) -> Json:
    container = pod["spec"]["containers"][0]
    uid = pod["metadata"]["uid"]
    return {
        "phase": phase,
        "hostIP": LOOPBACK,
        "hostIPs": [{"ip": LOOPBACK}],
        "podIP": LOOPBACK,
        "podIPs": [{"ip": LOOPBACK}],
        "qosClass": pod.get("status", {}).get("qosClass", "BestEffort"),
        "conditions": _conditions(ready=ready, reason=reason, now=timestamp(now)),
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container.get("image", ""),
                "imageID": "",
                "containerID": f"process://{uid}" if "waiting" not in state else "",
                "ready": ready,
                "started": "running" in state,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


def waiting(pod: Json, reason: str, message: str, now: datetime.datetime) -> Json:
    """The container cannot start yet."""
    state = {"waiting": {"reason": reason, "message": message}}
    return _status("Pending", pod, state, ready=False, reason="ContainersNotReady", now=now)


def running(pod: Json, started: datetime.datetime, now: datetime.datetime) -> Json:
    """The process runs."""
    state = {"running": {"startedAt": timestamp(started)}}
    status = _status("Running", pod, state, ready=True, reason="", now=now)
    return {**status, "startTime": timestamp(started)}


def ended(
    pod: Json,
    *,
    exit_code: int,
    message: str,
    started: datetime.datetime | None,
    now: datetime.datetime,
    deadline_exceeded: bool = False,
    reason: str | None = None,
) -> Json:
    """The process has ended, or (with `reason`) was lost.

    Args:
        pod: the pod.
        exit_code: the process' exit code, 128 + N for signal N.
        message: the termination message; cut to 4096 bytes.
        started: when it started.
        now: when it ended.
        deadline_exceeded: activeDeadlineSeconds ended it.
        reason: the container's reason where it is not `Completed` or `Error`.
    """
    terminated: Json = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "finishedAt": timestamp(now),
        "containerID": f"process://{pod['metadata']['uid']}",
    }
    if started is not None:
        terminated["startedAt"] = timestamp(started)
    if message:
        terminated["message"] = cut(message.encode()).decode(errors="ignore")
    succeeded = exit_code == 0 and not deadline_exceeded and reason is None
    why = "PodCompleted" if succeeded else "PodFailed"
    status = _status(
        "Succeeded" if succeeded else "Failed", pod, {"terminated": terminated}, ready=False, reason=why, now=now
    )
    if deadline_exceeded:
        status["reason"] = "DeadlineExceeded"
        status["message"] = "Pod was active on the node longer than the specified deadline"
    return status


def refused(reason: str, message: str) -> Json:
    """The node does not admit the pod: it never ran."""
    return {"phase": "Failed", "reason": reason, "message": f"Pod was rejected: {message}"}


def cut(message: bytes) -> bytes:
    """The first 4096 bytes: Kubernetes keeps no more of a termination message."""
    return message[:MESSAGE_LIMIT]


def log_fallback(log: bytes) -> bytes:
    """terminationMessagePolicy FallbackToLogsOnError: the last 80 lines, at most 2048 bytes."""
    return b"\n".join(log.splitlines()[-LOG_FALLBACK_LINES:])[-LOG_FALLBACK_BYTES:]


def device_capacity(wanted: Mapping[str, int], reported: Mapping[str, str]) -> Json:
    """The node's `akri.sh/*` capacity: every Instance's slots, 0 for one that is gone (the entry stays, as in a kubelet).

    Args:
        wanted: Instance name -> slots, of the Instances on this node.
        reported: the capacity map that the node reports now.

    Returns:
        only what must change; empty if nothing must.
    """
    gone = {name: "0" for name in reported if name.startswith(RESOURCE_PREFIX)}
    all_slots = gone | {f"{RESOURCE_PREFIX}{name}": str(slots) for name, slots in wanted.items()}
    return {name: slots for name, slots in all_slots.items() if reported.get(name) != slots}


def node(
    name: str,
    labels: Mapping[str, str],
    now: datetime.datetime,
    *,
    cpus: int,
    memory_bytes: int,
    pods: int,
    log_port: int | None = None,
) -> Json:
    """The Node object to register, with its status; `log_port` is where the API server finds logs."""
    resources = {"cpu": str(cpus), "memory": f"{memory_bytes // 1024}Ki", "pods": str(pods)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **labels},
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": LOOPBACK}, {"type": "Hostname", "address": name}],
            "conditions": node_conditions(now),
            **({"daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}}} if log_port else {}),
            "nodeInfo": {
                "operatingSystem": "linux",
                "architecture": "",
                "kubeletVersion": "flashjob-node-agent",
                "containerRuntimeVersion": "process://1",
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
                "kernelVersion": "",
                "osImage": "",
                "kubeProxyVersion": "",
            },
        },
    }


def node_conditions(now: datetime.datetime) -> list[Json]:
    """Ready, and no pressure of any kind."""
    beat = {"lastHeartbeatTime": timestamp(now), "lastTransitionTime": timestamp(now)}
    ready = {"type": "Ready", "status": "True", "reason": "NodeAgentReady", "message": "the node agent runs", **beat}
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
    calm = {"status": "False", "reason": "NotMeasured", "message": "the node agent enforces no limits", **beat}
    return [ready, *({"type": pressure, **calm} for pressure in pressures)]
