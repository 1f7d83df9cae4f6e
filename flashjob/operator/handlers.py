# SPDX-License-Identifier: Apache-2.0
"""kopf on FlashJobs: process frame, login, finalizer. No decision is made here; handlers only wake the controller."""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from flashjob.api.meta import FINALIZER, GROUP, VERSION
from flashjob.planning.state import Key

KIND = (GROUP, VERSION, "flashjobs")


def registry(
    wake: Callable[[Key], None],
    drained: Callable[[str], Awaitable[None]],
    login: Callable[[], Awaitable[Configuration]],
) -> kopf.OperatorRegistry:
    """The handlers, in a registry of their own.

    Args:
        wake: queue a job.
        drained: wait until the deleted job of this UID has nothing under way.
        login: where the API server is and who we are, asked again when credentials expire.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def _login(**_: Any) -> kopf.ConnectionInfo:
        return connection(await login())

    @kopf.on.event(*KIND, registry=handlers)
    async def _changed(namespace: str | None, name: str | None, **_: Any) -> None:
        wake((namespace or "", name or ""))

    @kopf.on.delete(*KIND, registry=handlers)
    async def _deleted(namespace: str | None, name: str | None, uid: str | None, **_: Any) -> None:
        wake((namespace or "", name or ""))
        await drained(uid or "")

    return handlers


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf shall not keep a copy of each spec in an annotation: no handler of ours asks what changed."""

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


def settings() -> kopf.OperatorSettings:
    """kopf as we use it: nothing scanned, nothing posted, nothing kept on the object but the finalizer."""
    made = kopf.OperatorSettings()
    made.persistence.finalizer = FINALIZER
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    made.persistence.diffbase_storage = _NoDiffBase()
    made.scanning.disabled = True
    made.watching.server_timeout = 300
    made.watching.connect_timeout = 10
    made.watching.chunk_size = 200
    made.queueing.idle_timeout = 0.2
    made.networking.request_timeout = 30
    made.networking.error_backoffs = [1, 2, 4, 8]
    made.posting.enabled = False
    made.process.ultimate_exiting_timeout = 25
    return made


def connection(found: Configuration) -> kopf.ConnectionInfo:
    """The same identity as our own client's, in kopf's words."""
    bearer = found.api_key.get("BearerToken", "")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert or None,
        ca_data=found.ca_cert_data or None,
        token=bearer.removeprefix("Bearer ") or None,
        certificate_path=found.cert_file or None,
        private_key_path=found.key_file or None,
    )
