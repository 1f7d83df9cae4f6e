# SPDX-License-Identifier: Apache-2.0
"""Gather what claims to be signed, and let a policy judge it. Only this module reads; `policy` decides.

Rules of gathering:
    1. Only what is found under the digest counts: the tag `sha256-<hex>.sig`, and referrers whose own manifest says
       that it is a bundle and that this digest is its subject. How a list describes its entries does not matter.
    2. What cannot be used does no harm beside good signatures; trouble on the way is still an error.
    3. More than 32 layers, 64 referrers or 32 MiB are refused; single documents that are too large do not count.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import INDEX_TYPE, Index, Manifest, check_digest, parse_document
from firmware_pipeline.referrers import MAX_REFERRERS, unusable_is_left
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.formats import Candidate
from firmware_pipeline.signing.policy import Gathered, Judgement, VerificationPolicy, judge
from firmware_pipeline.store import ArtifactStore

MAX_GATHERED_BYTES: Final = 32 * 1024 * 1024


def verify(store: ArtifactStore, digest: str, policy: VerificationPolicy) -> Judgement:
    """Judge an index, or a single chip's manifest if that is what the caller pins.

    Args:
        store: where it is.
        digest: the pinned digest.
        policy: what is demanded.

    Raises:
        PipelineError: as `policy.judge`; as the store.
    """
    gathered = Gathered(digest, gather(store, digest, policy.max_bytes))
    judgement = judge(replace(policy, sbom=False, provenance=False, builders=frozenset()), gathered)
    if not policy.documents:
        return judgement
    found = store.get_manifest(digest)
    if found.media_type == INDEX_TYPE:
        entries = parse_document(Index, found.raw, f"The index {digest}").manifests
        chips = [entry.digest for entry in entries if entry.platform and entry.platform.variant]
        gathered = replace(gathered, chips={chip: gather(store, chip, policy.max_bytes) for chip in chips})
    return judge(policy, gathered)


def gather(store: ArtifactStore, digest: str, max_bytes: int = formats.MAX_SIGNED_BYTES) -> list[Candidate]:
    """Everything stored that claims to be signed and about `digest`.

    Args:
        store: where it is.
        digest: of a manifest or index.
        max_bytes: bundles that are larger are not looked at.

    Raises:
        PipelineError: as the store when it cannot be asked; TooLarge for too many.
    """
    check_digest(digest)
    return [*_simple(store, digest), *_bundles(store, digest, max_bytes)]


def _simple(store: ArtifactStore, digest: str) -> Iterator[Candidate]:
    with unusable_is_left(but=TooManySignatures):
        raw = store.get_manifest(formats.signature_tag(digest)).raw
        layers = parse_document(Manifest, raw, f"The signatures of {digest}").layers
        if len(layers) > formats.MAX_SIGNATURES:
            raise _too_many(digest, len(layers), formats.MAX_SIGNATURES)
        for layer in layers:
            if layer.media_type == formats.SIMPLE_TYPE:
                with unusable_is_left(but=TooManySignatures):
                    payload = store.read_blob(layer, max_bytes=formats.MAX_SIGNED_BYTES)
                    if candidate := formats.simple_candidate(layer, payload):
                        yield candidate


def _bundles(store: ArtifactStore, digest: str, max_bytes: int) -> Iterator[Candidate]:
    entries = store.referrers(digest)
    if len(entries) > MAX_REFERRERS:
        raise _too_many(digest, len(entries), MAX_REFERRERS)
    gathered = 0
    for entry in entries:
        with unusable_is_left(but=TooManySignatures):
            manifest = parse_document(Manifest, store.get_manifest(entry.digest).raw, f"The referrer {entry.digest}")
            ours = manifest.artifact_type == formats.BUNDLE_TYPE and len(manifest.layers) == 1
            if ours and manifest.subject and manifest.subject.digest == digest:
                raw = store.read_blob(manifest.layers[0], max_bytes=max_bytes)
                gathered += len(raw)
                if gathered > MAX_GATHERED_BYTES:
                    raise _too_many(digest, len(entries), MAX_REFERRERS)
                if candidate := formats.bundle_candidate(raw):
                    yield candidate


class TooManySignatures(PipelineError):
    """More signatures than are looked at."""


def _too_many(digest: str, found: int, limit: int) -> TooManySignatures:
    return TooManySignatures(
        Reason.TooLarge,
        f"{digest} has {found} signatures or referrers, more or larger ones than the {limit} that are looked at.",
        "Delete those that nobody needs, or push the artifact to a repository of its own.",
    )
