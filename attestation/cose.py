# SPDX-License-Identifier: Apache-2.0
"""COSE_Sign1 (RFC 9052 section 4.2), strictly: parse, verify, sign.

A message is accepted only if all of these rules hold:

1. The tag is as the caller demands: none, 18, or 61 around 18; certificates and our own statements have none.
2. It is an array of protected bstr, unprotected map, payload bstr, signature bstr, in the strict CBOR profile.
3. The protected header is not empty, and is itself strict CBOR with integer labels only.
4. No label stands in both headers; there is no ``crit``; every label is on the caller's allow-list for its header.
5. ``alg`` stands in the protected header, is one of ES256, ES384, EdDSA and on the caller's list.
6. The content type, where the caller names one, is in the protected header and equal.
7. The signature has its algorithm's fixed width, and 0 < r, s < n. High-S is accepted: COSE has no low-S rule.
8. The verifying key has this algorithm, and the signature verifies over ["Signature1", protected, h'', payload].
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from attestation.cbor import LIMIT, Value, Writable, byte_string, dumps, strict_loads
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey, PublicKey, alg_of

ALG: Final = 1
CRIT: Final = 2
CONTENT_TYPE: Final = 3
KID: Final = 4
TYP: Final = 16

ALL_ALGS: Final = frozenset(Alg)
STATEMENT_HEADERS: Final = frozenset({ALG, CONTENT_TYPE, KID})
"""Protected labels of our own statements: grant, release, listing token."""

_TAG_18: Final = b"\xd2"
_TAG_61_18: Final = b"\xd8\x3d\xd2"
_ORDER: Final = {
    Alg.ES256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    Alg.ES384: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
}
_ECDSA: Final = {Alg.ES256: ec.ECDSA(hashes.SHA256()), Alg.ES384: ec.ECDSA(hashes.SHA384())}
_HASH: Final = {Alg.ES256: hashes.SHA256, Alg.ES384: hashes.SHA384}
_ALG_ONLY: Final = {dumps({ALG: int(alg)}): alg for alg in Alg}
"""The commonest protected headers, encoded: nothing in them is left to check."""
_SIGNATURE_SIZE: Final = {Alg.ES256: 64, Alg.ES384: 96, Alg.EDDSA: 64}


class Tagging(Enum):
    """Which outer tags a message may have."""

    UNTAGGED = "none"
    TAGGED = "18, or 61 around 18"
    EITHER = "none, 18, or 61 around 18"


class Signed(Protocol):
    """Something signed, in whatever form: what ``verify`` needs of it."""

    @property
    def alg(self) -> Alg:
        """The algorithm that it says it is signed with."""
        ...

    @property
    def signature(self) -> bytes:
        """r || s of fixed width, or EdDSA."""
        ...

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        ...


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """Bytes with a signature beside them, such as an X.509 certificate."""

    alg: Alg
    signature: bytes
    signed_bytes: bytes


class Sign1(NamedTuple):
    """A parsed message. Nothing in it is to be believed before ``verify`` has returned."""

    protected_bytes: bytes
    """As received: the signature covers these bytes, not a re-encoding."""
    protected: Mapping[int, Value]
    unprotected: Mapping[int, Value]
    payload: bytes
    signature: bytes
    alg: Alg

    @property
    def signed_bytes(self) -> bytes:
        """The Sig_structure (RFC 9052 section 4.4), without external data."""
        return _to_be_signed(self.protected_bytes, self.payload)

    @property
    def kid(self) -> bytes | None:
        """The key id, from the protected header if it is there. A hint, never proof."""
        value = self.protected.get(KID, self.unprotected.get(KID))
        return value if isinstance(value, bytes) else None


def parse(
    data: bytes,
    *,
    tagging: Tagging = Tagging.UNTAGGED,
    protected: Set[int] = STATEMENT_HEADERS,
    unprotected: Set[int] = frozenset(),
    content_type: str | None = None,
    algs: Set[Alg] = ALL_ALGS,
    limit: int = LIMIT,
) -> Sign1:
    """Check rules 1 to 7 except the range of r and s, which ``verify`` checks.

    Args:
        data: the encoded message.
        tagging: allowed outer tags.
        protected: labels that the protected header may hold.
        unprotected: labels that the unprotected header may hold.
        content_type: demanded content type; None leaves it to the allow-list.
        algs: algorithms that are acceptable here.
        limit: most bytes accepted, tag included.

    Raises:
        Reject: a rule is broken.
    """
    if not 0 < len(data) <= limit:
        raise Reject(Code.SIZE, f"{len(data)} bytes of COSE_Sign1, allowed are 1 to {limit}")
    message = strict_loads(_untag(data, tagging), limit, allow_null=True)
    if not isinstance(message, list) or len(message) != 4:
        raise Reject(Code.COSE_STRUCTURE, "COSE_Sign1 is an array of 4")
    protected_bytes, outer, payload, signature = message
    if not isinstance(protected_bytes, bytes) or not isinstance(outer, dict) or not isinstance(signature, bytes):
        raise Reject(Code.COSE_STRUCTURE, "COSE_Sign1 is [protected bstr, unprotected map, payload, signature bstr]")
    if protected_bytes in (b"", b"\xa0"):
        raise Reject(Code.COSE_NOPROTECTED, "the protected header is empty, so no algorithm is protected")
    inner_labels: dict[int, Value]
    outer_labels: dict[int, Value]
    known = _ALG_ONLY.get(protected_bytes)
    if known is not None and known in algs and ALG in protected and not outer:
        alg, inner_labels, outer_labels = known, {ALG: int(known)}, {}
    else:
        inner = strict_loads(protected_bytes, limit)
        if not isinstance(inner, dict):
            raise Reject(Code.COSE_STRUCTURE, "the protected header is not a map")
        inner_labels, outer_labels = _integer_labels(inner, "protected"), _integer_labels(outer, "unprotected")
        alg = _check_headers(inner_labels, outer_labels, protected, unprotected, algs)
    if content_type is not None and inner_labels.get(CONTENT_TYPE) != content_type:
        found = inner_labels.get(CONTENT_TYPE)
        raise Reject(Code.COSE_CONTENTTYPE, f"content type {found!r:.60}, expected {content_type!r}")
    if not isinstance(payload, bytes):
        raise Reject(Code.COSE_DETACHED, "the payload is not a byte string in the message")
    if len(signature) != _SIGNATURE_SIZE[alg]:
        size = _SIGNATURE_SIZE[alg]
        raise Reject(Code.SIG_LENGTH, f"{len(signature)} bytes of signature, {alg.name} has {size}")
    return Sign1(protected_bytes, inner_labels, outer_labels, payload, signature, alg)


def verify(message: Signed, key: PublicKey) -> None:
    """Check rules 7 and 8.

    Raises:
        Reject: ``cose.keyalg``, ``sig.range`` or ``sig.invalid``.
    """
    if alg_of(key) is not message.alg:
        raise Reject(Code.COSE_KEYALG, f"the message says {message.alg.name}, the key is {alg_of(key).name}")
    verify_bytes(message.alg, key, message.signature, message.signed_bytes)


def verify_bytes(alg: Alg, key: PublicKey, signature: bytes, data: bytes) -> None:
    """Verify a COSE signature (r || s, or EdDSA) over plain bytes.

    Raises:
        Reject: ``sig.length``, ``sig.range`` or ``sig.invalid``.
    """
    if len(signature) != _SIGNATURE_SIZE[alg]:
        size = _SIGNATURE_SIZE[alg]
        raise Reject(Code.SIG_LENGTH, f"{len(signature)} bytes of signature, {alg.name} has {size}")
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            if not (0 < r < _ORDER[alg] and 0 < s < _ORDER[alg]):
                raise Reject(Code.SIG_RANGE, "r or s is zero or not below the group order")
            key.verify(encode_dss_signature(r, s), data, _ECDSA[alg])
    except InvalidSignature as error:
        raise Reject(Code.SIG_INVALID, f"the {alg.name} signature does not verify under the expected key") from error


def sign(
    payload: bytes,
    key: PrivateKey,
    *,
    content_type: str | None = None,
    kid: bytes | None = None,
    protected: Mapping[int, Writable] | None = None,
    unprotected: Mapping[int, Writable] | None = None,
    tagged: bool = False,
) -> bytes:
    """Make a COSE_Sign1. ECDSA is deterministic (RFC 6979): the same input gives the same bytes.

    Args:
        payload: the signed content.
        key: decides the algorithm.
        content_type: content type for the protected header.
        kid: key id for the protected header.
        protected: further protected headers.
        unprotected: unprotected headers.
        tagged: put tag 18 in front.
    """
    header: dict[int, Writable] = {**(protected or {}), ALG: int(alg_of(key))}
    if content_type is not None:
        header[CONTENT_TYPE] = content_type
    if kid is not None:
        header[KID] = kid
    encoded = dumps(header)
    signature = sign_bytes(key, _to_be_signed(encoded, payload))
    message = dumps([encoded, dict(unprotected or {}), payload, signature])
    return _TAG_18 + message if tagged else message


def sign_bytes(key: PrivateKey, data: bytes) -> bytes:
    """A COSE signature over plain bytes: r || s of fixed width, or EdDSA."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    alg = alg_of(key)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_HASH[alg](), deterministic_signing=True)))
    width = _SIGNATURE_SIZE[alg] // 2
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def _untag(data: bytes, tagging: Tagging) -> bytes:
    if data[0] >> 5 != 6:
        if tagging is Tagging.TAGGED:
            raise Reject(Code.COSE_TAG, "the message has no tag, expected 18")
        return data
    if tagging is Tagging.UNTAGGED:
        raise Reject(Code.COSE_TAG, "the message has a tag, expected none")
    for prefix in (_TAG_61_18, _TAG_18):
        if data.startswith(prefix):
            rest = data[len(prefix) :]
            if rest and rest[0] >> 5 != 6:
                return rest
    raise Reject(Code.COSE_TAG, "the outer tag is neither 18 nor 61 around 18")


