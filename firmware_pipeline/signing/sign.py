# SPDX-License-Identifier: Apache-2.0
"""Attach signatures and attestations to what is stored. Signatures in both cosign formats, so that every cosign can
check them; attestations as bundles.

All bytes are signed first, one after another, since a signer may be a device or a service; what is sent afterwards goes
out for several subjects at once. What they have in common goes before: a registry that is sent a blob twice at a time may
find it damaged for a moment, and refuse the manifest that names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.oci import EMPTY_JSON, MANIFEST_TYPE, Descriptor, JsonObject, Manifest, parse_document
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.keys import Signer, key_hint
from firmware_pipeline.signing.statements import SIGN_PREDICATE, STATEMENT_V01, write_statement
from firmware_pipeline.store import ArtifactStore, Blob
from firmware_pipeline.tag_lists import add_to_list

AT_ONCE: Final = 4


def sign(
    store: ArtifactStore,
    subject: Descriptor,
    signer: Signer,
    identity: str,
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Sign a stored manifest or index. Signing again with the same key changes nothing.

    Args:
        store: where the subject is and the signature goes.
        subject: media type, digest and size of what is signed.
        signer: the key.
        identity: the repository's name, recorded in the older format.
        annotations: what the signer states beside it, in both formats.

    Raises:
        PipelineError: as the store; RegistryBusy when other signers always overwrite the signature tag; SignerFailed.
    """
    sign_all(store, [subject], signer, identity, annotations)


def sign_all(
    store: ArtifactStore,
    subjects: Iterable[Descriptor],
    signer: Signer,
    identity: str,
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Sign several; see `sign`. Whatever fails, those of the others may be stored.

    Raises:
        PipelineError: as `sign`.
    """
    prepared = [
        (
            subject,
            _bundle(formats.statement(subject.digest, annotations), signer),
            _simple(formats.simple_payload(subject.digest, identity, annotations), signer),
        )
        for subject in subjects
    ]

    def attach(item: tuple[Descriptor, bytes, tuple[bytes, Descriptor]]) -> None:
        subject, bundle, simple = item
        _attach_bundle(store, subject, bundle, SIGN_PREDICATE)
        _attach_simple(store, subject.digest, *simple)

    store.put_blob(Blob.of(EMPTY_JSON))
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sign") as pool:
        for _ in pool.map(attach, prepared):
            pass


def attest(
    store: ArtifactStore,
    subjects: Sequence[Descriptor],
    signer: Signer,
    identity: str,
    predicate_type: str,
    predicate: JsonObject,
) -> list[str]:
    """Sign one statement about all subjects, and attach it to each of them.

    Args:
        store: where the subjects are and the statement goes.
        subjects: what it is about; one statement names them all.
        signer: the key.
        identity: what the statement calls its subjects.
        predicate_type: URI of the kind of statement.
        predicate: what it says.

    Returns:
        The digests of the attached manifests, in the order of `subjects`.

    Raises:
        PipelineError: as the store; SignerFailed; TooLarge when nobody would read a bundle of this size.
    """
    digests = [subject.digest for subject in subjects]
    body = write_statement(digests, predicate_type, predicate, version=STATEMENT_V01, name=identity)
    bundle = _bundle(body, signer)
    if len(bundle) > formats.MAX_ATTESTATION_BYTES:
        raise PipelineError(
            Reason.TooLarge,
            f"The signed statement would have {len(bundle)} bytes; {formats.MAX_ATTESTATION_BYTES} are read.",
            "Attach a smaller document.",
        )
    return [_attach_bundle(store, subject, bundle, predicate_type) for subject in subjects]


def _bundle(body: bytes, signer: Signer) -> bytes:
    signature = signer.sign(formats.pae(body), curve_hash=True)
    return formats.bundle(body, signature, key_hint(signer.public_key))


def _simple(payload: bytes, signer: Signer) -> tuple[bytes, Descriptor]:
    return payload, formats.simple_layer(payload, signer.sign(payload, curve_hash=False))


def _attach_bundle(store: ArtifactStore, subject: Descriptor, bundle: bytes, predicate_type: str) -> str:
    store.put_blob(Blob.of(EMPTY_JSON))
    store.put_blob(Blob.of(bundle))
    return store.put_manifest(formats.bundle_manifest(bundle, subject, predicate_type), MANIFEST_TYPE)


def _attach_simple(store: ArtifactStore, digest: str, payload: bytes, layer: Descriptor) -> None:
    """Add one layer to the `.sig` manifest; other signers' layers stay."""
    store.put_blob(Blob.of(payload))
    tag = formats.signature_tag(digest)

    def write(layers: list[Descriptor]) -> None:
        manifest, config = formats.simple_manifest(layers)
        store.put_blob(Blob.of(config))
        store.put_manifest(manifest, MANIFEST_TYPE, tag=tag)

    add_to_list(f"{store.name}:{tag}", layer, partial(_layers, store, tag), write, same=_signature)


def _signature(layer: Descriptor) -> tuple[str, str | None]:
    return layer.digest, layer.annotations.get(formats.SIGNATURE_ANNOTATION)


def _layers(store: ArtifactStore, tag: str) -> list[Descriptor]:
    try:
        return parse_document(Manifest, store.get_manifest(tag).raw, f"The signature manifest {tag}").layers
    except PipelineError as error:
        if error.reason is Reason.ReferenceNotFound:
            return []
        raise
