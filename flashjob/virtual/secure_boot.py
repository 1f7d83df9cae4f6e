# SPDX-License-Identifier: Apache-2.0
"""Secure Boot v2: a signer for the maker of virtual devices, and the check that their chips make.

Source: ESP-IDF, "Secure Boot v2", signature block format. A 4 KiB sector behind the image (padded with FF) holds up to
three blocks; measurements end before it. Numbers are little-endian. Real firmware is signed by its build.
Rules of `verify` (tests name them):

1. A block counts only if its public key has the digest that the eFuses trust.
2. Its signature covers the SHA-256 of everything before the signature sector: RSA-3072 with PSS (salt 32), or ECDSA on
   P-256.
3. One block that counts and verifies is enough; an image without one does not boot.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from firmware_pipeline.esp.signature import BLOCK_SIZE, find_signatures
from flashjob.virtual.flash import SECTOR

SigningKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
TrustedKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_RSA, _ECDSA = 2, 3
_RSA_BYTES: Final = 384
"""Of a 3072-bit number."""
_CURVE_P256: Final = 2
_BODY_BYTES: Final = 1196
"""Of a block before its CRC."""
_RSA_LAYOUT: Final = struct.Struct("<4x32s384sI388x384s")
_ECDSA_LAYOUT: Final = struct.Struct("<4x32sB64s64s")
_SHA256: Final = Prehashed(hashes.SHA256())
_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


def maker_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The secure-boot key of the maker who knows `secret`: the same one for all of its devices."""
    seed = hashlib.sha512(b"secure boot key\0" + secret).digest()
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return ec.derive_private_key(int.from_bytes(seed, "big") % (order - 1) + 1, ec.SECP256R1())


def key_digest(key: TrustedKey) -> bytes:
    """SHA-256 of the key as signature blocks hold it: what is burnt into eFuses."""
    return hashlib.sha256(_public_part(key)).digest()


def sign(image: bytes, key: SigningKey) -> bytes:
    """Return `image`, padded to a sector, with one signature sector behind it.

    Raises:
        ValueError: the key is neither RSA-3072 nor P-256.
    """
    public = _public_part(key.public_key())
    padded = image + b"\xff" * (-len(image) % SECTOR)
    digest = hashlib.sha256(padded).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        version, signature = _RSA, key.sign(digest, _PSS, _SHA256)[::-1]
    else:
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_SHA256, deterministic_signing=True)))
        version, signature = _ECDSA, r.to_bytes(32, "little") + s.to_bytes(32, "little")
    block = (bytes([0xE7, version, 0, 0]) + digest + public + signature).ljust(_BODY_BYTES, b"\0")
    block += zlib.crc32(block).to_bytes(4, "little")
    return padded + block.ljust(BLOCK_SIZE, b"\0").ljust(SECTOR, b"\xff")


def verify(data: bytes, image_length: int, trusted: bytes) -> bool:
    """Whether the image of `image_length` bytes at the start of `data` is signed by the trusted key (rules 1 to 3).

    Args:
        data: the image and at least the sector behind it.
        trusted: key digest from the eFuses, 32 bytes.

    Raises:
        PipelineError: a signature block is there but damaged, or for other bytes.
    """
    start = -(-image_length // SECTOR) * SECTOR
    sector = data[start : start + SECTOR]
    return any(
        found.key_digest == trusted and _genuine(sector[number * BLOCK_SIZE :])
        for number, found in enumerate(find_signatures(data[: start + SECTOR], image_length))
    )


def _genuine(block: bytes) -> bool:
    """Rule 2, for a block whose digest and CRC are right."""
    try:
        if block[1:3] == bytes([_ECDSA, 0]):
            digest, curve, point, raw = _ECDSA_LAYOUT.unpack_from(block)
            x, y, r, s = (int.from_bytes(half, "little") for half in (point[:32], point[32:], raw[:32], raw[32:]))
            key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_SHA256))
            return bool(curve == _CURVE_P256)
        if block[1] == _RSA:
            digest, modulus, exponent, raw = _RSA_LAYOUT.unpack_from(block)
            rsa_key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
            rsa_key.verify(raw[::-1], digest, _PSS, _SHA256)
            return True
    except (InvalidSignature, ValueError):
        return False
    return False


def _public_part(key: TrustedKey) -> bytes:
    """P-256: curve id and point. RSA: modulus, exponent, and two constants that spare the ROM its preparation."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise ValueError(f"Secure Boot v2 wants RSA-3072 or P-256, this key is {key.curve.name}")
        point = key.public_numbers()
        return bytes([_CURVE_P256]) + point.x.to_bytes(32, "little") + point.y.to_bytes(32, "little")
    if key.key_size != _RSA_BYTES * 8:
        raise ValueError(f"Secure Boot v2 wants RSA-3072 or P-256, this key has {key.key_size} bits")
    numbers = key.public_numbers()
    square = (1 << (2 * _RSA_BYTES * 8)) % numbers.n
    inverse = -pow(numbers.n, -1, 1 << 32) % (1 << 32)
    return (
        numbers.n.to_bytes(_RSA_BYTES, "little")
        + numbers.e.to_bytes(4, "little")
        + square.to_bytes(_RSA_BYTES, "little")
        + inverse.to_bytes(4, "little")
    )
