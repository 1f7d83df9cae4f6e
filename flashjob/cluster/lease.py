# SPDX-License-Identifier: Apache-2.0
"""The lock of a device: one Lease per device id, in the operator's namespace.

Rules (tests name them):

1. The name is `fj-` and 32 base32 characters of SHA-256(device id): one device, one Lease, whatever Device names it.
2. It names the Device it was made for; another Device with the same id is an IdentityConflict.
3. It is held by `namespace/task/attempt`, taken by PUT with the resourceVersion it was read at.
4. Every take raises leaseTransitions by one, also when the same task held it before: that number is a fence.
5. It never expires by time. Whether it is free is for planning to say; nothing here decides it.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

from flashjob.errors import FlashJobError
from flashjob.wire.lock import Holder

from .kubeapi import ApiError, KubeApi
from .resources import LEASES, Obj

ANNOTATION_DEVICE: Final = "flashjob.dev/device"
"""On the Lease: namespace/name of the Device it was made for."""
LABEL_DEVICE_LOCK: Final = "flashjob.dev/device-lock"
"""On the Lease, value "true": tells these Leases from all others."""


@dataclass(frozen=True, slots=True)
class DeviceLease:
    """A device's Lease as read.

    Args:
        namespace, name: where the Lease is.
        resource_version: of the reading; a take is valid only if nobody wrote since.
        device: "namespace/name" of the Device it was made for.
        holder: who holds it, or held it last.
        transitions: the fence of that holder.
        acquire_time: when it was taken, RFC 3339; "" if never.
    """

    namespace: str
    name: str
    resource_version: str
    device: str
    holder: Holder | None
    transitions: int
    acquire_time: str

    @classmethod
    def read(cls, lease: Obj) -> "DeviceLease":
        """Raises ValueError if it is not a Lease of ours."""
        metadata, spec = lease["metadata"], lease.get("spec") or {}
        device = (metadata.get("annotations") or {}).get(ANNOTATION_DEVICE, "")
        if not device:
            raise ValueError(f"Lease {metadata['name']} names no Device in {ANNOTATION_DEVICE}")
        held = spec.get("holderIdentity") or ""
        holder = Holder.parse(held)
        if held and holder is None:
            raise ValueError(f"Lease {metadata['name']} is held by {held!r}, which is no task attempt")
        return cls(
            metadata.get("namespace", ""),
            metadata["name"],
            metadata["resourceVersion"],
            device,
            holder,
            spec.get("leaseTransitions") or 0,
            spec.get("acquireTime") or "",
        )


def lease_name(device_id: str) -> str:
    """Rule 1."""
    digest = hashlib.sha256(device_id.encode()).digest()[:20]
    return "fj-" + base64.b32encode(digest).decode().lower()


async def ensure(api: KubeApi, namespace: str, device_id: str, device: str) -> DeviceLease:
    """The device's Lease, made if it does not exist.

    Args:
        namespace: the operator's.
        device_id: the device's identity.
        device: "namespace/name" of the Device.

    Raises:
        FlashJobError: IdentityConflict, the Lease was made for another Device (rule 2).
        ApiError: whatever else the server says.
    """
    name = lease_name(device_id)
    wanted: Obj = {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {LABEL_DEVICE_LOCK: "true"},
            "annotations": {ANNOTATION_DEVICE: device},
        },
        "spec": {"leaseTransitions": 0},
    }
    try:
        lease = DeviceLease.read(await api.create(LEASES, namespace, wanted))
    except ApiError as error:
        if not error.already_exists:
            raise
        lease = DeviceLease.read(await api.get(LEASES, namespace, name))
    if lease.device != device:
        raise FlashJobError(
            "IdentityConflict",
            f"device {device_id} is enrolled as {lease.device} and as {device}",
            "delete one of the two Devices; if the first is gone for good, the operator adopts its Lease",
        )
    return lease


async def take(api: KubeApi, lease: DeviceLease, holder: Holder, now: str) -> DeviceLease:
    """Take the device for one attempt (rules 3 and 4).

    Args:
        lease: as read when it was found free.
        holder: the attempt.
        now: RFC 3339 with microseconds (metav1.MicroTime), as in 2026-01-02T03:04:05.000000Z.

    Raises:
        ApiError: with `conflict`, somebody wrote since; read and decide again.
    """
    spec = {"holderIdentity": str(holder), "leaseTransitions": lease.transitions + 1, "acquireTime": now}
    return await _put(api, lease, lease.device, spec)


async def adopt(api: KubeApi, lease: DeviceLease, device: str) -> DeviceLease:
    """Give the Lease of a Device that exists no more to its successor ("namespace/name"); holder and fence stay."""
    spec: Obj = {"leaseTransitions": lease.transitions}
    if lease.holder:
        spec |= {"holderIdentity": str(lease.holder), "acquireTime": lease.acquire_time}
    return await _put(api, lease, device, spec)


async def _put(api: KubeApi, lease: DeviceLease, device: str, spec: Obj) -> DeviceLease:
    obj = {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {
            "name": lease.name,
            "namespace": lease.namespace,
            "resourceVersion": lease.resource_version,
            "labels": {LABEL_DEVICE_LOCK: "true"},
            "annotations": {ANNOTATION_DEVICE: device},
        },
        "spec": spec,
    }
    return DeviceLease.read(await api.replace(LEASES, lease.namespace, obj))
