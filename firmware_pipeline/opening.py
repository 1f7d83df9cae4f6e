# SPDX-License-Identifier: Apache-2.0
"""Open what is stored: where it is, which digest it is, who signed it, what it holds. One image at a time is fetched."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmware_pipeline import artifact, config
from firmware_pipeline.artifact import ChipArtifact, Layer
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Descriptor, Index, malformed
from firmware_pipeline.plan import MAX_FILE_SIZE
from firmware_pipeline.reference import LAYOUT_PREFIX, Reference, layout_reference, parse_reference
from firmware_pipeline.store import ArtifactStore, Progress
from firmware_pipeline.together import ask_together

if TYPE_CHECKING:  # `cryptography` is loaded where something is signed or judged
    from firmware_pipeline.signing.keys import TrustedKey
    from firmware_pipeline.signing.policy import VerificationPolicy

DEFAULT_OPTIONS: Final = ClientOptions()


@dataclass(frozen=True, slots=True)
class VerifiedIndex:
    """An index whose signatures were judged. `signers` are the names of the trusted keys that signed it."""

    digest: str
    index: Index
    signers: tuple[str, ...]


def locate(text: str) -> Reference:
    """Read what a user typed: a reference, `oci:DIRECTORY`, or simply the path of a layout directory.

    Raises:
        PipelineError: ReferenceMalformed.
    """
    if not text.startswith(LAYOUT_PREFIX):
        with contextlib.suppress(PipelineError):
            found = layout_reference(text)
            if (Path(found.path) / "oci-layout").is_file():
                return found
    return parse_reference(text)


def open_store(
    reference: Reference | str, options: ClientOptions = DEFAULT_OPTIONS, *, push: bool = False, create: bool = False
) -> ArtifactStore:
    """The place a reference names. Nothing is sent yet.

    Args:
        reference: of a registry or a layout; tag and digest do not matter here.
        options: how to reach registries; see `ClientOptions`, `load_credentials`.
        push: things will be stored there.
        create: make the layout directory if there is none.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    if where.is_layout:
        return LayoutStore(Path(where.path), create=create)
    from firmware_pipeline.registry import RegistryStore  # takes 0.3 s to import, layouts do not need it

    store: ArtifactStore = RegistryStore(where, options, push=push)
    return store


