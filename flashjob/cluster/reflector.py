# SPDX-License-Identifier: Apache-2.0
"""A cache of one collection that never misses a deletion, and says when it changed.

Rules (tests name them):

1. List in pages, compare with the cache, report what came, changed and went (deletions are synthesised), only then be
   `synced`; then watch from the list's version, with bookmarks.
2. The server's "too old" (410, in the stream, at the start of a watch, or between pages) and any other ERROR lead to a
   new list. The cache stays readable meanwhile.
3. Where no answer came, or the server is overloaded, go on from the last version after a jittered backoff.
4. An event that is older than what is cached changes nothing. One that is older than the stream, of an object not
   cached so new, means that the stream cannot be trusted: a new list.
5. A change is reported only where the projection changed; a new uid under an old name is a deletion, then an addition.
6. An object that the projection cannot read is not cached and is named in `unreadable`: one bad object must not end the
   process that watches all.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, ItemsView, ValuesView
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from .kubeapi import ApiError, KubeApi, WatchEvent
from .resources import Obj, Resource

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace and name."""
OnChange = Callable[[Key, T | None, T | None], None]
"""Called with key, what was cached before (None: it is new) and what is now (None: it is gone)."""

_FIRST_BACKOFF_SECONDS: Final = 0.2
_LAST_BACKOFF_SECONDS: Final = 30.0
_SHORT_WATCH_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    uid: str
    version: str


class _Untrusted(Exception):
    """Rule 4: list again."""


class Reflector(Generic[T]):
    """Keeps projections of all objects of one collection. Run `run()` as a task; read at any time.

    Args:
        api: where from.
        resource: the collection.
        namespace: "" for all.
        project: makes what is kept of an object, small; pure; may raise ValueError for an object it cannot read.
        label_selector, field_selector: narrow the collection at the server.
        on_change: called for each change, in the event loop; it must be quick and must not raise.
        random_source: of the backoff's jitter.
        sleep: how to wait.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        namespace: str = "",
        *,
        project: Callable[[Obj], T],
        label_selector: str = "",
        field_selector: str = "",
        on_change: OnChange[T] | None = None,
        random_source: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.unreadable: dict[Key, str] = {}
        self.last_error: ApiError | None = None
        self.lists = 0
        self._api = api
        self._namespace = namespace
        self._project = project
        self._labels, self._fields = label_selector, field_selector
        self._listeners: list[OnChange[T]] = [on_change] if on_change else []
        self._random = random_source or random.Random()  # noqa: S311 - jitter, not secrecy
        self._sleep = sleep
        self._values: dict[Key, T] = {}
        self._seen: dict[Key, _Seen] = {}
        self._version: str | None = None
        self._failures = 0
        self._heard: float | None = None

    # Reading

    def get(self, namespace: str, name: str) -> T | None:
        """What is kept of one object, or None."""
        return self._values.get((namespace, name))

    def items(self) -> ItemsView[Key, T]:
        """All, by (namespace, name). Copy before awaiting."""
        return self._values.items()

    def values(self) -> ValuesView[T]:
        """All. Copy before awaiting."""
        return self._values.values()

    def __len__(self) -> int:
        return len(self._values)

    def subscribe(self, on_change: OnChange[T]) -> None:
        """Report changes from now on to one more listener."""
        self._listeners.append(on_change)

    def age(self, now: float) -> float:
        """Seconds since the server was last heard, in the event loop's time; infinite before the first list.

        A healthy watch has a bookmark about every minute; 120 s mean deafness.
        """
        return float("inf") if self._heard is None else now - self._heard

    # Keeping up

    async def run(self) -> None:
        """Keep up until cancelled."""
        while True:
            started = asyncio.get_running_loop().time()
            try:
                if self._version is None:
                    await self._list()
                heard = await self._watch()
            except _Untrusted:
                self._version = None
                await self._back_off(None)
            except ApiError as error:
                if self.last_error is None and not error.gone:
                    _log.warning("%s: %s", self.resource, error)
                self.last_error = error
                if error.status not in (0, 429):
                    self._version = None
                await self._back_off(error)
            else:
                if not heard and asyncio.get_running_loop().time() - started < _SHORT_WATCH_SECONDS:
                    await self._back_off(None)

    async def _list(self) -> None:
        found: dict[Key, Obj] = {}
        version = ""
        stream = self._api.list_pages(
            self.resource, self._namespace, label_selector=self._labels, field_selector=self._fields
        )
        async with aclosing(stream) as pages:
            async for page in pages:
                version = page.resource_version
                for obj in page.items:
                    found[_key(obj)] = obj
        for key in [key for key in self._seen if key not in found]:
            self._forget(key)
        for key, obj in found.items():
            self._keep(key, obj)
        self._version = version
        self.lists += 1
        self._hear()
        self.synced.set()

    async def _watch(self) -> bool:
        """Follow one watch to its end; returns whether anything was heard."""
        heard = False
        stream = self._api.watch(
            self.resource,
            self._namespace,
            resource_version=self._version or "",
            label_selector=self._labels,
            field_selector=self._fields,
        )
        async with aclosing(stream) as events:
            async for event in events:
                heard = True
                self._take(event)
                self._hear()
                self._failures = 0
        return heard

    def _take(self, event: WatchEvent) -> None:
        version = str(event.object.get("metadata", {}).get("resourceVersion", ""))
        if event.type != "BOOKMARK":
            key = _key(event.object)
            if not _newer(version, self._version or ""):
                seen = self._seen.get(key)
                if seen is None or _newer(version, seen.version):
                    raise _Untrusted
                return
            if event.type == "DELETED":
                self._forget(key)
            else:
                self._keep(key, event.object)
        self._version = version

    def _keep(self, key: Key, obj: Obj) -> None:
        metadata = obj["metadata"]
        seen = self._seen.get(key)
        if seen is not None and seen.uid != metadata.get("uid", ""):
            self._forget(key)
        elif seen is not None and seen.version == metadata.get("resourceVersion", ""):
            return
        self._seen[key] = _Seen(metadata.get("uid", ""), str(metadata.get("resourceVersion", "")))
        old = self._values.get(key)
        try:
            new = self._project(obj)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if self.unreadable.get(key) != str(error):
                _log.warning("%s %s/%s cannot be read and is left out: %s", self.resource.kind, *key, error)
            self.unreadable[key] = str(error)
            if self._values.pop(key, None) is not None:
                self._report(key, old, None)
            return
        self.unreadable.pop(key, None)
        self._values[key] = new
        if old is None or old != new:
            self._report(key, old, new)

    def _forget(self, key: Key) -> None:
        if self._seen.pop(key, None) is None:
            return
        self.unreadable.pop(key, None)
        old = self._values.pop(key, None)
        if old is not None:
            self._report(key, old, None)

    def _report(self, key: Key, old: T | None, new: T | None) -> None:
        for listener in self._listeners:
            listener(key, old, new)

    def _hear(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        self.last_error = None

    async def _back_off(self, error: ApiError | None) -> None:
        """Rule 3; the first "too old" is answered at once."""
        self._failures += 1
        if error is not None and error.gone and self._failures == 1:
            return
        longest = min(_LAST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** min(self._failures, 16))
        wait = self._random.uniform(longest / 2, longest)
        if error is not None and error.retry_after is not None:
            wait = max(wait, min(error.retry_after, _LAST_BACKOFF_SECONDS))
        await self._sleep(wait)


def _key(obj: Obj) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _newer(version: str, than: str) -> bool:
    """Whether a resource version is later; versions that are no numbers cannot be compared and pass."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return True
