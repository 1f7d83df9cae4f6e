# SPDX-License-Identifier: Apache-2.0
"""Store a release: pack builds and push them, or join what was pushed before.

Order: blobs, manifests, index by digest, signatures of manifests and index, what the caller attaches, tags. Whatever
fails or is interrupted, no tag ever names something incomplete or unsigned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from firmware_pipeline import artifact, config
from firmware_pipeline.artifact import PackedChip
from firmware_pipeline.copying import Copier
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.joining import Child, join
from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, sha256_digest
from firmware_pipeline.opening import (
    DEFAULT_OPTIONS,
    moved_tags,
    open_chips,
    open_index,
    open_manifest,
    open_store,
    resolve,
    verify,
)
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.reference import Reference, check_tag, parse_reference
from firmware_pipeline.store import ArtifactStore, Blob, Progress

if TYPE_CHECKING:  # loaded where something is signed
    from firmware_pipeline.signing.keys import Signer, TrustedKey
    from firmware_pipeline.signing.release import ReleaseKey

PushProgress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(what, bytes done, bytes in total)."""
Attach: TypeAlias = Callable[[ArtifactStore, Descriptor, Sequence[Descriptor]], None]
"""Called as attach(store, index, chips' manifests) when everything is stored and signed, before any tag moves."""


@dataclass(frozen=True, slots=True)
class Release:
    """What makes a push a release: the owner's offline key, and a number that only grows."""

    key: "ReleaseKey"
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
        moved: tag -> digest that it named before, where that was another one.
    """

    reference: Reference
    index_digest: str
    chips: tuple[PushedChip, ...]
    tags: tuple[str, ...]
    signed: bool
    size: int
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a push would store.

    Attributes:
        reference: pinned by the digest that the index would have.
        index: the index's bytes.
        chips: the packed builds.
        blobs: (title, digest, size in bytes, whether it is there already).
        moved: tag -> digest that it names now, where the push would change it.
    """

    reference: Reference
    index: bytes
    chips: tuple[PackedChip, ...]
    blobs: tuple[tuple[str, str, int, bool], ...]
    tags: tuple[str, ...]
    moved: Mapping[str, str]

    @property
    def total_bytes(self) -> int:
        """All distinct blobs and manifests, in bytes."""
        manifests = sum(len(chip.manifest) for chip in self.chips)
        return sum(size for _, _, size, _ in self.blobs) + manifests + len(self.index)

    @property
    def new_bytes(self) -> int:
        """Blobs that would be sent, in bytes."""
        return sum(size for _, _, size, present in self.blobs if not present)


@dataclass(frozen=True, slots=True)
class _Packed:
    index: bytes
    chips: tuple[PackedChip, ...]
    blobs: tuple[tuple[str, Blob], ...]


def push(
    plans: Sequence[BuildPlan],
    reference: Reference | str,
    *,
    signer: "Signer | None",
    release: Release | None,
    options: ClientOptions = DEFAULT_OPTIONS,
    store: ArtifactStore | None = None,
    also_tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    identity: str | None = None,
    progress: PushProgress | None = None,
    attach: Attach | None = None,
) -> Pushed:
    """Store one release for several chips, sign it, and only then let tags name it.

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
        attach: attaches what must be there before a tag moves.

    Raises:
        PipelineError: InputDisagrees, InputMissing, ReleaseInvalid, ReferenceMalformed, and as the store.
    """
    where, tags = _destination(reference, also_tags)
    packed = _pack(plans, release, annotations)
    store = store or open_store(where, options, push=True, create=True)
    for title, blob in packed.blobs:
        store.put_blob(blob, _named(progress, title))
    for chip in packed.chips:
        store.put_manifest(chip.manifest, MANIFEST_TYPE)
    name = identity or (plans[0].app.project_name if where.is_layout else store.name)
    entries = [chip.descriptor for chip in packed.chips]
    digest, moved = _publish(store, packed.index, entries, tags, signer, name, attach)
    return Pushed(
        reference=where.at(digest),
        index_digest=digest,
        chips=tuple(sorted((_pushed(chip) for chip in packed.chips), key=lambda chip: chip.target)),
        tags=tags,
        signed=signer is not None,
        size=_size(packed),
        moved=moved,
    )


def preview(
    plans: Sequence[BuildPlan],
    reference: Reference | str,
    *,
    release: Release | None,
    options: ClientOptions = DEFAULT_OPTIONS,
    also_tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
) -> Preview:
    """What `push` would do. Asks which blobs are there and what the tags name; stores nothing.

    Raises:
        PipelineError: as `push`.
    """
    where, tags = _destination(reference, also_tags)
    packed = _pack(plans, release, annotations)
    try:
        store: ArtifactStore | None = open_store(where, options)
    except PipelineError as error:
        if error.reason is not Reason.ReferenceNotFound:
            raise
        store = None  # a layout that is yet to be made
    digest = sha256_digest(packed.index)
    return Preview(
        reference=where.at(digest),
        index=packed.index,
        chips=packed.chips,
        blobs=tuple(
            (title, blob.digest, blob.size, store is not None and store.has_blob(blob.digest, blob.size))
            for title, blob in packed.blobs
        ),
        tags=tags,
        moved=moved_tags(store, tags, digest) if store else {},
    )


