# SPDX-License-Identifier: Apache-2.0
"""Attach signatures to what is stored: both cosign formats, so that every cosign can check them."""

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import EMPTY_JSON, MANIFEST_TYPE, Descriptor, Manifest, parse_document
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.keys import Signer, key_hint
from firmware_pipeline.store import ArtifactStore, Blob

WRITE_TRIES = 5


def sign(store: ArtifactStore, subject: Descriptor, signer: Signer, identity: str) -> None:
    """Sign a stored manifest or index. Signing again with the same key changes nothing.

    Args:
        store: where the subject is and the signature goes.
        subject: media type, digest and size of what is signed.
        signer: the key.
        identity: the repository's name, recorded in the older format.

    Raises:
        PipelineError: as the store; RegistryBusy when other signers always overwrite the signature tag.
    """
    _attach_bundle(store, subject, signer)
    _attach_simple(store, subject.digest, signer, identity)


def _attach_bundle(store: ArtifactStore, subject: Descriptor, signer: Signer) -> None:
    body = formats.statement(subject.digest)
    signature = signer.sign(formats.pae(body), curve_hash=True)
    bundle = formats.bundle(body, signature, key_hint(signer.public_key))
    store.put_blob(Blob.of(EMPTY_JSON))
    store.put_blob(Blob.of(bundle))
    store.put_manifest(formats.bundle_manifest(bundle, subject), MANIFEST_TYPE)


def _attach_simple(store: ArtifactStore, digest: str, signer: Signer, identity: str) -> None:
    """Add one layer to the `.sig` manifest; other signers' layers stay. Tags have no compare-and-swap: write, read
    back, repeat."""
    payload = formats.simple_payload(digest, identity)
    layer = formats.simple_layer(payload, signer.sign(payload, curve_hash=False))
    store.put_blob(Blob.of(payload))
    tag = formats.signature_tag(digest)
    for _ in range(WRITE_TRIES):
        present = _layers(store, tag)
        if layer in present:
            return
        manifest, config = formats.simple_manifest([*present, layer])
        store.put_blob(Blob.of(config))
        store.put_manifest(manifest, MANIFEST_TYPE, tag=tag)
    if layer not in _layers(store, tag):
        raise PipelineError(
            Reason.RegistryBusy,
            f"{store.name}: other signers replaced the tag {tag} {WRITE_TRIES} times.",
            "Try again when no other push to this artifact runs.",
        )


def _layers(store: ArtifactStore, tag: str) -> list[Descriptor]:
    try:
        return parse_document(Manifest, store.get_manifest(tag).raw, f"The signature manifest {tag}").layers
    except PipelineError as error:
        if error.reason is Reason.ReferenceNotFound:
            return []
        raise
