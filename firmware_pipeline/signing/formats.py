# SPDX-License-Identifier: Apache-2.0
"""The two signature formats of cosign, as pure data: what is signed, and how it is wrapped. No key is used here.

Simple signing (cosign 1 and 2): the signed bytes are a JSON layer; the signature is base64 in the layer's annotation;
the manifest stands under the tag `sha256-<hex>.sig`.
Bundle v0.3 (cosign 3): a DSSE envelope around an in-toto statement, in a manifest whose `subject` is what was signed.

Sources: sigstore cosign SIGNATURE_SPEC and BUNDLE_SPEC; DSSE protocol 1.0; in-toto Statement v1.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.oci import (
    EMPTY_JSON,
    EMPTY_TYPE,
    Descriptor,
    Manifest,
    canonical_json,
    strict_json,
    to_json,
)
from firmware_pipeline.signing.statements import SIGN_PREDICATE, Claim, read_statement, texts, write_statement
from firmware_pipeline.store import Blob

MAX_SIGNED_BYTES: Final = 1024 * 1024
MAX_ATTESTATION_BYTES: Final = 8 * 1024 * 1024
MAX_SIGNATURES: Final = 32
SIMPLE_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
PREDICATE_ANNOTATION: Final = "dev.sigstore.bundle.predicateType"
_SIMPLE_KIND: Final = "cosign container image signature"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that claims to be a signature: what was signed, by which bytes, over which digest.

    Attributes:
        signed: the bytes that the signature covers.
        signature: ECDSA DER, Ed25519 or RSA.
        body: the JSON document inside, to be believed only after the signature holds.
        simple: which format.
    """

    signed: bytes
    signature: bytes
    body: bytes
    simple: bool


def signature_tag(digest: str) -> str:
    """Where simple signatures of `digest` stand: `sha256-<hex>.sig`."""
    return digest.replace(":", "-") + ".sig"


# ---- simple signing --------------------------------------------------------------------------------------


def simple_payload(digest: str, identity: str, annotations: Mapping[str, str] | None = None) -> bytes:
    """The bytes to sign.

    Args:
        digest: of the signed manifest or index.
        identity: the repository it was pushed to.
        annotations: what the signer states beside it.
    """
    return canonical_json(
        {
            "critical": {
                "identity": {"docker-reference": identity},
                "image": {"docker-manifest-digest": digest},
                "type": _SIMPLE_KIND,
            },
            "optional": dict(annotations) if annotations else None,
        }
    )


def simple_layer(payload: bytes, signature: bytes) -> Descriptor:
    """The layer that carries one signature."""
    blob = Blob.of(payload)
    encoded = base64.b64encode(signature).decode()
    return Descriptor(
        media_type=SIMPLE_TYPE, digest=blob.digest, size=blob.size, annotations={SIGNATURE_ANNOTATION: encoded}
    )


def simple_manifest(layers: list[Descriptor]) -> tuple[bytes, bytes]:
    """(manifest, config) for the `.sig` tag; the config is an image config only because cosign writes one."""
    config = canonical_json(
        {
            "architecture": "",
            "config": {},
            "created": "0001-01-01T00:00:00Z",
            "history": [{"created": "0001-01-01T00:00:00Z"} for _ in layers],
            "os": "",
            "rootfs": {"diff_ids": [layer.digest for layer in layers], "type": "layers"},
        }
    )
    blob = Blob.of(config)
    descriptor = Descriptor(media_type=SIMPLE_CONFIG_TYPE, digest=blob.digest, size=blob.size)
    return to_json(Manifest(schema_version=2, config=descriptor, layers=layers)), config


def simple_candidate(layer: Descriptor, payload: bytes) -> Candidate | None:
    """One layer of a `.sig` manifest; None when it holds no signature at all."""
    signature = _base64(layer.annotations.get(SIGNATURE_ANNOTATION, ""))
    return Candidate(payload, signature, payload, simple=True) if signature else None


# ---- bundle ----------------------------------------------------------------------------------------------


def statement(digest: str, annotations: Mapping[str, str] | None = None) -> bytes:
    """The in-toto statement that a signature makes about `digest`."""
    return write_statement([digest], SIGN_PREDICATE, {}, annotations=annotations)


def pae(body: bytes) -> bytes:
    """DSSE pre-authentication encoding: the bytes that are signed for `body`."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(body), body)


def bundle(body: bytes, signature: bytes, hint: str) -> bytes:
    """The bundle around one signed statement."""
    return canonical_json(
        {
            "dsseEnvelope": {
                "payload": base64.b64encode(body).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode()}],
            },
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}},
        }
    )


def bundle_manifest(bundle_bytes: bytes, subject: Descriptor, predicate_type: str = SIGN_PREDICATE) -> bytes:
    """The manifest that attaches a bundle to `subject`."""
    layer, empty = Blob.of(bundle_bytes), Blob.of(EMPTY_JSON)
    return to_json(
        Manifest(
            schema_version=2,
            artifact_type=BUNDLE_TYPE,
            config=Descriptor(media_type=EMPTY_TYPE, digest=empty.digest, size=empty.size),
            layers=[Descriptor(media_type=BUNDLE_TYPE, digest=layer.digest, size=layer.size)],
            subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
            annotations={
                "dev.sigstore.bundle.content": "dsse-envelope",
                PREDICATE_ANNOTATION: predicate_type,
            },
        )
    )


def bundle_candidate(raw: bytes) -> Candidate | None:
    """Read a bundle; None when it is not one with a DSSE envelope around an in-toto statement."""
    try:
        document: dict[str, Any] = strict_json(raw, "the bundle")
        envelope = document["dsseEnvelope"]
        signatures = envelope["signatures"]
        body = _base64(envelope["payload"])
        signature = _base64(signatures[0]["sig"])
        usable = document["mediaType"] == BUNDLE_TYPE and envelope["payloadType"] == PAYLOAD_TYPE
    except (PipelineError, KeyError, IndexError, TypeError):
        return None
    if not usable or len(signatures) != 1 or not body or not signature:
        return None
    return Candidate(pae(body), signature, body, simple=False)


# ---- both ------------------------------------------------------------------------------------------------


def claim_of(candidate: Candidate) -> Claim | None:
    """What a candidate says; None for what is no claim at all. Call it only after its signature was verified."""
    if not candidate.simple:
        return read_statement(candidate.body)
    try:
        document = strict_json(candidate.body, "the signed document")
        critical = document["critical"]
        digest, identity = critical["image"]["docker-manifest-digest"], critical["identity"]["docker-reference"]
        if critical["type"] != _SIMPLE_KIND or not isinstance(digest, str) or not isinstance(identity, str):
            return None
    except (PipelineError, KeyError, TypeError):
        return None
    return Claim(SIGN_PREDICATE, frozenset({digest}), texts(document.get("optional")), identity, {})


def _base64(text: object) -> bytes:
    """Decoded canonical base64; empty for anything else."""
    if not isinstance(text, str):
        return b""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return value if base64.b64encode(value).decode() == text else b""
