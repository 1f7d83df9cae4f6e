# SPDX-License-Identifier: Apache-2.0
"""Whether an artifact is signed by those who must have signed it. `gather` reads, `judge` decides and is pure.

Rules:
    1. Someone must be trusted: no key, or a threshold below 1 or above the number of distinct keys, is refused.
    2. Only what is found under the digest counts: the tag `sha256-<hex>.sig`, and referrers whose own manifest says
       that it is a bundle and that this digest is its subject.
    3. A signature is verified before anything in it is read.
    4. What it signs must be this very digest.
    5. The threshold counts distinct keys, not signatures and not names.
    6. Rubbish beside good signatures does no harm; more than 32 layers or 64 referrers are refused.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import Manifest, check_digest, parse_document
from firmware_pipeline.referrers import MAX_REFERRERS
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.formats import Candidate
from firmware_pipeline.signing.keys import TrustedKey, distinct, signature_holds
from firmware_pipeline.store import ArtifactStore

_UNUSABLE: Final = frozenset(
    {
        Reason.ArtifactMalformed,
        Reason.DigestMismatch,
        Reason.MediaTypeUnsupported,
        Reason.ReferenceNotFound,
        Reason.SizeMismatch,
        Reason.TooLarge,
    }
)


def gather(store: ArtifactStore, digest: str) -> list[Candidate]:
    """Everything stored that claims to be a signature of `digest` (rules 2 and 6).

    Raises:
        PipelineError: as the store when it cannot be asked; TooLarge for too many.
    """
    check_digest(digest)
    return [*_simple(store, digest), *_bundles(store, digest)]


def judge(candidates: Sequence[Candidate], digest: str, keys: Sequence[TrustedKey], threshold: int) -> tuple[str, ...]:
    """Decide by rules 1 and 3 to 5.

    Args:
        candidates: from `gather`.
        digest: what must be signed.
        keys: who is trusted.
        threshold: how many distinct keys must have signed.

    Returns:
        The names of the keys that signed, sorted.

    Raises:
        PipelineError: SignersNotConfigured, UnsignedArtifact, SignatureInvalid, SignatureThreshold.
    """
    trusted = distinct(keys)
    if not trusted or not 1 <= threshold <= len(trusted):
        raise PipelineError(
            Reason.SignersNotConfigured,
            f"{len(trusted)} distinct keys are trusted and {threshold} must have signed: this can never be judged.",
            "Name the public keys whose signature counts, and a threshold from 1 to their number.",
        )
    if not candidates:
        raise PipelineError(
            Reason.UnsignedArtifact,
            f"{digest} has no signature.",
            "Push it with `firmware-pipeline push --sign KEY`, or sign it with cosign.",
        )
    held = {
        key.id
        for candidate in candidates
        for key in trusted.values()
        if signature_holds(key.key, candidate.signature, candidate.signed)
        and formats.signed_digest(candidate) == digest
    }
    names = tuple(sorted(trusted[key].name for key in held))
    if not held:
        raise PipelineError(
            Reason.SignatureInvalid,
            f"{digest} has {len(candidates)} signatures, but none by a trusted key "
            f"({', '.join(sorted(key.name for key in trusted.values()))}).",
            "Check that the right key signed and that the artifact was not replaced; do not flash it.",
        )
    if len(held) < threshold:
        raise PipelineError(
            Reason.SignatureThreshold,
            f"{digest} is signed by {', '.join(names)}; {threshold} distinct trusted keys are needed.",
            "Let the other signers sign it, then try again.",
        )
    return names


def _simple(store: ArtifactStore, digest: str) -> Iterator[Candidate]:
    with _unusable_is_none():
        raw = store.get_manifest(formats.signature_tag(digest)).raw
        layers = parse_document(Manifest, raw, f"The signatures of {digest}").layers
        if len(layers) > formats.MAX_SIGNATURES:
            raise _too_many(digest, len(layers), formats.MAX_SIGNATURES)
        for layer in layers:
            if layer.media_type == formats.SIMPLE_TYPE:
                with _unusable_is_none():
                    payload = store.read_blob(layer, max_bytes=formats.MAX_SIGNED_BYTES)
                    if candidate := formats.simple_candidate(layer, payload):
                        yield candidate


def _bundles(store: ArtifactStore, digest: str) -> Iterator[Candidate]:
    entries = store.referrers(digest)
    if len(entries) > MAX_REFERRERS:
        raise _too_many(digest, len(entries), MAX_REFERRERS)
    for entry in entries:
        with _unusable_is_none():
            manifest = parse_document(Manifest, store.get_manifest(entry.digest).raw, f"The referrer {entry.digest}")
            ours = manifest.artifact_type == formats.BUNDLE_TYPE and len(manifest.layers) == 1
            if ours and manifest.subject and manifest.subject.digest == digest:
                raw = store.read_blob(manifest.layers[0], max_bytes=formats.MAX_SIGNED_BYTES)
                if candidate := formats.bundle_candidate(raw):
                    yield candidate


@contextlib.contextmanager
def _unusable_is_none() -> Iterator[None]:
    """Rule 6: what cannot be used does not count; trouble on the way is still an error."""
    try:
        yield
    except PipelineError as error:
        if error.reason not in _UNUSABLE or isinstance(error, TooManySignatures):
            raise


class TooManySignatures(PipelineError):
    """More signatures than are looked at."""


def _too_many(digest: str, found: int, limit: int) -> TooManySignatures:
    return TooManySignatures(
        Reason.TooLarge,
        f"{digest} has {found} signatures or referrers, more than the {limit} that are looked at.",
        "Delete those that nobody needs, or push the artifact to a repository of its own.",
    )
