# SPDX-License-Identifier: Apache-2.0
"""Pull one chip's firmware into a folder, and copy whole artifacts.

What appears in the folder is complete and checked: `<chip>/<file>` for every image, `<chip>/config.json` and, if there
is one, `<chip>/release.cose`. A file that fails its check does not appear; those that were checked stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from firmware_pipeline.artifact import ChipArtifact, Layer
from firmware_pipeline.config import dumps
from firmware_pipeline.copying import Copier
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.oci import INDEX_TYPE
from firmware_pipeline.opening import (
    DEFAULT_OPTIONS,
    fetch_layer,
    moved_tags,
    open_chip,
    open_chips,
    open_index,
    open_store,
    resolve,
    verify,
)
from firmware_pipeline.reference import Reference, check_tag, parse_reference
from firmware_pipeline.store import ArtifactStore, atomic_file
from firmware_pipeline.together import transfer_together

if TYPE_CHECKING:
    from firmware_pipeline.signing.keys import TrustedKey

PullProgress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(what, bytes done, bytes in total), from several threads."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was pulled.

    Attributes:
        reference: pinned by digest.
        chip: what the files are.
        signers: names of the trusted keys that signed; empty when nobody asked.
        files: in flash order, then config and release statement.
    """

    reference: Reference
    chip: ChipArtifact
    signers: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied.

    Attributes:
        reference: at the target, pinned by digest.
        signers: names of the trusted keys that signed; empty when nobody asked.
        tags: the tags that now name it.
        referrers: digests of the signatures and other referrers that came along.
        sent_bytes: of blobs that the target did not have.
        moved: tag -> digest that it named before.
    """

    reference: Reference
    signers: tuple[str, ...]
    tags: tuple[str, ...]
    referrers: tuple[str, ...]
    sent_bytes: int
    moved: Mapping[str, str] = field(default_factory=dict)


def pull(
    reference: Reference | str,
    chip: str,
    output: Path,
    *,
    keys: "Sequence[TrustedKey] | None",
    threshold: int = 1,
    options: ClientOptions = DEFAULT_OPTIONS,
    store: ArtifactStore | None = None,
    facts: HardwareFacts | None = None,
    progress: PullProgress | None = None,
) -> Pulled:
    """Fetch one chip's files, each checked, several at a time.

    Args:
        reference: tag or digest; a tag is resolved once.
        chip: in any spelling.
        output: folder; made if it is not there.
        keys: whose signatures count; None asks for none.
        threshold: how many distinct keys must have signed.
        options: how to reach the registry.
        store: an open store to use instead of opening one.
        facts: what is known of the device, where the chip may have several builds with different features.
        progress: called while images arrive.

    Raises:
        PipelineError: as `resolve`, `verify`, `open_chip`, `fetch_layer`.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    store = store or open_store(where, options)
    digest = resolve(store, where)
    signers = verify(store, digest, keys, threshold).signers if keys is not None else ()
    found = open_chip(store, digest, chip, facts)
    files = [output / layer.title for layer in found.layers]
    _fetch(store, list(zip(found.layers, files, strict=True)), progress)
    extra = {"config.json": dumps(found.config)}
    if found.release_statement is not None:
        extra["release.cose"] = found.release_statement
    for name, data in extra.items():
        files.append((output / found.app.title).with_name(name))
        with atomic_file(files[-1]) as sink:
            sink.write(data)
    return Pulled(where.at(digest), found, signers, tuple(files))


def _fetch(store: ArtifactStore, wanted: Sequence[tuple[Layer, Path]], progress: PullProgress | None) -> None:
    """Fetch all at the same time."""
    transfer_together(
        lambda item, update: fetch_layer(store, *item, update),
        wanted,
        None if progress is None else lambda item, done, total: progress(item[0].title, done, total),
    )


def copy(
    source: Reference | str,
    target: Reference | str,
    *,
    keys: "Sequence[TrustedKey] | None" = None,
    threshold: int = 1,
    options: ClientOptions = DEFAULT_OPTIONS,
    also_tags: Sequence[str] = (),
    progress: PullProgress | None = None,
) -> Copied:
    """Copy an artifact with its signatures and other referrers, between registries and layouts. Its digest stays.

    The artifact is opened first: manifests, configs and release statements of all its chips must hold. The target's
    tags are set last.

    Args:
        source: tag or digest.
        target: HOST/REPOSITORY:TAG or a layout; without a tag only the digest names the copy.
        keys, threshold: whose signatures must hold before anything is copied; None asks for none.
        options: how to reach both.
        also_tags: further tags at the target.
        progress: called while blobs are sent.

    Raises:
        PipelineError: as `resolve`, `verify`, `open_chip` and the stores; ReferenceMalformed, DigestMismatch when the
            target names another digest.
    """
    here, there = (parse_reference(item) if isinstance(item, str) else item for item in (source, target))
    tags = tuple(dict.fromkeys(check_tag(tag) for tag in (there.tag, *also_tags) if tag))
    origin = open_store(here, options)
    digest = resolve(origin, here)
    if there.digest not in (None, digest):
        raise PipelineError(
            Reason.DigestMismatch,
            f"{here} is {digest}, but the copy is to be {there.digest}: a copy keeps its digest.",
            "Leave the digest out of the target, or correct it.",
        )
    signers = verify(origin, digest, keys, threshold).signers if keys is not None else ()
    open_chips(origin, open_index(origin, digest))
    goal = open_store(there, options, push=True, create=True)
    copier = Copier(origin, goal, progress)
    found = copier.copy(digest)
    moved = moved_tags(goal, tags, digest)
    for tag in tags:
        goal.put_manifest(found.raw, INDEX_TYPE, tag=tag)
    return Copied(there.at(digest), signers, tags, tuple(copier.referrers), copier.sent_bytes, moved)
