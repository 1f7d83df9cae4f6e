# SPDX-License-Identifier: Apache-2.0
"""The library: push, resolve, verify, open, fetch. Operator, flasher and CLI use these and nothing beside them.

    pushed = push(plans, "registry.example/porch:2.1.0", signer=..., release_key=..., sequence=21)

    store = open_store("registry.example/porch:2.1.0", options)
    digest = resolve(store, reference)                       # once; pin it
    verified = verify(store, digest, keys, threshold=1)      # signatures, then the index
    chip = open_chip(store, digest, "esp32s3")               # manifest, config, release statement
    fetch_layer(store, chip.app, path, progress)             # one image, checked

Synchronous; stores may be used from several threads. Every function raises PipelineError with a stable reason.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_pipeline import artifact, config
from firmware_pipeline.artifact import ChipArtifact, Layer, PackedChip
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index, malformed
from firmware_pipeline.plan import MAX_FILE_SIZE, BuildPlan
from firmware_pipeline.reference import LAYOUT_PREFIX, Reference, check_tag, layout_reference, parse_reference
from firmware_pipeline.signing.keys import Signer, TrustedKey
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.signing.release import ReleaseKey, mint_release, read_sequence
from firmware_pipeline.signing.sign import sign
from firmware_pipeline.signing.verify import verify as judge_artifact
from firmware_pipeline.store import ArtifactStore, Progress

DEFAULT_OPTIONS: Final = ClientOptions()
PushProgress = Callable[[str, int, int], None]
"""Called as progress(what, bytes done, bytes in total)."""


@dataclass(frozen=True, slots=True)
class Release:
    """What makes a push a release: the owner's offline key, and a number that only grows."""

    key: ReleaseKey
    sequence: int


@dataclass(frozen=True, slots=True)
class PushedChip:
    """One chip of a pushed artifact."""

    target: str
    manifest_digest: str
    config_digest: str
    release_digest: str | None


@dataclass(frozen=True, slots=True)
class Pushed:
    """A stored artifact.

    Attributes:
        reference: pinned by digest; what a FlashJob should name.
        tags: the tags that now name it.
        size: bytes of all distinct blobs and manifests.
    """

    reference: Reference
    index_digest: str
    chips: tuple[PushedChip, ...]
    tags: tuple[str, ...]
    signed: bool
    size: int


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


