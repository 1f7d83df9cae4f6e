# SPDX-License-Identifier: Apache-2.0
"""Referrers: which manifests name another one as their subject, and the tag that lists them where a registry does not.

Source: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema". A list is only a hint; some
writers describe their entries wrongly, so whoever uses an entry opens it and looks at its own type and subject.
"""

import contextlib
import re
from collections.abc import Iterator
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
from firmware_pipeline.tag_lists import add_to_list

MAX_REFERRERS: Final = 64
MAX_PAGES: Final = 16
MAX_LINK_CHARACTERS: Final = 4096

UNUSABLE: Final = frozenset(
    {
        Reason.ArtifactMalformed,
        Reason.DigestMismatch,
        Reason.MediaTypeUnsupported,
        Reason.ReferenceNotFound,
        Reason.SizeMismatch,
        Reason.TooLarge,
    }
)
"""What is wrong with attached content itself, not with the way to it."""


@contextlib.contextmanager
def unusable_is_left(*, but: type[PipelineError] | tuple[type[PipelineError], ...] = ()) -> Iterator[None]:
    """Anybody who may push can attach rubbish: it stops nobody who reads what else is attached. Trouble on the way does.

    Args:
        but: errors that stop all the same, whatever their reason.
    """
    try:
        yield
    except PipelineError as error:
        if error.reason not in UNUSABLE or isinstance(error, but):
            raise


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
    return at_most(parse_document(Index, raw, f"The list of referrers of {digest}").manifests, digest)


def at_most(entries: list[Descriptor], digest: str) -> list[Descriptor]:
    """The entries, if they are not more than are looked at.

    Raises:
        PipelineError: TooLarge above `MAX_REFERRERS` entries.
    """
    if len(entries) > MAX_REFERRERS:
        raise too_many(f"{len(entries)} or more manifests", digest)
    return entries


def too_many(what: str, digest: str) -> PipelineError:
    """The error for more referrers than are looked at."""
    return PipelineError(
        Reason.TooLarge,
        f"{what} refer to {digest}; {MAX_REFERRERS} are looked at.",
        "Delete referrers that nobody needs, or push the artifact to a repository of its own.",
    )


def read_fallback_tag(store: ArtifactStore, digest: str) -> list[Descriptor]:
    """The entries of the fallback tag; none when there is no such tag."""
    try:
        return parse_list(store.get_manifest(fallback_tag(digest)).raw, digest)
    except PipelineError as error:
        if error.reason is Reason.ReferenceNotFound:
            return []
        raise


def add_to_fallback_tag(store: ArtifactStore, digest: str, entry: Descriptor) -> None:
    """Add an entry to the fallback tag, while others may do the same (see `tag_lists`).

    Raises:
        PipelineError: RegistryBusy when other writers always win; as the store.
    """
    tag = fallback_tag(digest)
    add_to_list(
        f"{store.name}:{tag}",
        entry,
        lambda: read_fallback_tag(store, digest),
        lambda entries: _write(store, tag, entries),
        same=lambda item: item.digest,
    )


def next_page(link: str) -> str | None:
    """The target of the `Link` header's `rel="next"`, as it stands there; None when this was the last page.

    Source: RFC 8288 section 3; the distribution specification wants nothing else of it.
    """
    for part in re.split(r",\s*(?=<)", link[:MAX_LINK_CHARACTERS]):
        found = re.fullmatch(r"\s*<([^<>]*)>\s*((?:;[^<>]*)?)", part)
        if found and re.search(r';\s*rel\s*=\s*(?:"next"|next)\s*(?:;|$)', found[2], re.IGNORECASE):
            return found[1]
    return None


def _write(store: ArtifactStore, tag: str, entries: list[Descriptor]) -> None:
    store.put_manifest(to_json(Index(schema_version=2, manifests=entries)), INDEX_TYPE, tag=tag)
