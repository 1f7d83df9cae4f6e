# SPDX-License-Identifier: Apache-2.0
"""Fetches what one target pins, and nothing that it does not pin.

Rules (tests name them):

1. Manifest, config and application layer are asked for by the target's digests; a config or layer with another digest
   than the target's is ArtifactInvalid, even if the manifest names it.
2. A node cache and a mirror, where the environment names them, are asked before the registry; every byte of theirs is
   compared with its digest like the registry's own. A mirror that fails is passed over.
3. A registry that cannot be reached, and a digest it does not know, are reasons of their own.
4. A pod fetches each target once, in a thread, and waits for it no longer than each assignment's fetch_seconds.
5. Images beside the application are fetched only where the job permits to write them; the pinned manifest and config,
   which must agree, give their digests.
6. A delta starts from an artifact that the device was proven to run. Whatever keeps it from being made is no failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from attestation.device_protocol import Info
from firmware_pipeline import api
from firmware_pipeline.artifact import Layer
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore, MirroredStore, mirror_store
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.plan import Role
from firmware_pipeline.store import ArtifactStore, Progress
from flashjob.errors import FlashJobError
from flashjob.flasher import delta
from flashjob.flasher.content import permitted
from flashjob.flasher.delta import Delta
from flashjob.flasher.run import Firmware
from flashjob.flasher.transports.base import problem
from flashjob.pipeline_reasons import artifact_error
from flashjob.wire import pod
from flashjob.wire.pod import Assignment, Base
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

_T = TypeVar("_T")
log: Final = logging.getLogger(__name__)


def nearest(store: ArtifactStore, target: Target, cache_dir: str | None, mirror: str | None) -> ArtifactStore:
    """The registry's store behind what is nearer (rule 2).

    Args:
        store: the target's repository.
        target: whose repository a mirror is asked for.
        cache_dir: path of a node cache, or None.
        mirror: URL, or None.

    Raises:
        FlashJobError: InternalError for a mirror's URL or a cache that cannot be used.
    """
    try:
        if mirror:
            store = MirroredStore(store, mirror_store(mirror, target.repository))
        return CachedStore(store, BlobCache(Path(cache_dir)), note=log.info) if cache_dir else store
    except PipelineError as error:
        raise problem(Reason.INTERNAL_ERROR, error.message) from error


def fetch(
    store: ArtifactStore,
    target: Target,
    work_dir: Path,
    progress: Progress | None = None,
    *,
    roles: frozenset[Role] = frozenset(),
) -> Firmware:
    """Fetch and check by rules 1, 3 and 5. Synchronous.

    Args:
        store: the target's repository.
        work_dir: an existing directory; the layers are kept there.
        progress: of the application's layer, called as progress(bytes done, bytes in total).
        roles: of images to be fetched beside the application, where the artifact has them.

    Raises:
        FlashJobError: with a wire reason; ArtifactInvalid for all that has no other.
    """
    try:
        chip = api.open_manifest(store, target.manifest_digest, target.chip)
        pinned = {
            "config": (target.config_digest, chip.config_digest),
            "application layer": (target.image_digest, chip.app.descriptor.digest),
            "release statement": (target.release_digest, chip.release_digest),
        }
        for what, (wanted, found) in pinned.items():
            if wanted != found:
                message = f"the manifest names {what} {found}, the task pins {wanted}"
                raise problem(Reason.ARTIFACT_INVALID, message)
        image = _bytes(store, chip.app, work_dir, progress)
        others = [layer for layer in chip.layers if layer.image.role in roles]
        extras = tuple((layer.image, _bytes(store, layer, work_dir)) for layer in others)
        return Firmware(chip.config, image, chip.release_statement, extras)
    except PipelineError as error:
        raise artifact_error(error) from error


def _bytes(store: ArtifactStore, layer: Layer, work_dir: Path, progress: Progress | None = None) -> bytes:
    path = work_dir / f"{layer.image.digest.removeprefix('sha256:')}.bin"
    api.fetch_layer(store, layer, path, progress)
    return path.read_bytes()


def _in_thread(work: Callable[[], _T]) -> Future[_T]:
    """In a thread that nobody waits for at the end: a registry that hangs does not keep the pod from ending."""
    done: Future[_T] = Future()

    def carry_out() -> None:
        try:
            done.set_result(work())
        except (FlashJobError, PipelineError, OSError, ValueError) as error:
            done.set_exception(error)

    Thread(target=copy_context().run, args=(carry_out,), name="fetch", daemon=True).start()
    return done


class Fetcher:
    """Fetches each target once, however many devices of the pod want it (rule 4)."""

    def __init__(self, work_dir: Path, environment: Mapping[str, str]) -> None:
        self._work_dir, self._environment = work_dir, environment
        self._running: dict[tuple[str, frozenset[Role]], asyncio.Future[Firmware]] = {}
        self._deltas: dict[tuple[str, str], Future[tuple[frozenset[tuple[int, bytes]], bytes] | None]] = {}

    async def get(self, assignment: Assignment) -> Firmware:
        """The firmware of an assignment. Raises FlashJobError; FetchTimeout after the assignment's fetch_seconds."""
        target, seconds = assignment.target, assignment.timeouts.fetch_seconds
        roles = permitted(assignment.safety, assignment.transport)
        running = self._running.get((target.manifest_digest, roles))
        if running is None:
            running = asyncio.wrap_future(_in_thread(lambda: self._fetch(target, roles)))
            self._running[target.manifest_digest, roles] = running
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(running)
        except TimeoutError as error:
            raise problem(Reason.FETCH_TIMEOUT, f"{target.repository}: not fetched after {seconds} s") from error

    async def delta(self, assignment: Assignment, info: Info) -> Delta | None:
        """A delta to the target from what the device says that it runs (rule 6); made once for all that run the same."""
        base, target = assignment.base, assignment.target
        if base is None or not delta.available():
            return None
        key = (base.index_digest, target.manifest_digest)
        making = self._deltas.get(key)
        if making is None:
            making = _in_thread(lambda: self._delta(base, target))
            self._deltas[key] = making
        try:
            async with asyncio.timeout(assignment.timeouts.fetch_seconds):
                made = await asyncio.shield(asyncio.wrap_future(making))
        except (FlashJobError, PipelineError, OSError, ValueError) as error:
            log.warning("no delta: %s", error)
            return None
        runs = (info.measurement.alg, info.measurement.value)
        if made is None or runs not in made[0]:
            log.info("no delta: %s", "it does not pay" if made is None else "the device runs another image")
            return None
        return Delta(runs, made[1])

    def _delta(self, base: Base, target: Target) -> tuple[frozenset[tuple[int, bytes]], bytes] | None:
        store = self._store(base.repository, base.index_digest, target.plain_http)
        near = nearest(store, target, self._environment.get(pod.ENV_CACHE_DIR), None)
        chip = api.open_chip(near, base.index_digest, target.chip)
        old = self._work_dir / f"{chip.app.descriptor.digest.removeprefix('sha256:')}.bin"
        api.fetch_layer(near, chip.app, old)
        new = self._work_dir / f"{target.image_digest.removeprefix('sha256:')}.bin"
        payload = delta.make(old.read_bytes(), new.read_bytes())
        known = frozenset((m.alg, bytes.fromhex(m.value)) for m in chip.config.measurements)
        return (known, payload) if payload is not None else None

    def _store(self, repository: str, digest: str, plain_http: bool) -> ArtifactStore:
        try:
            credentials = load_credentials(self._environment)
            options = api.ClientOptions(credentials=credentials, plain_http=plain_http)
            return api.open_store(f"{repository}@{digest}", options)
        except PipelineError as error:
            raise FlashJobError(Reason.REGISTRY_UNAUTHORIZED.value, error.message, error.next_step) from error

    def _fetch(self, target: Target, roles: frozenset[Role]) -> Firmware:
        store = self._store(target.repository, target.index_digest, target.plain_http)
        near = nearest(store, target, self._environment.get(pod.ENV_CACHE_DIR), self._environment.get(pod.ENV_MIRROR))
        return fetch(near, target, self._work_dir, roles=roles)
