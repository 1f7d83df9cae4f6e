# SPDX-License-Identifier: Apache-2.0
"""What this project asks of an API server, as one small protocol over raw JSON.

`aio.AioKubeApi` speaks to a real one, `fake.FakeCluster` is one in memory; the same conformance test runs against both.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from flashjob.errors import FlashJobError

from .resources import Obj, Resource

PAGE: Final = 200
"""Objects per page: at 2 KB each, a page is decoded without stalling the event loop."""
WATCH_SECONDS: Final = 300


class ApiError(FlashJobError):
    """The API server refused a request, or could not be reached.

    Args:
        status: HTTP status; 0 where no answer came.
        reason: the reason of the Status object (`NotFound`, `AlreadyExists`, `Conflict`, `Invalid`, `Expired`, ...);
            `Unreachable` where no answer came.
        message: what was asked, and the server's own words.
        retry_after: seconds the server asks to wait, if it does.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(reason, message, _next_step(status))
        self.status = status
        self.retry_after = retry_after

    @property
    def not_found(self) -> bool:
        """There is no such object, or no such collection."""
        return self.status == 404

    @property
    def already_exists(self) -> bool:
        """A create met an object of this name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Somebody else wrote first, or a precondition does not hold: read again, decide again."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def gone(self) -> bool:
        """The resource version or page token is too old: list again."""
        return self.status == 410 or self.reason in ("Gone", "Expired")

    @property
    def transient(self) -> bool:
        """The same request may succeed later."""
        return self.status in (0, 408, 429) or self.status >= 500


def _next_step(status: int) -> str:
    match status:
        case 0:
            return "check that the API server runs and can be reached from here"
        case 401:
            return "check the credentials"
        case 403:
            return "grant this right, or use an identity that has it"
        case 400 | 422:
            return "correct the object; the message names the field"
        case 429:
            return "wait; the API server is overloaded"
        case _ if status >= 500:
            return "see the API server's log"
        case _:
            return ""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list. `resource_version` is that of the whole list, the point a watch starts from."""

    items: Sequence[Obj]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK. An ERROR is raised as ApiError, never delivered."""

    type: str
    object: Obj


@dataclass(frozen=True, slots=True)
class Token:
    """A ServiceAccount token and when it ends (RFC 3339)."""

    token: str
    expires: str


class KubeApi(Protocol):
    """Every method raises ApiError and nothing else; every answer is the object as stored, in raw JSON.

    `namespace` is "" for cluster-scoped objects, and in lists and watches for all namespaces.
    """

    def list_pages(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = PAGE,
    ) -> AsyncGenerator[Page, None]:
        """Every object of a collection, in pages; ApiError.gone when the list outlives its page token."""
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = WATCH_SECONDS,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `resource_version`, with bookmarks, until the server ends the stream."""
        ...

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        """One object."""
        ...

    async def create(self, resource: Resource, namespace: str, obj: Obj) -> Obj:
        """Create; ApiError.already_exists where the name is taken."""
        ...

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
        """Server-side apply of exactly the fields in `obj`; ApiError.conflict where another manager owns one of them."""
        ...

    async def replace(self, resource: Resource, namespace: str, obj: Obj, *, subresource: str = "") -> Obj:
        """PUT; `obj` carries the resourceVersion it was read at, and ApiError.conflict says that it is outdated."""
        ...

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Obj, *, field_manager: str) -> Obj:
        """JSON merge patch (RFC 7386) of the main resource; a `metadata.resourceVersion` in it is a precondition."""
        ...

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
        """JSON merge patch of the status; with `resource_version`, only if nobody wrote since (else ApiError.conflict)."""
        ...

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
        """Delete; `uid` and `resource_version` are preconditions (else ApiError.conflict)."""
        ...

    async def token_request(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        seconds: int = 600,
        pod: tuple[str, str] | None = None,
    ) -> Token:
        """A token of a ServiceAccount for these audiences, bound to a pod (name, uid) if one is given."""
        ...

    async def get_raw(self, path: str) -> Any:
        """Any other JSON document of the server, as /openid/v1/jwks or /version."""
        ...

    async def close(self) -> None:
        """Give up connections; nothing can be asked afterwards."""
        ...


async def list_all(
    api: KubeApi, resource: Resource, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
) -> list[Obj]:
    """The whole of a collection that is known to be small."""
    return [
        obj
        async for page in api.list_pages(
            resource, namespace, label_selector=label_selector, field_selector=field_selector
        )
        for obj in page.items
    ]
