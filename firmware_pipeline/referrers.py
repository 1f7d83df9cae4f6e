# SPDX-License-Identifier: Apache-2.0
"""Referrers: which manifests name another one as their subject, and the tag that lists them where a registry does not.

Source: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema". A list is only a hint; some
writers describe their entries wrongly, so whoever uses an entry opens it and looks at its own type and subject.
"""

from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Index,
    Manifest,
    parse_document,
    sha256_digest,
    strict_json,
    to_json,
)
from firmware_pipeline.store import ArtifactStore

MAX_REFERRERS: Final = 64
WRITE_TRIES: Final = 5


def fallback_tag(digest: str) -> str:
    """The tag that lists the referrers of `digest`: `sha256-<hex>`."""
    return digest.replace(":", "-")


def describe(raw: bytes, media_type: str) -> tuple[str, Descriptor] | None:
    """(subject's digest, descriptor to be listed) of a manifest that refers to another, else None."""
    if media_type != MANIFEST_TYPE or not strict_json(raw, "the manifest").get("subject"):
        return None
    manifest = parse_document(Manifest, raw, "the manifest")
    if manifest.subject is None:
        return None
    return manifest.subject.digest, Descriptor(
        media_type=media_type,
        digest=sha256_digest(raw),
        size=len(raw),
        artifact_type=manifest.artifact_type or manifest.config.media_type,
        annotations=manifest.annotations,
    )


def parse_list(raw: bytes, digest: str) -> list[Descriptor]:
    """The entries of a referrers list.

    Raises:
        PipelineError: ArtifactMalformed; TooLarge above `MAX_REFERRERS` entries.
    """
    entries = parse_document(Index, raw, f"The list of referrers of {digest}").manifests
    if len(entries) > MAX_REFERRERS:
        raise PipelineError(
            Reason.TooLarge,
            f"{len(entries)} manifests refer to {digest}, more than the {MAX_REFERRERS} that are looked at.",
            "Delete referrers that nobody needs, or push the artifact to a repository of its own.",
        )
    return entries


def read_fallback_tag(store: ArtifactStore, digest: str) -> list[Descriptor]:
    """The entries of the fallback tag; none when there is no such tag."""
    try:
        return parse_list(store.get_manifest(fallback_tag(digest)).raw, digest)
    except PipelineError as error:
        if error.reason is Reason.ReferenceNotFound:
            return []
        raise


def add_to_fallback_tag(store: ArtifactStore, digest: str, entry: Descriptor) -> None:
    """Add an entry to the fallback tag. Registries have no compare-and-swap: write, read back, repeat when another
    writer's update was lost or ours was.

    Raises:
        PipelineError: RegistryBusy when other writers always win.
    """
    tag, known = fallback_tag(digest), [entry]
    for _ in range(WRITE_TRIES):
        present = read_fallback_tag(store, digest)
        digests = {item.digest for item in present}
        missing = [item for item in known if item.digest not in digests]
        if not missing:
            return
        known = [*present, *missing]
        index = Index(schema_version=2, manifests=known)
        store.put_manifest(to_json(index), INDEX_TYPE, tag=tag)
    if entry.digest in {item.digest for item in read_fallback_tag(store, digest)}:
        return
    raise PipelineError(
        Reason.RegistryBusy,
        f"{store.name}: other writers replaced the tag {tag} {WRITE_TRIES} times while an entry was being added.",
        "Try again when no other push to this artifact runs.",
    )
