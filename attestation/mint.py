# SPDX-License-Identifier: Apache-2.0
"""The device side of attestation: OpenDICE layers, certificates, EATs and evidence. Pure.

What a bootloader and its application compute, step by step (Open Profile for DICE v2.6; bit-equal with open-dice):

1. ``signing_key(cdi)``: the UDS is the first CDI; every CDI gives one key pair.
2. ``next_cdi(cdi, layer)``: mixes the measured layer into the secret.
3. ``certificate(...)`` or ``x509_certificate(...)``: the previous layer's key certifies the next layer's key and what was measured.
4. ``eat(...)``: the last layer's key signs claims over the verifier's nonce.
5. ``evidence(...)``: anchor id, certificates and EAT in one array.

Every step takes and gives plain values, so that a test can spoil exactly one of them. Nothing here wipes secrets: that
is the bootloader's duty, and Python's ``bytes`` cannot be wiped; callers that model it keep secrets in ``bytearray``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation import cose, der, dice_cbor, dice_x509
from attestation import eat as eat_profile
from attestation.cbor import Writable, dumps
from attestation.keys import Alg, PrivateKey, PublicKey, alg_of, dice_id, encode_cose, to_cose
from attestation.statement import Digest

CDI_SIZE: Final = 32
HIDDEN_SIZE: Final = 64
KEY_CERT_SIGN: Final = b"\x20"
DIGITAL_SIGNATURE: Final = b"\x01"
ASYM_SALT: Final = bytes.fromhex(
    "63B6A04D2C077FC10F639F21DA793844356CC2B0B441B3A77124035C03F8E1BE"
    "6035D31F282821A7450A02222AB1B3CFF1679B05AB1CA5D1AFFB789CCD2B0B3B"
)
"""Salt of the key derivation (Open Profile for DICE, "Key Derivation Details")."""

_CURVES: Final = {
    Alg.ES256: (32, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    Alg.ES384: (
        48,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    ),
}
"""Width of a scalar in bytes, and the order of the group."""
_HASH_BY_SIZE: Final = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}


class Mode(IntEnum):
    """DICE mode of a layer (Open Profile for DICE, "Mode Value Details")."""

    NOT_CONFIGURED = 0
    NORMAL = 1
    DEBUG = 2
    RECOVERY = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer measures about the next one.

    `code_hash` and `authority_hash` have the same size: 32 (SHA-256), 48 or 64 bytes (SHA-512). With `hash_config` the
    descriptor is hashed and both go into the certificate; without, it is 64 raw bytes that go in as they are.
    """

    code_hash: bytes
    config: bytes
    authority_hash: bytes
    mode: int
    hidden: bytes = bytes(HIDDEN_SIZE)
    hash_config: bool = True
    code_descriptor: bytes = b""
    authority_descriptor: bytes = b""
    profile_name: str | None = None

    @property
    def config_hash(self) -> bytes:
        """Hash of the configuration descriptor, of the same size as the code hash."""
        return _HASH_BY_SIZE[len(self.code_hash)](self.config).digest()


