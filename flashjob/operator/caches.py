# SPDX-License-Identifier: Apache-2.0
"""What the operator knows of the cluster: one reflector per kind, and its own writes until the watch has caught up.

Rules:
1. An object that we wrote ourselves is believed in the newer of its two versions, so that a decision is never made twice
   because a watch lags behind.
2. Such a memory ends when the watch shows that version or a later one, the object's deletion, or after a while.
3. Which job a change concerns: a FlashJob itself; a FlashTask or flashing pod its job; everything else all live jobs.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

from attestation.policy import AttestationPolicySpec
from flashjob.cluster import resources
from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.lease import LABEL_DEVICE_LOCK, lease_name
from flashjob.cluster.reflector import Reflector
from flashjob.cluster.resources import Obj, Resource
from flashjob.planning.job_status import finished
from flashjob.planning.state import Device, Instance, Job, Key, Lease, Pod, Task

from . import project
from .listing import CONFIG_MAP, Keys, Listings, read_keys

MEMORY_SECONDS: Final = 30.0


class Versioned(Protocol):
    """A view that tells its resourceVersion."""

    @property
    def resource_version(self) -> str: ...


V = TypeVar("V", bound=Versioned)


@dataclass(frozen=True, slots=True)
class _Memory(Generic[V]):
    value: V
    until: float


class Cache(Generic[V]):
    """A reflector plus our own writes (rules 1 and 2)."""

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        make: Callable[[Obj], V | None],
        *,
        namespace: str = "",
        label_selector: str = "",
    ) -> None:
        self._make = make
        self._own: dict[Key, _Memory[V]] = {}
        self.reflector: Reflector[V | None] = Reflector(
            api, resource, namespace, project=make, label_selector=label_selector, on_change=self._changed
        )

    def wrote(self, obj: Obj) -> None:
        """Remember what the server answered to a write of ours."""
        value = self._make(obj)
        if value is not None:
            key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
            self._own[key] = _Memory(value, asyncio.get_running_loop().time() + MEMORY_SECONDS)

    def get(self, key: Key) -> V | None:
        """The newest known version of one object."""
        cached = self.reflector.get(*key)
        own = self._own.get(key)
        if own is None:
            return cached
        if asyncio.get_running_loop().time() >= own.until or not _newer(own.value, cached):
            del self._own[key]
            return cached
        return own.value

    def values(self) -> list[V]:
        """The newest known version of all objects."""
        keys = {key for key, _ in self.reflector.items()} | self._own.keys()
        return [value for key in sorted(keys) if (value := self.get(key)) is not None]

    def _changed(self, key: Key, old: V | None, new: V | None) -> None:
        if new is None and old is not None:
            self._own.pop(key, None)


def _newer(own: Versioned, cached: Versioned | None) -> bool:
    """Whether ours is newer: resource versions of one server grow (KEP-5504)."""
    return cached is None or int(own.resource_version or 0) > int(cached.resource_version or 0)


class Caches:
    """All kinds that the operator reads.

    Args:
        api: the API server.
        namespace: the operator's own, where the Leases are.
        on_job: called with the key of each job that a change concerns.
        watch_namespace: "" for all.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        on_job: Callable[[Key], None],
        watch_namespace: str = "",
    ) -> None:
        self._on_job = on_job
        self._listings = Listings()
        scope = watch_namespace
        self.jobs: Cache[Job] = Cache(api, resources.FLASHJOBS, project.job, namespace=scope)
        self.tasks: Cache[Task] = Cache(api, resources.FLASHTASKS, project.task, namespace=scope)
        self.devices: Cache[Device] = Cache(api, resources.DEVICES, project.device, namespace=scope)
        self.pods: Cache[Pod] = Cache(api, resources.PODS, project.pod, namespace=scope)
        self.leases: Cache[Lease] = Cache(
            api, resources.LEASES, project.lease, namespace=namespace, label_selector=f"{LABEL_DEVICE_LOCK}=true"
        )
        self._instances: Reflector[Instance] = Reflector(
            api, resources.INSTANCES, scope, project=project.instance, on_change=self._anything
        )
        self._policies: Reflector[AttestationPolicySpec] = Reflector(
            api, resources.ATTESTATION_POLICIES, scope, project=project.policy, on_change=self._anything
        )
        self._listing_keys: Reflector[Keys] = Reflector(
            api,
            resources.CONFIG_MAPS,
            namespace,
            project=read_keys,
            field_selector=f"metadata.name={CONFIG_MAP}",
            on_change=self._keys_changed,
        )
        self._namespace = namespace
        self.jobs.reflector.subscribe(lambda key, old, new: on_job(key))
        self.tasks.reflector.subscribe(self._task_changed)
        self.pods.reflector.subscribe(self._pod_changed)
        self.devices.reflector.subscribe(self._anything)
        self.leases.reflector.subscribe(self._anything)

    @property
    def _reflectors(self) -> list[Reflector[Any]]:
        parts: tuple[Cache[Any], ...] = (self.jobs, self.tasks, self.devices, self.pods, self.leases)
        return [*(p.reflector for p in parts), self._instances, self._policies, self._listing_keys]

    async def run(self) -> None:
        """Keep up until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run(), name=f"reflector {reflector.resource}")

    async def synced(self) -> None:
        """Wait until every kind was listed once."""
        for reflector in self._reflectors:
            await reflector.synced.wait()

    @property
    def is_synced(self) -> bool:
        """Whether every kind was listed once."""
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    def age(self) -> tuple[float, str]:
        """How long the most silent kind was silent, in seconds, and which it is."""
        now = asyncio.get_running_loop().time()
        return max((reflector.age(now), str(reflector.resource)) for reflector in self._reflectors)

    def unreadable(self) -> dict[str, int]:
        """How many objects of each kind cannot be read."""
        return {str(reflector.resource): len(reflector.unreadable) for reflector in self._reflectors}

    def policies(self, namespace: str) -> dict[str, AttestationPolicySpec]:
        """The policies of a namespace, by name."""
        return {name: spec for (space, name), spec in self._policies.items() if space == namespace}

    def instances(self) -> tuple[Instance, ...]:
        """All Instances, with what their tokens say where they hold."""
        found = list(self._instances.values())
        said = self._listings.read(i.token for i in found if i.token)
        return tuple(replace(i, listing=said[i.token]) if i.token else i for i in found)

    def leases_of(self, devices: Iterable[Device]) -> dict[str, Lease]:
        """The Leases of these devices, by device id."""
        found = {d.id: self.leases.get((self._namespace, lease_name(d.id))) for d in devices}
        return {device: lease for device, lease in found.items() if lease is not None}

    def live_jobs(self) -> list[Job]:
        """Jobs that are not over."""
        return [job for job in self.jobs.values() if job.deleting or not finished(job.status)]

    def _task_changed(self, key: Key, old: Task | None, new: Task | None) -> None:
        task = new or old
        if task is not None:
            self._on_job((task.namespace, task.job))

    def _pod_changed(self, key: Key, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        if pod is None:
            return
        if pod.assignments and (task := self.tasks.get((pod.namespace, pod.assignments[0][0]))) is not None:
            self._on_job((task.namespace, task.job))
        else:
            self._anything(key, old, new)

    def _keys_changed(self, key: Key, old: Keys | None, new: Keys | None) -> None:
        self._listings.use(new or {})
        self._anything(key, old, new)

    def _anything(self, key: Key, old: object, new: object) -> None:
        for job in self.live_jobs():
            self._on_job((job.namespace, job.name))