def resolve(store: ArtifactStore, reference: Reference | str) -> str:
    """The digest that a reference means now. Do this once and keep the answer.

    A digest in the reference decides. A layout without tag and digest must hold exactly one artifact.

    Raises:
        PipelineError: ReferenceNotFound; ReferenceMalformed when neither tag nor digest is given; as the store.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    if where.digest:
        return where.digest
    if where.tag:
        return store.resolve(where.tag)
    if isinstance(store, LayoutStore):
        found = {digest for tag, digest in store.tags().items() if not tag.startswith("sha256-")}
        if len(found) == 1:
            return found.pop()
        problem = f"the layout holds {len(found)} artifacts ({', '.join(sorted(store.tags())) or 'no tags'})"
    else:
        problem = "it names neither a tag nor a digest"
    raise PipelineError(
        Reason.ReferenceMalformed, f"{where} does not say which artifact: {problem}.", "Add :TAG or @sha256:..."
    )


def moved_tags(store: ArtifactStore, tags: Sequence[str], digest: str) -> dict[str, str]:
    """Which of these tags name something else than `digest` now, and what.

    Raises:
        PipelineError: as the store.
    """
    found = {}
    for tag in tags:
        try:
            named = store.resolve(tag)
        except PipelineError as error:
            if error.reason is not Reason.ReferenceNotFound:
                raise
        else:
            if named != digest:
                found[tag] = named
    return found


def verify(store: ArtifactStore, digest: str, keys: "Sequence[TrustedKey]", threshold: int = 1) -> VerifiedIndex:
    """Judge the signatures of an index, then read it.

    Args:
        store: where it is.
        digest: the pinned digest.
        keys: whose signatures count; see `load_trusted_key`.
        threshold: how many distinct keys must have signed.

    Raises:
        PipelineError: SignersNotConfigured, UnsignedArtifact, SignatureInvalid, SignatureThreshold; as `open_index`.
    """
    from firmware_pipeline.signing.policy import VerificationPolicy

    return verify_policy(store, digest, VerificationPolicy(keys, threshold))


def verify_policy(store: ArtifactStore, digest: str, policy: "VerificationPolicy") -> VerifiedIndex:
    """Judge an index by everything a policy demands, then read it.

    Args:
        store: where it is.
        digest: the pinned digest.
        policy: who must have signed, and what must be attached.

    Raises:
        PipelineError: the reasons of `signing.policy.judge`; as `open_index`.
    """
    from firmware_pipeline.signing.verify import verify as judge_artifact

    judgement = judge_artifact(store, digest, policy)
    return VerifiedIndex(digest, open_index(store, digest), judgement.signers)


def open_index(store: ArtifactStore, digest: str) -> Index:
    """Read an index by its digest, signatures aside.

    Raises:
        PipelineError: ArtifactMalformed, DigestMismatch; as the store.
    """
    return artifact.read_index(store.get_manifest(digest).raw, digest)


def open_chip(store: ArtifactStore, index_digest: str, chip: str, facts: HardwareFacts | None = None) -> ChipArtifact:
    """Everything about one chip's firmware but the images, by way of the index.

    Args:
        facts: what is known of the device, where the chip may have several builds with different features.

    Raises:
        PipelineError: PlatformMissing, PlatformAmbiguous, WrongChip, ArtifactMalformed, ConfigMalformed, ReleaseInvalid;
            as the store.
    """
    return _open_entry(store, artifact.find_chip(open_index(store, index_digest), chip, facts), chip)


def open_chips(store: ArtifactStore, index: Index) -> list[tuple[Descriptor, ChipArtifact]]:
    """Every entry of an index with what it holds, sorted by platform; a chip has several where features differ.

    Raises:
        PipelineError: as `open_chip`.
    """
    entries = [
        (entry, entry.platform.variant) for entry in index.manifests if entry.platform and entry.platform.variant
    ]
    opened = ask_together(lambda pair: _open_entry(store, *pair), entries)
    found = [(entry, chip) for (entry, _), chip in zip(entries, opened, strict=True)]
    return sorted(found, key=lambda pair: (pair[1].target, pair[1].config.features))


def _open_entry(store: ArtifactStore, entry: Descriptor, chip: str) -> ChipArtifact:
    opened = open_manifest(store, entry.digest, chip, size=entry.size)
    artifact.check_entry(entry, opened.config)
    return opened


def open_manifest(store: ArtifactStore, manifest_digest: str, chip: str, *, size: int | None = None) -> ChipArtifact:
    """The same from a pinned manifest digest: what a flashing pod does.

    Args:
        store: where it is.
        manifest_digest: pinned by index or FlashTask.
        chip: what the firmware must be for.
        size: bytes that the index names, if known.

    Raises:
        PipelineError: as `open_chip`.
    """
    raw = store.get_manifest(manifest_digest).raw
    if size is not None and len(raw) != size:
        raise malformed(f"The manifest {manifest_digest}", f"it has {len(raw)} bytes, its index says {size}")
    found = artifact.read_manifest(raw, manifest_digest)
    config_bytes = store.read_blob(found.manifest.config, max_bytes=config.MAX_CONFIG_SIZE)
    statement = store.read_blob(found.release, max_bytes=artifact.MAX_RELEASE_BYTES) if found.release else None
    opened = artifact.read_chip(found, config_bytes, chip, statement)
    if statement is not None:
        from firmware_pipeline.signing.release import read_sequence

        read_sequence(statement, opened.config)
    return opened


def fetch_layer(store: ArtifactStore, layer: Layer, path: Path, progress: Progress | None = None) -> Path:
    """Fetch one image into `path`, which appears checked and complete, or not at all.

    Args:
        progress: called as progress(bytes done, bytes in total).

    Raises:
        PipelineError: DigestMismatch, SizeMismatch, StorageFailed; as the store.
    """
    store.save_blob(layer.descriptor, path, progress)
    return path


def read_layer(store: ArtifactStore, layer: Layer) -> bytes:
    """Fetch one image into memory.

    Raises:
        PipelineError: as `fetch_layer`; TooLarge beyond the largest flash chip.
    """
    return store.read_blob(layer.descriptor, max_bytes=MAX_FILE_SIZE)
