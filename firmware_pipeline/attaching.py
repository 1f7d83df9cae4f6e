# SPDX-License-Identifier: Apache-2.0
"""What is attached to a release, and to which parts of it.

SBOM          to the chip it is for, or to the index when it is for all.
provenance    one statement about the index and every chip's manifest, attached to each of them, so that whoever
              pins one chip finds it too.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from firmware_pipeline import artifact, config
from firmware_pipeline.attachments import Document, attach
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import normalise_target
from firmware_pipeline.oci import INDEX_TYPE, Descriptor
from firmware_pipeline.opening import open_index
from firmware_pipeline.provenance import make_provenance
from firmware_pipeline.pushing import Attach
from firmware_pipeline.reference import LAYOUT_PREFIX
from firmware_pipeline.signing.keys import Signer
from firmware_pipeline.store import ArtifactStore

ALL_CHIPS: Final = ""


def attaching(
    sboms: Sequence[tuple[str, Document]], builder: str | None, environment: Mapping[str, str], signer: Signer | None
) -> Attach:
    """What `push` and `index` are to attach before a tag moves.

    Args:
        sboms: (chip or `ALL_CHIPS`, document).
        builder: URI of the builder; makes provenance. None makes none.
        environment: of the process, for provenance.
        signer: signs both; None attaches them unsigned.
    """

    def run(store: ArtifactStore, top: Descriptor, entries: Sequence[Descriptor]) -> None:
        configs = [read_config(store, entry) for entry in entries]
        identity = identity_of(store, configs)
        for chip, document in sboms:
            subjects = [top] if chip == ALL_CHIPS else entries_of(entries, chip)
            attach(store, subjects, document, signer, identity)
        if builder is not None:
            attach(store, [*entries, top], make_provenance(configs, builder, environment), signer, identity)

    return run


def parts(store: ArtifactStore, digest: str, chip: str | None) -> tuple[list[Descriptor], str]:
    """What stands behind a digest: (manifests of its chips, then the index itself; or those of one chip, or the one
    manifest that the digest names), and the identity to record.

    Raises:
        PipelineError: PlatformMissing, ArtifactMalformed; as the store.
    """
    found = store.get_manifest(digest)
    top = Descriptor(media_type=found.media_type, digest=digest, size=len(found.raw))
    if found.media_type != INDEX_TYPE:
        artifact.read_manifest(found.raw, digest)
        return [top], identity_of(store, [read_config(store, top)])
    entries = [entry for entry in open_index(store, digest).manifests if entry.platform and entry.platform.variant]
    identity = identity_of(store, [read_config(store, entry) for entry in entries[:1]])
    return (entries_of(entries, chip) if chip else [*entries, top]), identity


def entries_of(entries: Sequence[Descriptor], chip: str) -> list[Descriptor]:
    """The manifests of a chip.

    Raises:
        PipelineError: PlatformMissing.
    """
    target = normalise_target(chip)
    found = [entry for entry in entries if entry.platform and entry.platform.variant == target]
    if not found:
        there = ", ".join(sorted({e.platform.variant for e in entries if e.platform and e.platform.variant}))
        raise PipelineError(
            Reason.PlatformMissing,
            f"The artifact holds nothing for {target}; it holds: {there or 'no chip at all'}.",
            "Name one of its chips.",
        )
    return found


def identity_of(store: ArtifactStore, configs: Sequence[FirmwareConfig]) -> str:
    """The repository's name; a directory has none that means anything elsewhere, so there the application's."""
    if store.name.startswith(LAYOUT_PREFIX) and configs:
        return configs[0].app.project_name
    return store.name


def read_config(store: ArtifactStore, entry: Descriptor) -> FirmwareConfig:
    """The config of a chip's manifest.

    Raises:
        PipelineError: ArtifactMalformed, ConfigMalformed; as the store.
    """
    manifest = artifact.read_manifest(store.get_manifest(entry.digest).raw, entry.digest).manifest
    return config.loads(store.read_blob(manifest.config, max_bytes=config.MAX_CONFIG_SIZE))
