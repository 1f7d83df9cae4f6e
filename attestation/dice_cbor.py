# SPDX-License-Identifier: Apache-2.0
"""DICE certificates in CBOR (Open Profile for DICE v2.6, "CBOR UDS Certificates" and "CBOR CDI Certificates").

A chain is accepted only if all of these rules hold:

1. It has 1 to 4 certificates; the last layers' number is the policy's business (verifier).
2. Each certificate is an untagged COSE_Sign1 with nothing but ``alg`` in its protected header.
3. Each holds the required fields in the right types, no unknown field, one hash length, and a configuration hash that
   is the hash of its descriptor.
4. The key is a sound COSE_Key, the subject is the id of that key, the key usage is exactly the one for its place:
   keyCertSign for layers, digitalSignature for an attestation key.
5. The first issuer is the id of the anchor, every other issuer the previous subject; no subject occurs twice, the
   anchor included, and none belongs to the all-zero device secret.
6. Certificate i is signed by key i - 1, with that key's own algorithm; the anchor is key -1 and never comes from the
   evidence itself.

Configuration descriptors (docs/device-protocol.md): both layers state -70002 component name; the application states
-70005 security version, -71001 SHA-256 of the partition table, -71002 boot id, -71003 slot, -71004 security eFuses;
the bootloader may state -70005. Unknown labels are refused: what is signed is understood.
"""

import hashlib
import hmac
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from attestation import cose, keys
from attestation.cbor import Value, strict_loads
from attestation.errors import Code, Reject
from attestation.keys import Alg, PublicKey
from attestation.policy import Mode

MAX_CERTIFICATES: Final = 4
CERTIFICATE_LIMIT: Final = 2048

ISSUER: Final = 1
SUBJECT: Final = 2
CODE_HASH: Final = -4670545
CODE_DESCRIPTOR: Final = -4670546
CONFIGURATION_HASH: Final = -4670547
CONFIGURATION_DESCRIPTOR: Final = -4670548
AUTHORITY_HASH: Final = -4670549
AUTHORITY_DESCRIPTOR: Final = -4670550
MODE: Final = -4670551
SUBJECT_PUBLIC_KEY: Final = -4670552
KEY_USAGE: Final = -4670553
PROFILE_NAME: Final = -4670554

COMPONENT_NAME: Final = -70002
SECURITY_VERSION: Final = -70005
PARTITION_TABLE: Final = -71001
BOOT_ID: Final = -71002
SLOT: Final = -71003
SECURITY_EFUSES: Final = -71004

EFUSE_SECURE_BOOT: Final = 1 << 0
EFUSES_LOCKED: Final = EFUSE_SECURE_BOOT | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 7
"""Secure boot, flash encryption, its release mode, JTAG off, download mode locked: what mode Normal means."""

