# SPDX-License-Identifier: Apache-2.0
"""Secure Boot v2 as a virtual chip enforces it, and a signer for its maker.

Format: ESP-IDF `ets_secure_boot_signature_t`; a 4 KiB sector behind the image (padded with FF) holds up to three blocks.
Rules of `verify` (tests name them):

1. A block counts only if its public key has the digest that the eFuses trust.
2. Its signature covers the SHA-256 of everything before the signature sector: RSA-3072 with PSS (salt 32), or ECDSA on
   P-256; numbers are little-endian.
3. One block that counts and verifies is enough; an image without one does not boot.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from firmware_pipeline.esp.signature import BLOCK_SIZE, MAX_BLOCKS, find_signatures
from flashjob.virtual.flash import SECTOR

_CURVE_P256: Final = 2
_ECDSA: Final = struct.Struct("<BBxx32sB64s64s1031x")
_RSA: Final = struct.Struct("<BBxx32s384sI384sI384s")
_SHA256: Final = Prehashed(hashes.SHA256())
_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), 32)


def maker_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The secure-boot key of the maker who knows `secret`: the same one for all of its devices."""
    seed = hashlib.sha512(b"secure boot key\0" + secret).digest()
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return ec.derive_private_key(int.from_bytes(seed, "big") % (order - 1) + 1, ec.SECP256R1())


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """What the eFuses hold of a P-256 key: SHA-256 of curve id and point, 32 bytes."""
    return hashlib.sha256(bytes([_CURVE_P256]) + _point(key)).digest()


def sign(image: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Pad an image to a sector and append the signature sector of a P-256 key."""
    padded = image + b"\xff" * (-len(image) % SECTOR)
    digest = hashlib.sha256(padded).digest()
    r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(_SHA256, deterministic_signing=True)))
    signature = r.to_bytes(32, "little") + s.to_bytes(32, "little")
    block = _ECDSA.pack(0xE7, 3, digest, _CURVE_P256, _point(key.public_key()), signature)
    block += struct.pack("<I16x", zlib.crc32(block))
    return padded + block.ljust(SECTOR, b"\xff")


def verify(data: bytes, image_length: int, trusted: bytes) -> bool:
    """Whether the image of `image_length` bytes at the start of `data` is signed by the trusted key (rules 1 to 3).

    Raises:
        PipelineError: a signature block is there but damaged, or for other bytes.
    """
    start = -(-image_length // SECTOR) * SECTOR
    digests = [found.key_digest for found in find_signatures(data[: start + SECTOR], image_length)]
    blocks = _blocks(data[start : start + SECTOR])
    return any(found == trusted and _genuine(block) for found, block in zip(digests, blocks, strict=False))


def _blocks(sector: bytes) -> Iterator[bytes]:
    for number in range(MAX_BLOCKS):
        yield sector[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]


def _genuine(block: bytes) -> bool:
    """Rule 2, for a block whose digest and CRC are right."""
    try:
        if block[1] == 3 and block[2] == 0:
            _, _, digest, curve, point, signature = _ECDSA.unpack_from(block)
            if curve != _CURVE_P256:
                return False
            x, y = (int.from_bytes(half, "little") for half in (point[:32], point[32:]))
            r, s = (int.from_bytes(half, "little") for half in (signature[:32], signature[32:]))
            key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(_SHA256))
            return True
        if block[1] == 2:
            _, _, digest, modulus, exponent, _, _, rsa_signature = _RSA.unpack_from(block)
            rsa_key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
            rsa_key.verify(rsa_signature[::-1], digest, _PSS, _SHA256)
            return True
    except (InvalidSignature, ValueError):
        return False
    return False


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32, "little") + numbers.y.to_bytes(32, "little")