def hkdf(secret: bytes | bytearray, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA512 (RFC 5869), the KDF of every derivation here."""
    return HKDF(hashes.SHA512(), length, salt, info).derive(bytes(secret))


def next_cdi(cdi: bytes | bytearray, layer: Layer) -> bytes:
    """The attestation CDI (32 bytes) of the layer that was measured as `layer`.

    Input of the hash: code || config (its hash, or the 64 raw bytes) || authority || mode || hidden.
    """
    config = layer.config_hash if layer.hash_config else layer.config
    measured = layer.code_hash + config + layer.authority_hash + bytes([layer.mode]) + layer.hidden
    return hkdf(cdi, hashlib.sha512(measured).digest(), b"CDI_Attest", CDI_SIZE)


def next_sealing_cdi(cdi: bytes | bytearray, layer: Layer) -> bytes:
    """The sealing CDI: like `next_cdi` without code and configuration, so that an update keeps its data."""
    sealed = layer.authority_hash + bytes([layer.mode]) + layer.hidden
    return hkdf(cdi, hashlib.sha512(sealed).digest(), b"CDI_Seal", CDI_SIZE)


def signing_key(cdi: bytes | bytearray, alg: Alg) -> PrivateKey:
    """The key pair of a CDI or UDS, as open-dice derives it."""
    seed = hkdf(cdi, ASYM_SALT, b"Key Pair", 32)
    if alg is Alg.EDDSA:
        return ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    curve = ec.SECP256R1() if alg is Alg.ES256 else ec.SECP384R1()
    return ec.derive_private_key(_scalar(seed, *_CURVES[alg]), curve)


def _scalar(seed: bytes, width: int, order: int) -> int:
    """HMAC_DRBG with SHA-512 over the seed, first candidate below the order (as in RFC 6979 section 3.2)."""
    value, key = b"\x01" * 64, bytes(64)
    for step in (b"\x00", b"\x01"):
        key = hmac.digest(key, value + step + seed, "sha512")
        value = hmac.digest(key, value, "sha512")
    while True:
        value = hmac.digest(key, value, "sha512")
        candidate = int.from_bytes(value[:width], "big")
        if 0 < candidate < order:
            return candidate
        key = hmac.digest(key, value + b"\x00", "sha512")
        value = hmac.digest(key, value, "sha512")


def certificate_claims(
    issuer: PublicKey, subject: PublicKey, layer: Layer, *, key_usage: bytes = KEY_CERT_SIGN
) -> dict[int, Writable]:
    """The claims of a CBOR certificate, in the order in which open-dice writes them."""
    claims: dict[int, Writable] = {
        dice_cbor.ISSUER: dice_id(issuer).hex(),
        dice_cbor.SUBJECT: dice_id(subject).hex(),
        dice_cbor.CODE_HASH: layer.code_hash,
    }
    if layer.code_descriptor:
        claims[dice_cbor.CODE_DESCRIPTOR] = layer.code_descriptor
    claims[dice_cbor.CONFIGURATION_DESCRIPTOR] = layer.config
    if layer.hash_config:
        claims[dice_cbor.CONFIGURATION_HASH] = layer.config_hash
    claims[dice_cbor.AUTHORITY_HASH] = layer.authority_hash
    if layer.authority_descriptor:
        claims[dice_cbor.AUTHORITY_DESCRIPTOR] = layer.authority_descriptor
    claims[dice_cbor.MODE] = bytes([layer.mode])
    claims[dice_cbor.SUBJECT_PUBLIC_KEY] = encode_cose(subject)
    claims[dice_cbor.KEY_USAGE] = key_usage
    if layer.profile_name is not None:
        claims[dice_cbor.PROFILE_NAME] = layer.profile_name
    return claims


def sign_certificate(claims: Mapping[int, Writable], issuer_key: PrivateKey) -> bytes:
    """An untagged COSE_Sign1 over the claims, written in their own order (open-dice does not sort them)."""
    if len(claims) > 23:
        raise ValueError(f"{len(claims)} claims: a certificate of this profile has at most 23")
    payload = bytes([0xA0 | len(claims)]) + b"".join(dumps(k) + dumps(v) for k, v in claims.items())
    return cose.sign(payload, issuer_key)


def certificate(issuer_key: PrivateKey, subject: PublicKey, layer: Layer) -> bytes:
    """The certificate of the next layer's key, signed by this layer's key."""
    return sign_certificate(certificate_claims(issuer_key.public_key(), subject, layer), issuer_key)


def x509_certificate(
    issuer_key: PrivateKey, subject: PublicKey, layer: Layer, *, path_length: int | None = None
) -> bytes:
    """The certificate of the next layer's key in X.509, DER, as open-dice writes it; signed by this layer's key."""
    fields: list[tuple[int, int, bytes]] = [(0, der.OCTET_STRING, layer.code_hash)]
    if layer.code_descriptor:
        fields.append((1, der.OCTET_STRING, layer.code_descriptor))
    if layer.hash_config:
        fields.append((2, der.OCTET_STRING, layer.config_hash))
    fields += [(3, der.OCTET_STRING, layer.config), (4, der.OCTET_STRING, layer.authority_hash)]
    if layer.authority_descriptor:
        fields.append((5, der.OCTET_STRING, layer.authority_descriptor))
    fields.append((6, der.ENUMERATED, bytes([layer.mode])))
    if layer.profile_name is not None:
        fields.append((7, der.UTF8_STRING, layer.profile_name.encode()))
    dice = der.write(
        der.SEQUENCE, *(der.write(der.context(tag), der.write(kind, value)) for tag, kind, value in fields)
    )
    limit = b"" if path_length is None else der.unsigned(path_length)
    constraints = der.write(der.SEQUENCE, der.write(der.BOOLEAN, b"\xff"), limit)
    return sign_x509(
        issuer_key,
        subject,
        x509_extensions(
            issuer_key.public_key(),
            subject,
            (dice_x509.KEY_USAGE, True, dice_x509.KEY_CERT_SIGN),
            (dice_x509.BASIC_CONSTRAINTS, True, constraints),
            (dice_x509.DICE, True, dice),
        ),
    )


def x509_leaf(issuer_key: PrivateKey, subject: PublicKey) -> bytes:
    """The X.509 certificate of an attestation key: it may sign tokens and nothing else."""
    usage = (dice_x509.KEY_USAGE, True, dice_x509.DIGITAL_SIGNATURE)
    return sign_x509(issuer_key, subject, x509_extensions(issuer_key.public_key(), subject, usage))


def x509_extensions(issuer: PublicKey, subject: PublicKey, *others: tuple[bytes, bool, bytes]) -> list[bytes]:
    """Key identifiers and then the others, each (OID in DER, critical, content), encoded."""
    authority = der.write(der.SEQUENCE, der.write(0x80, dice_id(issuer)))
    listed = (
        (dice_x509.AUTHORITY_KEY_ID, False, authority),
        (dice_x509.SUBJECT_KEY_ID, False, der.write(der.OCTET_STRING, dice_id(subject))),
        *others,
    )
    return [
        der.write(
            der.SEQUENCE, oid, der.write(der.BOOLEAN, b"\xff") if critical else b"", der.write(der.OCTET_STRING, value)
        )
        for oid, critical, value in listed
    ]


def sign_x509(issuer_key: PrivateKey, subject: PublicKey, extensions: Sequence[bytes]) -> bytes:
    """An X.509 certificate with these extensions; names, serial number and validity as the profile says."""
    alg = alg_of(issuer_key)
    algorithm = next(encoded for encoded, value in dice_x509.ALGORITHMS.items() if value is alg)
    subject_id = dice_id(subject)
    body = der.write(
        der.SEQUENCE,
        dice_x509.VERSION_3,
        der.unsigned(int.from_bytes(subject_id, "big")),
        algorithm,
        dice_x509.NAME_HEAD + dice_id(issuer_key.public_key()).hex().encode(),
        der.write(der.SEQUENCE, der.write(der.UTC_TIME, b"180322235959Z"), dice_x509.NOT_AFTER),
        dice_x509.NAME_HEAD + subject_id.hex().encode(),
        subject.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        der.write(der.context(3), der.write(der.SEQUENCE, *extensions)),
    )
    signature = cose.sign_bytes(issuer_key, body)
    if alg is not Alg.EDDSA:
        half = len(signature) // 2
        signature = encode_dss_signature(
            int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        )
    return der.write(der.SEQUENCE, body, algorithm, der.write(der.BIT_STRING, b"\x00", signature))


def application_config(
    *,
    project_name: str,
    secure_version: int,
    partition_table: bytes,
    boot_id: bytes,
    slot: int,
    security_efuses: int,
) -> bytes:
    """The configuration descriptor of the application's certificate.

    Args:
        project_name: from the application descriptor (-70002).
        secure_version: from the application descriptor (-70005).
        partition_table: SHA-256 of the partition table (-71001).
        boot_id: 16 bytes, the grant id of the installation, or zeros (-71002).
        slot: partition subtype of the running slot: 0x10 + n for ota_n, 0 factory, 0x20 test (-71003).
        security_efuses: the flags of `device_protocol.Flag` as bits (-71004).
    """
    return dumps(
        {
            dice_cbor.COMPONENT_NAME: project_name,
            dice_cbor.SECURITY_VERSION: secure_version,
            dice_cbor.PARTITION_TABLE: partition_table,
            dice_cbor.BOOT_ID: boot_id,
            dice_cbor.SLOT: slot,
            dice_cbor.SECURITY_EFUSES: security_efuses,
        }
    )


def bootloader_config(*, secure_version: int = 0) -> bytes:
    """The configuration descriptor of layer 0, the bootloader."""
    return dumps({dice_cbor.COMPONENT_NAME: "bootloader", dice_cbor.SECURITY_VERSION: secure_version})


def application_hidden(project_name: str) -> bytes:
    """The hidden input of the application layer: application B cannot unseal what application A sealed."""
    return hashlib.sha512(b"fj-app" + project_name.encode()).digest()


def eat_claims(
    *,
    nonce: bytes,
    ueid: bytes,
    oemid: bytes,
    hwmodel: bytes,
    debug_status: int,
    boot_count: int,
    boot_seed: bytes,
    name: str,
    version: str,
    slot_state: int,
    efuse_secure_version: int,
    fence: int,
    data_images: Mapping[str, Digest] | None = None,
    addresses: Sequence[str] = (),
    owner_key_ids: Sequence[bytes] = (),
    confirmation_key: PublicKey | None = None,
) -> dict[int, Writable]:
    """Every claim of the EAT profile (see `attestation.eat` for types and lengths).

    Args:
        debug_status: 0 enabled ... 3 disabled permanently (RFC 9711 section 4.2.9).
        slot_state: state number of the OTA record of the running slot.
        fence: highest fence that the device has stored.
        confirmation_key: TLS key of this boot, for ``cnf``.
        data_images: hashes of read-only data images, by partition label.
    """
    return {
        eat_profile.NONCE: nonce,
        eat_profile.UEID: ueid,
        eat_profile.OEMID: oemid,
        eat_profile.HWMODEL: hwmodel,
        eat_profile.DBGSTAT: debug_status,
        eat_profile.EAT_PROFILE: eat_profile.PROFILE,
        eat_profile.BOOTCOUNT: boot_count,
        eat_profile.BOOTSEED: boot_seed,
        eat_profile.SWNAME: name,
        eat_profile.SWVERSION: [version],
        eat_profile.SLOT_STATE: slot_state,
        eat_profile.EFUSE_SECURE_VERSION: efuse_secure_version,
        eat_profile.DATA_IMAGES: {label: digest.to_cbor() for label, digest in (data_images or {}).items()},
        eat_profile.ADDRESSES: list(addresses),
        eat_profile.OWNER_KEYS: list(owner_key_ids),
        eat_profile.FENCE: fence,
        **({eat_profile.CNF: {1: to_cose(confirmation_key)}} if confirmation_key is not None else {}),
    }


def eat(claims: Mapping[int, Writable], key: PrivateKey) -> bytes:
    """An EAT (RFC 9711): an untagged COSE_Sign1 over the claims."""
    return cose.sign(dumps(claims), key)


def evidence(anchor_id: bytes, certificates: Sequence[bytes], token: bytes) -> bytes:
    """The evidence as it travels: ``[1, anchor id, [+ certificate], EAT]``; `anchor_id` = `keys.dice_id(anchor)`."""
    return dumps([eat_profile.EVIDENCE_VERSION, anchor_id, list(certificates), token])