_LAYER_FIELDS: Final = frozenset(range(PROFILE_NAME, CODE_HASH + 1)) | {ISSUER, SUBJECT}
_LEAF_FIELDS: Final = frozenset({ISSUER, SUBJECT, SUBJECT_PUBLIC_KEY, KEY_USAGE, PROFILE_NAME})
_KEY_CERT_SIGN: Final = b"\x20"
_DIGITAL_SIGNATURE: Final = b"\x01"
_HASHES: Final = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}
_MODES: Final = tuple(Mode)
_HEADERS: Final = frozenset({cose.ALG})
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One layer, as its certificate states it, in CBOR or X.509. Not to be believed before the chain is verified."""

    message: cose.Signed
    issuer: bytes
    """Id of the issuing key, 20 bytes."""
    subject: bytes
    """Id of the certified key, 20 bytes."""
    key: PublicKey
    code_hash: bytes
    """32, 48 or 64 bytes."""
    configuration: bytes
    """The descriptor: encoded map, or 64 raw bytes where it is not hashed."""
    authority_hash: bytes
    mode: Mode
    profile_name: str | None
    path_length: int | None = None
    """How many layers may follow at most, where an X.509 certificate says so."""


@dataclass(frozen=True, slots=True)
class LeafCertificate:
    """A certificate of an attestation key: it may sign tokens and nothing else."""

    message: cose.Signed
    issuer: bytes
    subject: bytes
    key: PublicKey


@dataclass(frozen=True, slots=True)
class BootloaderConfig:
    """Configuration descriptor of the bootloader."""

    name: str
    security_version: int | None


@dataclass(frozen=True, slots=True)
class ApplicationConfig:
    """Configuration descriptor of the application."""

    name: str
    security_version: int
    partition_table: bytes
    """SHA-256 of the partition table, 32 bytes."""
    boot_id: bytes
    """Grant id of the installation, 16 bytes; all zero where it has none."""
    slot: int
    """Partition subtype of the running slot."""
    security_efuses: int
    """Bits 0 secure boot, 1 flash encryption, 2 its release mode, 3 JTAG off, 7 download mode locked."""


def parse_certificate(
    data: bytes,
    *,
    algs: Set[Alg] = cose.ALL_ALGS,
    compressed_ids: bool = False,
    require_configuration_hash: bool = True,
) -> Certificate:
    """Check rules 2 to 4 for the certificate of a layer.

    Args:
        data: the certificate.
        algs: accepted algorithms.
        compressed_ids: ids are made from compressed points.
        require_configuration_hash: refuse a certificate whose configuration is 64 raw bytes.

    Raises:
        Reject: a rule is broken.
    """
    message, claims = _open(data, algs)
    if excess := claims.keys() - _LAYER_FIELDS:
        raise Reject(Code.DICE_FIELD, f"the certificate holds the unknown field {min(map(repr, excess)):.40}")
    issuer, subject, key = _identity(claims, compressed_ids)
    if claims.get(KEY_USAGE) != _KEY_CERT_SIGN:
        raise Reject(Code.DICE_KEYUSAGE, "the key usage of a layer is exactly keyCertSign, h'20'")
    checked = check_layer(
        code_hash=claims.get(CODE_HASH),
        configuration_hash=claims.get(CONFIGURATION_HASH),
        configuration=claims.get(CONFIGURATION_DESCRIPTOR),
        authority_hash=claims.get(AUTHORITY_HASH),
        mode=claims.get(MODE),
        require_configuration_hash=require_configuration_hash,
    )
    for label, name in ((CODE_DESCRIPTOR, "code descriptor"), (AUTHORITY_DESCRIPTOR, "authority descriptor")):
        if label in claims and not isinstance(claims[label], bytes):
            raise Reject(Code.DICE_STRUCTURE, f"the {name} is not a byte string")
    profile = claims.get(PROFILE_NAME)
    if profile is not None and not isinstance(profile, str):
        raise Reject(Code.DICE_STRUCTURE, "the profile name is not text")
    return Certificate(message, issuer, subject, key, *checked, profile_name=profile)


def parse_leaf(data: bytes, *, algs: Set[Alg] = cose.ALL_ALGS, compressed_ids: bool = False) -> LeafCertificate:
    """Check rules 2 to 4 for the certificate of an attestation key.

    Raises:
        Reject: a rule is broken; ``leaf.keyusage`` where the key could also sign certificates.
    """
    message, claims = _open(data, algs)
    if excess := claims.keys() - _LEAF_FIELDS:
        raise Reject(Code.DICE_FIELD, f"the attestation-key certificate holds the field {min(map(repr, excess)):.40}")
    issuer, subject, key = _identity(claims, compressed_ids)
    if claims.get(KEY_USAGE) != _DIGITAL_SIGNATURE:
        raise Reject(Code.LEAF_KEYUSAGE, "the key usage of an attestation key is exactly digitalSignature, h'01'")
    return LeafCertificate(message, issuer, subject, key)


def check_layer(
    *,
    code_hash: Value,
    configuration_hash: Value,
    configuration: Value,
    authority_hash: Value,
    mode: Value,
    require_configuration_hash: bool,
) -> tuple[bytes, bytes, bytes, Mode]:
    """What is the same in both forms of certificate: types and lengths of the hashes, configuration hash, mode.

    Args:
        code_hash: as found; None where absent, as for the others.
        configuration_hash: hash of the descriptor; absent where the descriptor is 64 raw bytes.
        configuration: the descriptor.
        authority_hash: as found.
        mode: one byte.
        require_configuration_hash: refuse a configuration of 64 raw bytes.

    Returns:
        (code hash, configuration, authority hash, mode).

    Raises:
        Reject: ``dice.hash``, ``dice.structure``, ``dice.confighash`` or ``dice.mode.structure``.
    """
    code, authority = _hash(code_hash, "code hash"), _hash(authority_hash, "authority hash")
    if len(authority) != len(code):
        raise Reject(Code.DICE_HASH, f"code hash of {len(code)} and authority hash of {len(authority)} bytes")
    if not isinstance(configuration, bytes):
        raise Reject(Code.DICE_STRUCTURE, "the configuration descriptor is missing or not a byte string")
    if configuration_hash is None:
        if require_configuration_hash or len(configuration) != 64:
            raise Reject(Code.DICE_CONFIGHASH, "the configuration hash is missing")
    elif not isinstance(configuration_hash, bytes) or len(configuration_hash) != len(code):
        raise Reject(Code.DICE_HASH, f"the configuration hash is not a byte string of {len(code)} bytes")
    elif not hmac.compare_digest(configuration_hash, _HASHES[len(code)](configuration).digest()):
        raise Reject(Code.DICE_CONFIGHASH, "the configuration hash is not the hash of the descriptor")
    if not isinstance(mode, bytes) or len(mode) != 1 or mode[0] >= len(_MODES):
        raise Reject(Code.DICE_MODE_STRUCTURE, "the mode is missing or not one byte from 0 to 3")
    return code, configuration, authority, _MODES[mode[0]]


def verify_chain(
    chain: Sequence[Certificate | LeafCertificate], anchor: PublicKey, *, anchor_id: bytes | None = None
) -> PublicKey:
    """Check rules 5 and 6, links before signatures.

    Args:
        chain: parsed certificates, the anchor's first.
        anchor: the enrolled key.
        anchor_id: its DICE id, in the form that the chain's ids have; None: made from the uncompressed point.

    Returns:
        The key that the last certificate certifies.

    Raises:
        Reject: a rule is broken.
    """
    previous = keys.dice_id(anchor) if anchor_id is None else anchor_id
    if previous in keys.UNPROVISIONED_IDS:
        raise Reject(Code.KEY_UNPROVISIONED, "the enrolled key belongs to the all-zero device secret")
    seen = {previous}
    for number, certificate in enumerate(chain):
        if certificate.issuer != previous:
            found, expected = certificate.issuer.hex(), previous.hex()
            raise Reject(Code.CHAIN_ISSUER, f"certificate {number} names issuer {found}, expected {expected}")
        if certificate.subject in seen:
            raise Reject(Code.CHAIN_REPEAT, f"certificate {number} repeats subject {certificate.subject.hex()}")
        if certificate.subject in keys.UNPROVISIONED_IDS:
            raise Reject(Code.KEY_UNPROVISIONED, f"certificate {number} is for a key of the all-zero device secret")
        previous = certificate.subject
        seen.add(previous)
    for number, certificate in enumerate(chain):
        allowed = certificate.path_length if isinstance(certificate, Certificate) else None
        if allowed is not None and sum(isinstance(later, Certificate) for later in chain[number + 1 :]) > allowed:
            raise Reject(Code.DICE_X509_PATHLEN, f"certificate {number} allows {allowed} further layers")
    signer = anchor
    for certificate in chain:
        cose.verify(certificate.message, signer)
        signer = certificate.key
    return signer


def read_bootloader_config(descriptor: bytes) -> BootloaderConfig:
    """Read the bootloader's configuration descriptor.

    Raises:
        Reject: ``dice.config``, or the descriptor is not strict CBOR.
    """
    values = _descriptor(descriptor, frozenset({COMPONENT_NAME}), frozenset({SECURITY_VERSION}))
    version = values.get(SECURITY_VERSION)
    return BootloaderConfig(_name(values), None if version is None else _uint(version, "security version"))


def read_application_config(descriptor: bytes) -> ApplicationConfig:
    """Read the application's configuration descriptor.

    Raises:
        Reject: ``dice.config``, or the descriptor is not strict CBOR.
    """
    required = frozenset({COMPONENT_NAME, SECURITY_VERSION, PARTITION_TABLE, BOOT_ID, SLOT, SECURITY_EFUSES})
    values = _descriptor(descriptor, required, frozenset())
    return ApplicationConfig(
        name=_name(values),
        security_version=_uint(values[SECURITY_VERSION], "security version"),
        partition_table=_fixed(values[PARTITION_TABLE], 32, "partition-table hash"),
        boot_id=_fixed(values[BOOT_ID], 16, "boot id"),
        slot=_uint(values[SLOT], "slot"),
        security_efuses=_uint(values[SECURITY_EFUSES], "security eFuses"),
    )


def _open(data: bytes, algs: Set[Alg]) -> tuple[cose.Sign1, dict[int | str, Value]]:
    message = cose.parse(data, protected=_HEADERS, algs=algs, limit=CERTIFICATE_LIMIT)
    claims = strict_loads(message.payload, CERTIFICATE_LIMIT)
    if not isinstance(claims, dict):
        raise Reject(Code.DICE_STRUCTURE, "the certificate's payload is not a map")
    return message, claims


def _identity(claims: dict[int | str, Value], compressed: bool) -> tuple[bytes, bytes, PublicKey]:
    issuer, subject = _id_field(claims, ISSUER, "issuer"), _id_field(claims, SUBJECT, "subject")
    encoded = claims.get(SUBJECT_PUBLIC_KEY)
    if not isinstance(encoded, bytes):
        raise Reject(Code.DICE_STRUCTURE, "the subject's public key is missing or not a byte string")
    key, point = keys.read_cose(encoded)
    if subject != (keys.dice_id(key, compressed=True) if compressed else keys.id_of_point(point)):
        raise Reject(Code.DICE_SUBJECTID, f"subject {subject.hex()} is not the id of the certified key")
    return issuer, subject, key


def _id_field(claims: dict[int | str, Value], label: int, name: str) -> bytes:
    value = claims.get(label)
    if not isinstance(value, str) or len(value) != 40 or not _HEX.issuperset(value):
        raise Reject(Code.DICE_STRUCTURE, f"the {name} is not text of 40 lower-case hex digits")
    return bytes.fromhex(value)


def _hash(value: Value, name: str) -> bytes:
    if not isinstance(value, bytes) or len(value) not in _HASHES:
        raise Reject(Code.DICE_HASH, f"the {name} is missing or not a byte string of 32, 48 or 64 bytes")
    return value


def _descriptor(data: bytes, required: frozenset[int], optional: frozenset[int]) -> dict[int | str, Value]:
    values = strict_loads(data, CERTIFICATE_LIMIT)
    if not isinstance(values, dict):
        raise Reject(Code.DICE_CONFIG, "the configuration descriptor is not a map")
    if missing := required - values.keys():
        raise Reject(Code.DICE_CONFIG, f"the configuration descriptor lacks {max(missing)}")
    if excess := values.keys() - required - optional:
        raise Reject(Code.DICE_CONFIG, f"the configuration descriptor holds the unknown {min(map(repr, excess)):.40}")
    return values


def _name(values: dict[int | str, Value]) -> str:
    name = values[COMPONENT_NAME]
    if not isinstance(name, str) or not 0 < len(name) <= 32 or not name.isprintable():
        raise Reject(Code.DICE_CONFIG, "the component name is not printable text of 1 to 32 characters")
    return name


def _uint(value: Value, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise Reject(Code.DICE_CONFIG, f"the {name} in the configuration descriptor is not an unsigned 32-bit integer")
    return value


def _fixed(value: Value, size: int, name: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise Reject(Code.DICE_CONFIG, f"the {name} in the configuration descriptor is not {size} bytes")
    return value
