# SPDX-License-Identifier: Apache-2.0
"""Fetches what one target pins, and nothing that it does not pin. Synchronous: run it in a thread.

Rules (tests name them):

1. Manifest, config and application layer are asked for by the target's digests; a config or layer with another digest
   than the target's is ArtifactInvalid, even if the manifest names it.
2. A node cache and a mirror, where the environment names them, are asked before the registry; every byte of theirs is
   compared with its digest like the registry's own. A mirror that fails is passed over.
3. A registry that cannot be reached, and a digest it does not know, are reasons of their own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from firmware_pipeline import api
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.cached_store import CachedStore, MirroredStore, mirror_store
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.store import ArtifactStore, Progress
from flashjob.flasher.run import Firmware
from flashjob.flasher.transports.base import problem
from flashjob.pipeline_reasons import artifact_error
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

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


def fetch(store: ArtifactStore, target: Target, work_dir: Path, progress: Progress | None = None) -> Firmware:
    """Fetch and check by rules 1 and 3.

    Args:
        store: the target's repository.
        work_dir: an existing directory; the layer is kept there.
        progress: called as progress(bytes done, bytes in total).

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
        path = work_dir / f"{target.image_digest.removeprefix('sha256:')}.bin"
        api.fetch_layer(store, chip.app, path, progress)
        return Firmware(chip.config, path.read_bytes(), chip.release_statement)
    except PipelineError as error:
        raise artifact_error(error) from error
