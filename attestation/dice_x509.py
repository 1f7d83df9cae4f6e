# SPDX-License-Identifier: Apache-2.0
"""DICE certificates in X.509 (Open Profile for DICE v2.6, "X.509 CDI Certificates"). Pure.

The profile leaves hardly a choice, so the parts are compared with the bytes that they must be; what holds is then
parsed by ``cryptography``, whose key it is. A certificate is accepted only if all of these rules hold (rules 5 and 6 of
``dice_cbor``, links and signatures, follow):

1. It has at most 2,048 bytes, is DER (``dice.x509.der``) of version 3, and nothing follows it or any part of it.
2. The signature algorithm is written as RFC 5480, RFC 5758 or RFC 8410 demand (no NULL parameters), is the same inside
   and outside, and is one of the accepted ones (``dice.x509.alg``). An ECDSA signature is DER of two positive integers.
3. Issuer and subject are one PrintableString serialNumber of 40 lower-case hex digits: an id (``dice.x509.name``).
4. The serial number is the subject's id as an integer (``dice.x509.serial``), and that the id of the certified key
   (``dice.subjectid``).
5. The validity ends at 9999-12-31 23:59:59, "no well-defined end" (RFC 5280 section 4.1.2.5): devices have no clock and
   freshness comes from the nonce alone (``dice.x509.validity``). When it begins is not judged.
6. The key is an uncompressed P-256 or P-384 point on its named curve, or Ed25519, and sound (``key.*``).
7. There are exactly these extensions, each once, with this criticality and DER, and no other, critical or not
   (``dice.x509.extension``):
   authority key id = issuer's id, not critical; subject key id = subject's id, not critical (``dice.x509.keyid``);
   key usage, critical: keyCertSign alone for a layer (``dice.keyusage``), digitalSignature alone for an attestation key
   (``leaf.keyusage``); basic constraints, critical: CA with or without a path length for a layer, absent or empty for
   an attestation key (``dice.x509.constraints``); for a layer the DICE extension 1.3.6.1.4.1.11129.2.1.24, critical.
8. The DICE extension holds the fields of the CBOR form under the tags 0 to 7, ascending: code hash, configuration
   descriptor, authority hash and mode (an ENUMERATED of one byte) are required; the hashes are checked as there.
"""

from collections.abc import Set
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestation import cose, der, keys
from attestation.dice_cbor import CERTIFICATE_LIMIT, Certificate, LeafCertificate, check_layer
from attestation.errors import Code, Reject
from attestation.keys import Alg, PublicKey

FIRST_BYTE: Final = der.SEQUENCE
"""What an X.509 certificate begins with, and a certificate in CBOR never does."""

NOT_AFTER: Final = der.write(der.GENERALIZED_TIME, b"99991231235959Z")
VERSION_3: Final = der.write(der.context(0), der.unsigned(2))
ALGORITHMS: Final = {
    bytes.fromhex("300a06082a8648ce3d040302"): Alg.ES256,
    bytes.fromhex("300a06082a8648ce3d040303"): Alg.ES384,
    bytes.fromhex("300506032b6570"): Alg.EDDSA,
}
NAME_HEAD: Final = bytes.fromhex("30333131302f06035504051328")
"""SEQUENCE of one SET of one serialNumber (2.5.4.5), a PrintableString of 40 characters."""
AUTHORITY_KEY_ID, SUBJECT_KEY_ID, KEY_USAGE, BASIC_CONSTRAINTS, DICE = (
    bytes.fromhex("0603551d23"),
    bytes.fromhex("0603551d0e"),
    bytes.fromhex("0603551d0f"),
    bytes.fromhex("0603551d13"),
    bytes.fromhex("060a2b06010401d679020118"),
)
KEY_CERT_SIGN: Final = bytes.fromhex("03020204")
DIGITAL_SIGNATURE: Final = bytes.fromhex("03020780")
CA: Final = der.write(der.SEQUENCE, der.write(der.BOOLEAN, b"\xff"))

