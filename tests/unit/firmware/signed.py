# SPDX-License-Identifier: Apache-2.0
"""Keys, and small artifacts to be signed, for the tests of signatures and attachments."""

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index, Manifest, Platform, to_json
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.keys import LocalSigner, Signer, TrustedKey
from firmware_pipeline.store import ArtifactStore, Blob

P256 = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
P384 = LocalSigner(ec.derive_private_key(8, ec.SECP384R1()))
ED = LocalSigner(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = LocalSigner(ec.derive_private_key(9, ec.SECP256R1()))
HOME = "registry.example/team/porch"
CYCLONEDX = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [{"name": "lwip"}]}


def trust(*signers: Signer) -> list[TrustedKey]:
    """The signers' public keys, named key0, key1, ..."""
    return [TrustedKey(f"key{number}", signer.public_key) for number, signer in enumerate(signers)]


def put_manifest(store: ArtifactStore, note: str = "one") -> Descriptor:
    """A manifest that names nothing but an empty config."""
    empty = Blob.of(b"{}")
    store.put_blob(empty)
    config = Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=empty.digest, size=2)
    raw = to_json(Manifest(schema_version=2, config=config, layers=[], annotations={"note": note}))
    return Descriptor(media_type=MANIFEST_TYPE, digest=store.put_manifest(raw, MANIFEST_TYPE), size=len(raw))


def put_index(
    store: ArtifactStore, note: str = "one", chips: Sequence[str] = ()
) -> tuple[Descriptor, list[Descriptor]]:
    """(index, manifests of its chips)."""
    children = [put_manifest(store, f"{note} {chip}") for chip in chips]
    entries = [
        child.model_copy(update={"platform": Platform(os="espidf", architecture="riscv32", variant=chip)})
        for chip, child in zip(chips, children, strict=True)
    ]
    raw = to_json(Index(schema_version=2, manifests=entries, annotations={"note": note}))
    return Descriptor(media_type=INDEX_TYPE, digest=store.put_manifest(raw, INDEX_TYPE), size=len(raw)), children


def put_simple(store: ArtifactStore, digest: str, payload: bytes, signature: bytes) -> None:
    """Store a signature in the older format as it is given."""
    layer = formats.simple_layer(payload, signature)
    manifest, config = formats.simple_manifest([layer])
    store.put_blob(Blob.of(payload))
    store.put_blob(Blob.of(config))
    store.put_manifest(manifest, MANIFEST_TYPE, tag=formats.signature_tag(digest))


def put_bundle(
    store: ArtifactStore,
    subject: Descriptor,
    bundle: bytes,
    *,
    artifact_type: str = formats.BUNDLE_TYPE,
    layers: int = 1,
) -> str:
    """Attach the bytes of a bundle as they are given."""
    empty, blob = Blob.of(b"{}"), Blob.of(bundle)
    store.put_blob(empty)
    store.put_blob(blob)
    layer = Descriptor(media_type=formats.BUNDLE_TYPE, digest=blob.digest, size=blob.size)
    manifest = Manifest(
        schema_version=2,
        artifact_type=artifact_type,
        config=Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=empty.digest, size=2),
        layers=[layer] * layers,
        subject=subject,
    )
    return store.put_manifest(to_json(manifest), MANIFEST_TYPE)