def push(
    plans: Sequence[BuildPlan],
    reference: Reference | str,
    *,
    signer: Signer | None,
    release: Release | None,
    options: ClientOptions = DEFAULT_OPTIONS,
    store: ArtifactStore | None = None,
    also_tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    identity: str | None = None,
    progress: PushProgress | None = None,
) -> Pushed:
    """Store one release for several chips, sign it, and only then let tags name it.

    Order: blobs, manifests, index by digest, signatures of index and manifests, tags. Whatever fails, no tag ever names
    something incomplete or unsigned.

    Args:
        plans: one checked build per chip.
        reference: where to; its tag is set last. Without a tag only the digest names the artifact.
        signer: signs index and manifests; None leaves the artifact unsigned, and no policy will accept it.
        release: mints release statements; None leaves them out, and devices take no install without one.
        options: how to reach the registry.
        store: an open store to use instead of opening one.
        also_tags: further tags.
        annotations: for the index.
        identity: recorded in signatures; the repository's name if None, for a layout the application's.
        progress: called while blobs are sent.

    Raises:
        PipelineError: InputDisagrees, InputMissing, ReleaseInvalid, ReferenceMalformed, and as the store.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    if where.digest:
        raise PipelineError(
            Reason.ReferenceMalformed,
            f"{where} names a digest, but what is pushed decides its digest itself.",
            "Push to HOST/REPOSITORY:TAG; the digest is printed.",
        )
    tags = tuple(dict.fromkeys(check_tag(tag) for tag in (where.tag, *also_tags) if tag))
    chips = [_pack(plan, release) for plan in plans]
    index = artifact.pack_index(plans, chips, annotations)
    store = store or open_store(where, options, push=True, create=True)
    blobs = {blob.digest: (title, blob) for chip in chips for title, blob in chip.blobs}
    for title, blob in blobs.values():
        store.put_blob(blob, _named(progress, title))
    for chip in chips:
        store.put_manifest(chip.manifest, MANIFEST_TYPE)
    index_digest = store.put_manifest(index, INDEX_TYPE)
    if signer is not None:
        name = identity or (plans[0].app.project_name if where.is_layout else store.name)
        top = Descriptor(media_type=INDEX_TYPE, digest=index_digest, size=len(index))
        for subject in [*(chip.descriptor for chip in chips), top]:
            sign(store, subject, signer, name)
    for tag in tags:
        store.put_manifest(index, INDEX_TYPE, tag=tag)
    return Pushed(
        reference=where.at(index_digest),
        index_digest=index_digest,
        chips=tuple(_pushed(chip) for chip in sorted(chips, key=lambda chip: chip.target)),
        tags=tags,
        signed=signer is not None,
        size=sum(blob.size for _, blob in blobs.values()) + sum(len(chip.manifest) for chip in chips) + len(index),
    )


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


def verify(store: ArtifactStore, digest: str, keys: Sequence[TrustedKey], threshold: int = 1) -> VerifiedIndex:
    """Judge the signatures of an index, then read it.

    Args:
        store: where it is.
        digest: the pinned digest.
        keys: whose signatures count; see `load_trusted_key`.
        threshold: how many distinct keys must have signed.

    Raises:
        PipelineError: SignersNotConfigured, UnsignedArtifact, SignatureInvalid, SignatureThreshold; as `open_index`.
    """
    return verify_policy(store, digest, VerificationPolicy(keys, threshold))


def verify_policy(store: ArtifactStore, digest: str, policy: VerificationPolicy) -> VerifiedIndex:
    """Judge an index by everything a policy demands, then read it.

    Args:
        store: where it is.
        digest: the pinned digest.
        policy: who must have signed, and what must be attached.

    Raises:
        PipelineError: the reasons of `signing.policy.judge`; as `open_index`.
    """
    judgement = judge_artifact(store, digest, policy)
    return VerifiedIndex(digest, open_index(store, digest), judgement.signers)


def open_index(store: ArtifactStore, digest: str) -> Index:
    """Read an index by its digest, signatures aside.

    Raises:
        PipelineError: ArtifactMalformed, DigestMismatch; as the store.
    """
    return artifact.read_index(store.get_manifest(digest).raw, digest)


def open_chip(store: ArtifactStore, index_digest: str, chip: str) -> ChipArtifact:
    """Everything about one chip's firmware but the images, by way of the index.

    Raises:
        PipelineError: PlatformMissing, WrongChip, ArtifactMalformed, ConfigMalformed, ReleaseInvalid; as the store.
    """
    entry = artifact.find_chip(open_index(store, index_digest), chip)
    return open_manifest(store, entry.digest, chip, size=entry.size)


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


def _pack(plan: BuildPlan, release: Release | None) -> PackedChip:
    statement = mint_release(config.from_plan(plan), release.sequence, release.key) if release else None
    return artifact.pack_chip(plan, statement)


def _pushed(chip: PackedChip) -> PushedChip:
    found = artifact.read_manifest(chip.manifest, chip.descriptor.digest)
    return PushedChip(
        target=chip.target,
        manifest_digest=found.digest,
        config_digest=found.manifest.config.digest,
        release_digest=found.release.digest if found.release else None,
    )


def _named(progress: PushProgress | None, title: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(title, done, total)


__all__ = [
    "ChipArtifact",
    "ClientOptions",
    "Layer",
    "Pushed",
    "PushedChip",
    "Release",
    "VerificationPolicy",
    "VerifiedIndex",
    "fetch_layer",
    "locate",
    "open_chip",
    "open_index",
    "open_manifest",
    "open_store",
    "push",
    "read_layer",
    "resolve",
    "verify",
    "verify_policy",
]