_CRITICAL: Final = {
    AUTHORITY_KEY_ID: False,
    SUBJECT_KEY_ID: False,
    KEY_USAGE: True,
    BASIC_CONSTRAINTS: True,
    DICE: True,
}
_NAMES: Final = {
    AUTHORITY_KEY_ID: "authority key identifier",
    SUBJECT_KEY_ID: "subject key identifier",
    KEY_USAGE: "key usage",
    BASIC_CONSTRAINTS: "basic constraints",
    DICE: "DICE",
}
_LEAF_EXTENSIONS: Final = frozenset({AUTHORITY_KEY_ID, SUBJECT_KEY_ID, KEY_USAGE})
_LAYER_EXTENSIONS: Final = _LEAF_EXTENSIONS | {BASIC_CONSTRAINTS, DICE}
_HEX: Final = frozenset(b"0123456789abcdef")
_WIDTH: Final = {Alg.ES256: 32, Alg.ES384: 48}


def parse_certificate(
    data: bytes,
    *,
    algs: Set[Alg] = cose.ALL_ALGS,
    compressed_ids: bool = False,
    require_configuration_hash: bool = True,
) -> Certificate:
    """Check the rules of this module for the certificate of a layer. Arguments as ``dice_cbor.parse_certificate``.

    Raises:
        Reject: a rule is broken.
    """
    opened = _Opened(data, algs, compressed_ids)
    opened.check_extensions(_LAYER_EXTENSIONS, frozenset())
    if opened.extensions[KEY_USAGE] != KEY_CERT_SIGN:
        raise Reject(Code.DICE_KEYUSAGE, "the key usage of a layer is exactly keyCertSign")
    path_length = _path_length(opened.extensions[BASIC_CONSTRAINTS])
    fields, mode, profile = _dice_fields(opened.extensions[DICE])
    checked = check_layer(
        code_hash=fields.get(0),
        configuration_hash=fields.get(2),
        configuration=fields.get(3),
        authority_hash=fields.get(4),
        mode=mode,
        require_configuration_hash=require_configuration_hash,
    )
    return Certificate(
        opened.message,
        opened.issuer,
        opened.subject,
        opened.key,
        *checked,
        profile_name=profile,
        path_length=path_length,
    )


def parse_leaf(data: bytes, *, algs: Set[Alg] = cose.ALL_ALGS, compressed_ids: bool = False) -> LeafCertificate:
    """Check the rules of this module for the certificate of an attestation key.

    Raises:
        Reject: a rule is broken; ``leaf.keyusage`` where the key could also sign certificates.
    """
    opened = _Opened(data, algs, compressed_ids)
    opened.check_extensions(_LEAF_EXTENSIONS, frozenset({BASIC_CONSTRAINTS}))
    if opened.extensions[KEY_USAGE] != DIGITAL_SIGNATURE:
        raise Reject(Code.LEAF_KEYUSAGE, "the key usage of an attestation key is exactly digitalSignature")
    if opened.extensions.get(BASIC_CONSTRAINTS, der.write(der.SEQUENCE)) != der.write(der.SEQUENCE):
        raise Reject(Code.DICE_X509_CONSTRAINTS, "an attestation key is no CA and has no path length")
    return LeafCertificate(opened.message, opened.issuer, opened.subject, opened.key)