def index(
    references: Sequence[Reference | str],
    reference: Reference | str,
    *,
    signer: "Signer | None",
    keys: "Sequence[TrustedKey] | None" = None,
    threshold: int = 1,
    options: ClientOptions = DEFAULT_OPTIONS,
    also_tags: Sequence[str] = (),
    annotations: Mapping[str, str] | None = None,
    identity: str | None = None,
    progress: PushProgress | None = None,
    attach: Attach | None = None,
) -> Pushed:
    """Join artifacts of one release, each for one chip or more, into one index; copy what is elsewhere; sign; tag.

    Args:
        references: indexes, or single chips' manifests by digest; in registries or layouts, the target's own too.
        reference: where to.
        signer: signs the new index and, again, its manifests; their own signatures are copied.
        keys, threshold: judge each child before it is taken; None takes any whose digests hold.
        options, also_tags, annotations, identity, progress, attach: as in `push`.

    Raises:
        PipelineError: InputDisagrees, InputMissing; as `verify`, `open_chip` and the stores.
    """
    where, tags = _destination(reference, also_tags)
    target = open_store(where, options, push=True, create=True)
    stores: dict[str, ArtifactStore] = {target.name: target}
    children: list[tuple[ArtifactStore, Child]] = []
    for item in references:
        source = parse_reference(item) if isinstance(item, str) else item
        store = stores.setdefault(source.repository, open_store(source, options))
        digest = resolve(store, source)
        if keys is not None:
            verify(store, digest, keys, threshold)
        children += [(store, child) for child in _children(store, digest, str(item))]
    raw = join([child for _, child in children], annotations)
    copied: set[str] = set()
    size = len(raw)
    for store, child in children:
        size += child.entry.size + sum(_named_bytes(store, child, copied))
        if store is not target:
            Copier(store, target, progress).copy(child.entry.digest)
    name = identity or (children[0][1].chip.config.app.project_name if where.is_layout else target.name)
    entries = [child.entry for _, child in children]
    digest, moved = _publish(target, raw, entries, tags, signer, name, attach)
    chips = (
        PushedChip(c.chip.target, c.chip.manifest_digest, c.chip.config_digest, c.chip.release_digest)
        for _, c in children
    )
    return Pushed(
        reference=where.at(digest),
        index_digest=digest,
        chips=tuple(sorted(chips, key=lambda chip: chip.target)),
        tags=tags,
        signed=signer is not None,
        size=size,
        moved=moved,
    )


# ---- shared ----------------------------------------------------------------------------------------------


def _destination(reference: Reference | str, also_tags: Sequence[str]) -> tuple[Reference, tuple[str, ...]]:
    where = parse_reference(reference) if isinstance(reference, str) else reference
    if where.digest:
        raise PipelineError(
            Reason.ReferenceMalformed,
            f"{where} names a digest, but what is pushed decides its digest itself.",
            "Push to HOST/REPOSITORY:TAG; the digest is printed.",
        )
    return where, tuple(dict.fromkeys(check_tag(tag) for tag in (where.tag, *also_tags) if tag))


def _pack(plans: Sequence[BuildPlan], release: Release | None, annotations: Mapping[str, str] | None) -> _Packed:
    chips = tuple(_pack_chip(plan, release) for plan in plans)
    raw = artifact.pack_index(plans, chips, annotations)
    blobs = {blob.digest: (title, blob) for chip in chips for title, blob in chip.blobs}
    return _Packed(raw, chips, tuple(blobs.values()))


def _pack_chip(plan: BuildPlan, release: Release | None) -> PackedChip:
    if release is None:
        return artifact.pack_chip(plan)
    from firmware_pipeline.signing.release import mint_release

    return artifact.pack_chip(plan, mint_release(config.from_plan(plan), release.sequence, release.key))


def _size(packed: _Packed) -> int:
    manifests = sum(len(chip.manifest) for chip in packed.chips)
    return sum(blob.size for _, blob in packed.blobs) + manifests + len(packed.index)


def _publish(
    store: ArtifactStore,
    raw: bytes,
    entries: Sequence[Descriptor],
    tags: Sequence[str],
    signer: "Signer | None",
    identity: str,
    attach: Attach | None,
) -> tuple[str, dict[str, str]]:
    """Index, signatures, attachments, tags; returns the digest and the tags that named another one."""
    digest = store.put_manifest(raw, INDEX_TYPE)
    top = Descriptor(media_type=INDEX_TYPE, digest=digest, size=len(raw))
    if signer is not None:
        from firmware_pipeline.signing.sign import sign_all

        sign_all(store, [*entries, top], signer, identity)
    if attach is not None:
        attach(store, top, entries)
    moved = moved_tags(store, tags, digest)
    for tag in tags:
        store.put_manifest(raw, INDEX_TYPE, tag=tag)
    return digest, moved


def _pushed(chip: PackedChip) -> PushedChip:
    found = artifact.read_manifest(chip.manifest, chip.descriptor.digest)
    return PushedChip(
        target=chip.target,
        manifest_digest=found.digest,
        config_digest=found.manifest.config.digest,
        release_digest=found.release.digest if found.release else None,
    )


def _children(store: ArtifactStore, digest: str, name: str) -> list[Child]:
    found = store.get_manifest(digest)
    if found.media_type == MANIFEST_TYPE:
        manifest = artifact.read_manifest(found.raw, digest).manifest
        target = config.loads(store.read_blob(manifest.config, max_bytes=config.MAX_CONFIG_SIZE)).chip.target
        chip = open_manifest(store, digest, target)
        return [Child(name, artifact.chip_entry(chip.config, found.raw), chip, manifest.annotations)]
    joined = open_index(store, digest)
    return [Child(name, entry, chip, joined.annotations) for entry, chip in open_chips(store, joined)]


def _named_bytes(store: ArtifactStore, child: Child, known: set[str]) -> list[int]:
    manifest = artifact.read_manifest(store.get_manifest(child.entry.digest).raw, child.entry.digest).manifest
    new = [blob for blob in (manifest.config, *manifest.layers) if blob.digest not in known]
    known.update(blob.digest for blob in new)
    return [blob.size for blob in {blob.digest: blob for blob in new}.values()]


def _named(progress: PushProgress | None, title: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(title, done, total)