def _integer_labels(header: dict[int | str, Value], name: str) -> dict[int, Value]:
    labels: dict[int, Value] = {}
    for label, value in header.items():
        if not isinstance(label, int):
            raise Reject(Code.COSE_HEADER, f"the {name} header holds the text label {label!r:.40}")
        labels[label] = value
    return labels


def _check_headers(
    inner: dict[int, Value],
    outer: dict[int, Value],
    protected: Set[int],
    unprotected: Set[int],
    algs: Set[Alg],
) -> Alg:
    if both := inner.keys() & outer.keys():
        raise Reject(Code.COSE_DUPLABEL, f"label {min(both)} stands in both headers")
    if CRIT in inner or CRIT in outer:
        raise Reject(Code.COSE_CRIT, "headers are marked as critical, none is understood")
    value = inner.get(ALG)
    if type(value) is not int or value not in algs:
        allowed = ", ".join(alg.name for alg in sorted(algs))
        raise Reject(Code.COSE_ALG, f"protected alg {value!r:.40}, allowed are {allowed}")
    for name, header, allowed_labels in (
        ("protected", inner, protected),
        ("unprotected", outer, unprotected),
    ):
        if excess := header.keys() - allowed_labels:
            raise Reject(Code.COSE_HEADER, f"label {min(excess)} is not allowed in the {name} header")
    for header in (inner, outer):
        if KID in header and not isinstance(header[KID], bytes):
            raise Reject(Code.COSE_HEADER, "kid is not a byte string")
    return Alg(value)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return b"\x84\x6aSignature1%b\x40%b" % (byte_string(protected), byte_string(payload))
