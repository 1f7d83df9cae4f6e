# SPDX-License-Identifier: Apache-2.0
"""Trust on the cluster: enrolled devices, their policies, what they last proved, and what live tasks want of them.

Implements attestation's AnchorStore and PolicyStore, and the reading half of FloorStore; floors are written by the
operator alone. Every lookup is by device id, in constant time, from caches.

Rules (tests name them):

1. Before the caches are filled nothing can be told: `store.unavailable`, never "not enrolled".
2. A device id that two Devices claim is nobody's: `store.invalid` (IdentityConflict), for both.
3. A Device whose anchor contradicts its id is `store.invalid`, never skipped; an unreadable policy is `policy.invalid`,
   a missing one is None. An unreadable Device is not enrolled; `devices.unreadable` says why.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from attestation.anchors import DeviceAnchor, Floors
from attestation.errors import Code, Reject
from attestation.policy import AttestationPolicySpec, Measurement
from attestation.verdict import Context, ExactNonce, IssuedNonce
from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.reflector import Key, Reflector
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHTASKS

from .records import KnownDevice, KnownTask, policy_key, read_device, read_policy, read_task


class ClusterTrust:
    """Run `run()` as a task; read from anywhere in the event loop once `ready`.

    Args:
        api: the API server, with the right to list and watch Devices, AttestationPolicies and FlashTasks.
        namespace: which namespace's objects; "" for all.
    """

    def __init__(self, api: KubeApi, namespace: str = "") -> None:
        self.devices = Reflector(api, DEVICES, namespace, project=read_device, on_change=self._device_changed)
        self.policies = Reflector(
            api, ATTESTATION_POLICIES, namespace, project=read_policy, on_change=self._policy_changed
        )
        self.tasks = Reflector(api, FLASHTASKS, namespace, project=read_task, on_change=self._task_changed)
        self._by_id: dict[str, set[Key]] = {}
        self._by_anchor: dict[bytes, set[Key]] = {}
        self._by_policy: dict[str, set[Key]] = {}
        self._tasks_of: dict[str, set[Key]] = {}
        self._listeners: list[Callable[[str], None]] = []

    # Life

    @property
    def reflectors(self) -> tuple[Reflector[Any], ...]:
        """All caches, for probes."""
        return (self.devices, self.policies, self.tasks)

    @property
    def ready(self) -> bool:
        """Whether all caches are filled."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    async def wait_ready(self) -> None:
        """Wait until all caches are filled."""
        for reflector in self.reflectors:
            await reflector.synced.wait()

    async def run(self) -> None:
        """Keep the caches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """Call `changed` with a device id whenever that device, its policy or one of its tasks changed.

        It is called in the event loop, must be quick and must not raise; a device may be named more than once.
        """
        self._listeners.append(changed)

    # Devices

    def device(self, device_id: str) -> KnownDevice | None:
        """The enrolled device with this id (hex), or None.

        Raises:
            Reject: rules 1, 2.
        """
        self._require_ready()
        keys = self._by_id.get(device_id, ())
        if len(keys) > 1:
            names = ", ".join(sorted("/".join(key) for key in keys))
            raise Reject(
                Code.STORE_INVALID, f"IdentityConflict: {device_id} is enrolled as {names}: delete all but one"
            )
        for namespace, name in keys:
            return self.devices.get(namespace, name)
        return None

    def by_ueid(self, ueid: bytes) -> DeviceAnchor | None:
        """See AnchorStore. A device without a trust anchor cannot attest and is not found."""
        known = self.device(ueid.hex())
        return _anchor(known) if known else None

    def by_anchor_id(self, anchor_id: bytes) -> DeviceAnchor | None:
        """See AnchorStore. Finds both forms of a P-256 or P-384 key's id."""
        self._require_ready()
        for namespace, name in self._by_anchor.get(anchor_id, ()):
            known = self.devices.get(namespace, name)
            return self.by_ueid(bytes.fromhex(known.id)) if known else None
        return None

    def floors(self, ueid: bytes) -> Floors:
        """What was last confirmed; zeros for a device that was never confirmed. Raises as `device`."""
        known = self.device(ueid.hex())
        return known.floors if known else Floors()

    def confirmed(self, ueid: bytes) -> Sequence[Measurement]:
        """Its last confirmed measurement, in every known algorithm. Raises as `device`."""
        known = self.device(ueid.hex())
        return tuple(known.confirmed) if known else ()

    # Policies

    def policy(self, name: str) -> AttestationPolicySpec | None:
        """See PolicyStore. `name` is namespace/name, as anchors from here carry it."""
        self._require_ready()
        namespace, _, own_name = name.partition("/")
        why = self.policies.unreadable.get((namespace, own_name))
        if why is not None:
            raise Reject(Code.POLICY_INVALID, f"AttestationPolicy {name}: {why}")
        return self.policies.get(namespace, own_name)

    # Tasks

    def live_tasks(self, device_id: str) -> tuple[KnownTask, ...]:
        """The device's tasks that are not over, by name. Raises Reject by rule 1."""
        self._require_ready()
        found = (self.tasks.get(*key) for key in sorted(self._tasks_of.get(device_id, ())))
        return tuple(task for task in found if task is not None and task.live)

    def in_hand(self, device_id: str) -> bool:
        """Whether a task has its permit and no verdict yet: the device is not to be listed, nor to be talked to."""
        return any(task.in_hand for task in self.live_tasks(device_id))

    def pinned(self, device_id: str) -> frozenset[Measurement]:
        """What live tasks let the device run."""
        return frozenset().union(*(task.pinned for task in self.live_tasks(device_id)))

    # Judging

    def context(self, device_id: str, nonce: ExactNonce | IssuedNonce, now: int) -> Context:
        """Everything a verdict on this device depends on; narrow it with dataclasses.replace.

        Args:
            device_id: hex.
            nonce: what the answer must be fresh against.
            now: Unix seconds.

        Raises:
            Reject: rules 1 to 3. A device that is not enrolled gives a context that the verifier rejects.
        """
        known = self.device(device_id)
        if known is None:
            return Context(device=None, policy=None, nonce=nonce, now=now)
        return Context(
            device=_anchor(known),
            policy=self.policy(policy_key(known.namespace, known.policy)),
            nonce=nonce,
            now=now,
            floors=known.floors,
            last_confirmed=known.confirmed,
            pinned=self.pinned(device_id),
        )

    # Caches

    def _require_ready(self) -> None:
        if not self.ready:
            waiting = ", ".join(str(cache.resource) for cache in self.reflectors if not cache.synced.is_set())
            raise Reject(Code.STORE_UNAVAILABLE, f"not yet read from the API server: {waiting}")

    def _device_changed(self, key: Key, old: KnownDevice | None, new: KnownDevice | None) -> None:
        for known, change in ((old, _discard), (new, _add)):
            if known is None:
                continue
            change(self._by_id, known.id, key)
            change(self._by_policy, policy_key(known.namespace, known.policy), key)
            for anchor_id in known.anchor.anchor_ids if known.anchor else ():
                change(self._by_anchor, anchor_id, key)
        self._announce({known.id for known in (old, new) if known is not None})

    def _task_changed(self, key: Key, old: KnownTask | None, new: KnownTask | None) -> None:
        if old is not None:
            _discard(self._tasks_of, old.device_id, key)
        if new is not None:
            _add(self._tasks_of, new.device_id, key)
        self._announce({task.device_id for task in (old, new) if task is not None})

    def _policy_changed(self, key: Key, old: AttestationPolicySpec | None, new: AttestationPolicySpec | None) -> None:
        judged = (self.devices.get(*device) for device in self._by_policy.get(policy_key(*key), ()))
        self._announce({known.id for known in judged if known is not None})

    def _announce(self, device_ids: set[str]) -> None:
        for listener in self._listeners:
            for device_id in sorted(device_ids):
                listener(device_id)


def _anchor(known: KnownDevice) -> DeviceAnchor | None:
    if known.problem:
        raise Reject(Code.STORE_INVALID, f"Device {known.namespace}/{known.name}: {known.problem}")
    return known.anchor


def _add(index: dict[Any, set[Key]], value: Any, key: Key) -> None:
    index.setdefault(value, set()).add(key)


def _discard(index: dict[Any, set[Key]], value: Any, key: Key) -> None:
    keys = index.get(value)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[value]