class _Opened:
    """A certificate after rules 1 to 6."""

    def __init__(self, data: bytes, algs: Set[Alg], compressed_ids: bool) -> None:
        if not 0 < len(data) <= CERTIFICATE_LIMIT:
            raise Reject(Code.SIZE, f"{len(data)} bytes of certificate, allowed are 1 to {CERTIFICATE_LIMIT}")
        outer = der.Reader(data, "certificate")
        parts = der.Reader(outer.element(der.SEQUENCE), "certificate")
        outer.end()
        signed = parts.whole(der.SEQUENCE)
        alg_outside, signature = parts.whole(der.SEQUENCE), parts.element(der.BIT_STRING)
        parts.end()

        body = der.Reader(der.Reader(signed, "signed part").element(der.SEQUENCE), "signed part")
        if body.whole(der.context(0)) != VERSION_3:
            raise Reject(Code.DICE_X509_DER, "the certificate is not of version 3")
        serial, alg_inside = body.whole(der.INTEGER), body.whole(der.SEQUENCE)
        issuer, validity, subject = (body.whole(der.SEQUENCE) for _ in range(3))
        public_key, extensions = body.whole(der.SEQUENCE), body.element(der.context(3))
        body.end()

        alg = ALGORITHMS.get(alg_inside)
        if alg is None or alg_outside != alg_inside or alg not in algs:
            raise Reject(Code.DICE_X509_ALG, f"signature algorithm {alg_inside.hex():.60} is not an accepted one")
        self.issuer, self.subject = _name(issuer, "issuer"), _name(subject, "subject")
        _check_validity(validity)
        if serial != der.unsigned(int.from_bytes(self.subject, "big")):
            raise Reject(Code.DICE_X509_SERIAL, f"serial number {serial.hex():.60} is not subject {self.subject.hex()}")
        self.key = _key(_parsed(data), public_key)
        if self.subject != keys.dice_id(self.key, compressed=compressed_ids):
            raise Reject(Code.DICE_SUBJECTID, f"subject {self.subject.hex()} is not the id of the certified key")
        self.message = cose.SignedBytes(alg, _signature(signature, alg), signed)
        self._extensions_der = extensions
        self.extensions: dict[bytes, bytes] = {}

    def check_extensions(self, required: frozenset[bytes], optional: frozenset[bytes]) -> None:
        """Rule 7, except what key usage, constraints and the DICE extension say."""
        outer = der.Reader(self._extensions_der, "extensions")
        listed = der.Reader(outer.element(der.SEQUENCE), "extensions")
        outer.end()
        while listed.more:
            entry = der.Reader(listed.element(der.SEQUENCE), "extension")
            oid = entry.whole(der.OBJECT_ID)
            critical = entry.tag == der.BOOLEAN
            if critical and entry.element(der.BOOLEAN) != b"\xff":
                raise Reject(Code.DICE_X509_DER, "extension: a criticality that is not TRUE is left out in DER")
            value = entry.element(der.OCTET_STRING)
            entry.end()
            if oid not in required | optional or oid in self.extensions:
                raise Reject(Code.DICE_X509_EXTENSION, f"extension {oid.hex():.60} is unknown here, or stands twice")
            if critical is not _CRITICAL[oid]:
                wanted = "critical" if _CRITICAL[oid] else "not critical"
                raise Reject(Code.DICE_X509_EXTENSION, f"the {_NAMES[oid]} extension must be {wanted}")
            self.extensions[oid] = value
        if missing := required - self.extensions.keys():
            raise Reject(Code.DICE_X509_EXTENSION, f"the {_NAMES[min(missing)]} extension is missing")
        authority = der.write(der.SEQUENCE, der.write(0x80, self.issuer))
        if self.extensions[AUTHORITY_KEY_ID] != authority:
            raise Reject(Code.DICE_X509_KEYID, "the authority key identifier is not the issuer's id")
        if self.extensions[SUBJECT_KEY_ID] != der.write(der.OCTET_STRING, self.subject):
            raise Reject(Code.DICE_X509_KEYID, "the subject key identifier is not the subject's id")


