# SPDX-License-Identifier: Apache-2.0
"""An API server in memory: the semantics our code rests on, and knobs for everything that may go wrong.

It keeps: uid, resourceVersion, generation, creationTimestamp; 404, AlreadyExists, Conflict, 410; list pages and watches
with label and field selectors, replay from a resource version and bookmarks; the status subresource; finalizers,
graceful deletion of scheduled pods, deletion of dependents; merge patch, PUT and server-side apply with field owners;
no event for a write that changes nothing; pruning, defaults and validation where a schema is given. It does not judge
CEL rules, RBAC or admission, and takes every list as atomic in server-side apply.

The conformance test runs the same assertions against this and against a real API server.
"""

import asyncio
import copy
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .faults import Call, Crash, Fault
from .field_owners import FieldOwners, merged
from .kubeapi import PAGE, WATCH_SECONDS, ApiError, Page, Token, WatchEvent
from .resources import CRDS, PODS, SERVICE_ACCOUNTS, Obj, Resource
from .selectors import field_matcher, label_matcher
from .structural import completed, problems

_SYSTEM_FIELDS: Final = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
_POD_GRACE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    resource: Resource
    type: str
    new: Obj
    old: Obj | None


@dataclass(eq=False, slots=True)
class _Watcher:
    resource: Resource
    namespace: str
    matches: Callable[[Obj], bool]
    queue: "asyncio.Queue[WatchEvent | ApiError | None]" = field(default_factory=asyncio.Queue)

    async def take(self, deadline: float) -> WatchEvent | ApiError | None:
        """The next item; None at the end of the stream. `deadline` is in the event loop's time."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self.queue.get()
        except TimeoutError:
            return None

    def offer(self, change: _Change) -> None:
        """Queue the change as this watch sees it: an object that leaves the selection is DELETED."""
        if change.resource != self.resource or (
            self.namespace and change.new["metadata"].get("namespace") != self.namespace
        ):
            return
        now, before = self.matches(change.new), change.old is not None and self.matches(change.old)
        if change.type == "DELETED":
            kind = "DELETED" if before or (change.old is None and now) else ""
        else:
            kind = {(True, False): "ADDED", (True, True): "MODIFIED", (False, True): "DELETED"}.get((now, before), "")
        if kind:
            self.queue.put_nowait(WatchEvent(kind, copy.deepcopy(change.new)))


class FakeCluster:
    """A KubeApi without a server. One instance is one cluster; share it between everything in a test.

    Args:
        schemas: structural schemas of custom resources, by resource: those objects are pruned, defaulted, validated.
        now: the clock of creation and deletion times.
        collect: delete dependents at once when their last owner goes; False leaves them until `collect_garbage`.
    """

    def __init__(
        self,
        *,
        schemas: Mapping[Resource, dict[str, Any]] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        collect: bool = True,
    ) -> None:
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.raw: dict[str, Any] = {}
        self.collect = collect
        self._schemas = dict(schemas or {})
        self._now = now
        self._objects: dict[Resource, dict[tuple[str, str], Obj]] = {}
        self._owners: dict[tuple[Resource, str, str], FieldOwners] = {}
        self._version = 1
        self._history: list[_Change] = []
        self._oldest = 1
        self._watchers: set[_Watcher] = set()
        self._swallow: dict[Resource, int] = {}

    # Knobs

    def fail(self, error: BaseException, **match: Any) -> Fault:
        """Add a Fault (see there for `match`) and return it."""
        fault = Fault(error, **match)
        self.faults.append(fault)
        return fault

    def crash(self, *, skip: int = 0, after: bool = False, **match: Any) -> Fault:
        """The process under test dies at the next write but `skip`, before or `after` it took effect."""
        return self.fail(Crash(), **{"verb": "write", "skip": skip, "after": after, **match})

    def compact(self) -> None:
        """Forget history: a watch from an earlier version gets 410."""
        self._history.clear()
        self._oldest = self._version

    def disconnect(self, resource: Resource | None = None, error: ApiError | None = None) -> None:
        """End running watches: as the server does in the end, or with an error."""
        for watcher in [watcher for watcher in self._watchers if resource in (None, watcher.resource)]:
            watcher.queue.put_nowait(error)

    def bookmark(self, resource: Resource) -> None:
        """Send a bookmark of the present version to running watches."""
        for watcher in self._watchers:
            if watcher.resource == resource:
                watcher.queue.put_nowait(self._bookmark(resource))

    def inject(self, resource: Resource, event: WatchEvent) -> None:
        """Send any event to running watches, as a duplicate or an outdated one."""
        for watcher in self._watchers:
            if watcher.resource == resource:
                watcher.queue.put_nowait(event)

    def swallow(self, resource: Resource, events: int = 1) -> None:
        """Let the next so many events of a collection go missing, on running watches and from history."""
        self._swallow[resource] = events

    def watching(self, resource: Resource) -> int:
        """How many watches of this collection run."""
        return sum(watcher.resource == resource for watcher in self._watchers)

    def all(self, resource: Resource, namespace: str = "") -> list[Obj]:
        """What is stored, without a request."""
        return [copy.deepcopy(obj) for obj in self._select(resource, namespace)]

    def collect_garbage(self) -> int:
        """Delete every object whose owners are all gone; returns how many objects went or began to."""
        gone = 0
        while True:
            alive = {obj["metadata"]["uid"] for kind in self._objects.values() for obj in kind.values()}
            orphans = [
                (resource, obj)
                for resource, kind in self._objects.items()
                for obj in kind.values()
                if (owners := obj["metadata"].get("ownerReferences"))
                and not any(owner["uid"] in alive for owner in owners)
                and not obj["metadata"].get("deletionTimestamp")
            ]
            for resource, obj in orphans:
                self._remove(resource, obj, None)
            if not orphans:
                return gone
            gone += len(orphans)

    # KubeApi

    async def list_pages(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = PAGE,
    ) -> AsyncGenerator[Page, None]:
        """See KubeApi."""
        matches = _matcher(label_selector, field_selector)
        call = Call("list", resource, namespace, "")
        await self._arrive(call)
        found = [obj for obj in self._select(resource, namespace) if matches(obj)]
        version = str(self._version)
        for start in range(0, max(len(found), 1), limit):
            if start:
                await self._arrive(call)
            yield Page([copy.deepcopy(obj) for obj in found[start : start + limit]], version)

    async def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = WATCH_SECONDS,
    ) -> AsyncGenerator[WatchEvent, None]:
        """See KubeApi."""
        await self._arrive(Call("watch", resource, namespace, ""))
        since = int(resource_version)
        if since < self._oldest:
            raise ApiError(410, "Expired", f"watch {resource}: too old resource version: {since} ({self._oldest})")
        watcher = _Watcher(resource, namespace, _matcher(label_selector, field_selector))
        for change in self._history:
            if change.version > since:
                watcher.offer(change)
        self._watchers.add(watcher)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        try:
            while (item := await watcher.take(deadline)) is not None:
                if isinstance(item, ApiError):
                    raise item
                yield item
        finally:
            self._watchers.discard(watcher)

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        """See KubeApi."""
        await self._arrive(Call("get", resource, namespace, name))
        return copy.deepcopy(self._require(resource, namespace, name))

    async def create(self, resource: Resource, namespace: str, obj: Obj) -> Obj:
        """See KubeApi."""
        name = obj.get("metadata", {}).get("name") or f"{obj['metadata']['generateName']}{uuid.uuid4().hex[:5]}"
        call = Call("create", resource, namespace, name)
        faults = await self._arrive(call)
        created = self._create(resource, namespace, name, obj, "unknown", "Update")
        return self._answer(faults, created)

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        obj: Obj,
        *,
        field_manager: str,
        force: bool = False,
        subresource: str = "",
    ) -> Obj:
        """See KubeApi."""
        name = obj["metadata"]["name"]
        faults = await self._arrive(Call("apply", resource, namespace, name, subresource))
        old = self._objects.get(resource, {}).get((namespace, name))
        if old is None:
            if subresource:
                self._require(resource, namespace, name)
            return self._answer(faults, self._create(resource, namespace, name, obj, field_manager, "Apply"))
        owners = self._owners[resource, namespace, name]
        content = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}
        content["metadata"] = {
            key: value
            for key, value in obj["metadata"].items()
            if key in ("labels", "annotations", "finalizers", "ownerReferences")
        }
        conflicts = [] if force else owners.conflicts(field_manager, content, old)
        if conflicts:
            fields = ", ".join("." + ".".join(path) for path in conflicts)
            raise ApiError(409, "Conflict", f"apply {resource} {name}: conflicts with other managers: {fields}")
        new = owners.apply(field_manager, content, copy.deepcopy(old))
        return self._answer(faults, self._store(resource, old, new, subresource))

    async def replace(self, resource: Resource, namespace: str, obj: Obj, *, subresource: str = "") -> Obj:
        """See KubeApi."""
        name = obj["metadata"]["name"]
        faults = await self._arrive(Call("replace", resource, namespace, name, subresource))
        old = self._require(resource, namespace, name)
        version = obj["metadata"].get("resourceVersion")
        if not version:
            raise ApiError(422, "Invalid", f"replace {resource} {name}: metadata.resourceVersion: must be specified")
        self._check(resource, old, obj["metadata"].get("uid", ""), version)
        return self._answer(faults, self._update(resource, old, copy.deepcopy(obj), subresource, "unknown"))

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Obj, *, field_manager: str) -> Obj:
        """See KubeApi."""
        faults = await self._arrive(Call("patch", resource, namespace, name))
        old = self._require(resource, namespace, name)
        metadata = patch.get("metadata", {})
        self._check(resource, old, metadata.get("uid", ""), metadata.get("resourceVersion", ""))
        return self._answer(faults, self._update(resource, old, merged(old, patch), "", field_manager))

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        status: Obj,
        *,
        field_manager: str,
        resource_version: str = "",
    ) -> Obj:
        """See KubeApi."""
        faults = await self._arrive(Call("patch", resource, namespace, name, "status"))
        if not resource.status:
            raise ApiError(404, "NotFound", f"patch {resource} {name}: there is no status subresource")
        old = self._require(resource, namespace, name)
        self._check(resource, old, "", resource_version)
        return self._answer(
            faults, self._update(resource, old, merged(old, {"status": status}), "status", field_manager)
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """See KubeApi."""
        faults = await self._arrive(Call("delete", resource, namespace, name))
        old = self._require(resource, namespace, name)
        self._check(resource, old, uid, resource_version)
        self._remove(resource, old, grace_seconds, propagation)
        self._answer(faults, {})

    async def token_request(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        seconds: int = 600,
        pod: tuple[str, str] | None = None,
    ) -> Token:
        """See KubeApi. The token is a readable stand-in that nobody else accepts."""
        await self._arrive(Call("token", SERVICE_ACCOUNTS, namespace, service_account))
        self._require(SERVICE_ACCOUNTS, namespace, service_account)
        if pod is not None:
            self._check(PODS, self._require(PODS, namespace, pod[0]), pod[1], "")
        expires = (self._now() + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Token(f"fake:{namespace}:{service_account}:{','.join(audiences)}:{':'.join(pod or ())}", expires)

    async def get_raw(self, path: str) -> Any:
        """See KubeApi; answers from `raw`."""
        await self._arrive(Call("raw", CRDS, "", path))
        if path not in self.raw:
            raise ApiError(404, "NotFound", f"GET {path}: the server could not find the requested resource")
        return copy.deepcopy(self.raw[path])

    async def close(self) -> None:
        """See KubeApi."""
        self.disconnect()

    # Inside

    async def _arrive(self, call: Call) -> list[Fault]:
        """Take a turn of the event loop, record the call, raise what is planned; returns faults of the answer."""
        await asyncio.sleep(0)
        self.calls.append(call)
        late: list[Fault] = []
        for fault in list(self.faults):
            if not fault.matches(call):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if not fault.times:
                self.faults.remove(fault)
            if not fault.after:
                raise fault.error
            late.append(fault)
        return late

    def _answer(self, late: list[Fault], obj: Obj) -> Obj:
        for fault in late:
            raise fault.error
        return copy.deepcopy(obj)

    def _select(self, resource: Resource, namespace: str) -> Iterable[Obj]:
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if namespace in ("", key[0])]

    def _require(self, resource: Resource, namespace: str, name: str) -> Obj:
        found = self._objects.get(resource, {}).get((namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found in namespace "{namespace}"')
        return found

    def _check(self, resource: Resource, obj: Obj, uid: str, version: str) -> None:
        for name, wanted in (("uid", uid), ("resourceVersion", version)):
            if wanted and obj["metadata"][name] != wanted:
                raise ApiError(
                    409,
                    "Conflict",
                    f"{resource} {obj['metadata']['name']}: {name} is {obj['metadata'][name]}, not {wanted}: "
                    "the object has been modified",
                )

    def _create(self, resource: Resource, namespace: str, name: str, obj: Obj, manager: str, operation: str) -> Obj:
        kind = self._objects.setdefault(resource, {})
        if (namespace, name) in kind:
            raise ApiError(409, "AlreadyExists", f'create {resource}: "{name}" already exists')
        new = copy.deepcopy(obj)
        new.setdefault("apiVersion", resource.api_version)
        new.setdefault("kind", resource.kind)
        metadata = {key: value for key, value in new.get("metadata", {}).items() if key not in _SYSTEM_FIELDS}
        new["metadata"] = {
            **metadata,
            "name": name,
            **({"namespace": namespace} if resource.namespaced else {}),
            "uid": str(uuid.uuid4()),
            "creationTimestamp": self._timestamp(),
            "generation": 1,
        }
        if resource.status:
            new.pop("status", None)
        if resource == PODS:
            new["status"] = {"phase": "Pending"}
        new = self._admit(resource, new)
        owners = self._owners[resource, namespace, name] = FieldOwners()
        owners.wrote(manager, {}, new, operation)
        return self._commit(resource, "ADDED", new, None)

    def _update(self, resource: Resource, old: Obj, new: Obj, subresource: str, manager: str) -> Obj:
        key = (resource, old["metadata"].get("namespace", ""), old["metadata"]["name"])
        if subresource == "status":
            new = {**old, "status": new.get("status", {})}
        self._owners[key].wrote(manager, old, new, "Update")
        return self._store(resource, old, new, subresource)

    def _store(self, resource: Resource, old: Obj, new: Obj, subresource: str) -> Obj:
        if subresource == "status":
            new = {**old, "status": new.get("status", {})}
        else:
            new["metadata"] = {
                **{key: value for key, value in new["metadata"].items() if key not in _SYSTEM_FIELDS},
                **{key: old["metadata"][key] for key in (*_SYSTEM_FIELDS, "resourceVersion") if key in old["metadata"]},
            }
            if resource.status:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = old["status"]
        new = self._admit(resource, new)
        if new == old:
            return old
        if _desired(new) != _desired(old):
            new["metadata"] = {**new["metadata"], "generation": old["metadata"]["generation"] + 1}
        held = new["metadata"].get("finalizers") or (resource == PODS and new.get("spec", {}).get("nodeName"))
        if new["metadata"].get("deletionTimestamp") and not held:
            return self._drop(resource, new)
        return self._commit(resource, "MODIFIED", new, old)

    def _admit(self, resource: Resource, obj: Obj) -> Obj:
        schema = self._schemas.get(resource)
        if schema is None:
            return obj
        done: Obj = {
            **completed(schema, {key: value for key, value in obj.items() if key != "metadata"}),
            "metadata": obj["metadata"],
        }
        wrong = [text for text in problems(schema, done) if not text.startswith("metadata")]
        if wrong:
            name = obj["metadata"]["name"]
            raise ApiError(422, "Invalid", f'{resource.kind}.{resource.group} "{name}" is invalid: {"; ".join(wrong)}')
        return done

    def _remove(self, resource: Resource, old: Obj, grace: int | None, propagation: str = "Background") -> None:
        metadata = old["metadata"]
        if propagation == "Orphan":
            self._orphan(metadata["uid"])
        waits = bool(metadata.get("finalizers"))
        if resource == PODS and old.get("spec", {}).get("nodeName"):
            running = old.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            waits = waits or (running and grace != 0)
        if not waits:
            self._drop(resource, old)
        elif not metadata.get("deletionTimestamp"):
            seconds = _POD_GRACE_SECONDS if resource == PODS else 0
            new = {
                **old,
                "metadata": {
                    **metadata,
                    "deletionTimestamp": self._timestamp(),
                    "deletionGracePeriodSeconds": seconds if grace is None else grace,
                    "generation": metadata["generation"] + 1,
                },
            }
            self._commit(resource, "MODIFIED", new, old)

    def _drop(self, resource: Resource, obj: Obj) -> Obj:
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        old = self._objects[resource].pop(key)
        self._owners.pop((resource, *key), None)
        gone = self._commit(resource, "DELETED", obj, old)
        if self.collect:
            self.collect_garbage()
        return gone

    def _orphan(self, uid: str) -> None:
        for resource, kind in self._objects.items():
            for old in list(kind.values()):
                references = old["metadata"].get("ownerReferences", [])
                kept = [reference for reference in references if reference["uid"] != uid]
                if kept != references:
                    new = {**old, "metadata": {**old["metadata"], "ownerReferences": kept}}
                    self._commit(resource, "MODIFIED", new, old)

    def _commit(self, resource: Resource, kind: str, new: Obj, old: Obj | None) -> Obj:
        self._version += 1
        new = {**new, "metadata": {**new["metadata"], "resourceVersion": str(self._version)}}
        if kind != "DELETED":
            self._objects[resource][new["metadata"].get("namespace", ""), new["metadata"]["name"]] = new
        change = _Change(self._version, resource, kind, new, old)
        if self._swallow.get(resource):
            self._swallow[resource] -= 1
            return new
        self._history.append(change)
        for watcher in self._watchers:
            watcher.offer(change)
        return new

    def _bookmark(self, resource: Resource) -> WatchEvent:
        return WatchEvent(
            "BOOKMARK",
            {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"resourceVersion": str(self._version)},
            },
        )

    def _timestamp(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _matcher(labels: str, fields: str) -> Callable[[Obj], bool]:
    by_label, by_field = label_matcher(labels), field_matcher(fields)
    return lambda obj: by_label(obj) and by_field(obj)


def _desired(obj: Obj) -> Obj:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}