def _parsed(data: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(data)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise Reject(Code.DICE_X509_DER, "not an X.509 certificate in DER") from error


def _key(parsed: x509.Certificate, public_key: bytes) -> PublicKey:
    try:
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Reject(Code.KEY_POINT, "the certified key is not a key of a known kind and curve") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise Reject(Code.KEY_CURVE, "the certified key is none of Ed25519, P-256, P-384")
    sound = keys.from_raw(keys.alg_of(key), keys.raw(key))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    if sound.public_bytes(serialization.Encoding.DER, form) != public_key:
        raise Reject(Code.KEY_STRUCTURE, "the certified key is not an uncompressed point on a named curve")
    return sound


def _name(name: bytes, what: str) -> bytes:
    digits = name[len(NAME_HEAD) :]
    if not name.startswith(NAME_HEAD) or len(digits) != 40 or not _HEX.issuperset(digits):
        raise Reject(Code.DICE_X509_NAME, f"the {what} is not one serialNumber of 40 lower-case hex digits")
    return bytes.fromhex(digits.decode("ascii"))


def _check_validity(validity: bytes) -> None:
    times = der.Reader(der.Reader(validity, "validity").element(der.SEQUENCE), "validity")
    begin = times.element(der.GENERALIZED_TIME if times.tag == der.GENERALIZED_TIME else der.UTC_TIME)
    if not begin[:-1].isdigit() or begin[-1:] != b"Z" or len(begin) not in (13, 15):
        raise Reject(Code.DICE_X509_VALIDITY, "the validity begins at no time of day in UTC")
    end = times.data[times.position :]
    if end != NOT_AFTER:
        raise Reject(Code.DICE_X509_VALIDITY, f"the validity ends at {end.hex():.60}, expected 99991231235959Z")


def _signature(content: bytes, alg: Alg) -> bytes:
    """The signature in COSE's form: r || s of fixed width, or EdDSA's bytes."""
    if content[:1] != b"\x00":
        raise Reject(Code.DICE_X509_DER, "the signature is not a whole number of bytes")
    if alg is Alg.EDDSA:
        if len(content) != 65:
            raise Reject(Code.SIG_LENGTH, f"{len(content) - 1} bytes of signature, EDDSA has 64")
        return content[1:]
    width = _WIDTH[alg]
    try:
        r, s = decode_dss_signature(content[1:])
    except ValueError as error:
        raise Reject(Code.SIG_LENGTH, "the signature is not DER of two integers") from error
    if r < 0 or s < 0 or max(r, s).bit_length() > 8 * width:
        raise Reject(Code.SIG_RANGE, "r or s is negative or wider than the group order")
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def _path_length(constraints: bytes) -> int | None:
    if constraints == CA:
        return None
    outer = der.Reader(constraints, "basic constraints")
    inner = der.Reader(outer.element(der.SEQUENCE), "basic constraints")
    outer.end()
    if inner.tag != der.BOOLEAN or inner.element(der.BOOLEAN) != b"\xff":
        raise Reject(Code.DICE_X509_CONSTRAINTS, "the certificate of a layer must say that it is a CA")
    length = inner.element(der.INTEGER)
    inner.end()
    if len(length) != 1 or length[0] > 0x7F:
        raise Reject(Code.DICE_X509_CONSTRAINTS, f"path length {length.hex():.20} is not one from 0 to 127")
    return length[0]


def _dice_fields(extension: bytes) -> tuple[dict[int, bytes], bytes | None, str | None]:
    """Rule 8: the byte strings by tag, mode, profile name."""
    outer = der.Reader(extension, "DICE extension")
    reader = der.Reader(outer.element(der.SEQUENCE), "DICE extension")
    outer.end()
    fields: dict[int, bytes] = {}
    mode: bytes | None = None
    profile: str | None = None
    for tag in range(8):
        if reader.tag != der.context(tag):
            continue
        field = der.Reader(reader.element(der.context(tag)), f"DICE extension, field {tag}")
        if tag == 6:
            mode = field.element(der.ENUMERATED)
        elif tag == 7:
            profile = _text(field.element(der.UTF8_STRING))
        else:
            fields[tag] = field.element(der.OCTET_STRING)
        field.end()
    if reader.more:
        raise Reject(Code.DICE_FIELD, f"the DICE extension holds tag {reader.tag:#04x}, unknown or out of order")
    return fields, mode, profile


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Reject(Code.DICE_X509_DER, "the profile name is not UTF-8") from error
