# SPDX-License-Identifier: Apache-2.0
"""Signs images the way Secure Boot v2 demands (RSA-3072), so that locked virtual devices can be given firmware.

Source: ESP-IDF, "Secure Boot v2", signature block format. The signature sector follows the image, padded to 4 KiB;
measurements end before it. Real firmware is signed by its build; this signer is for tests and the demo.
"""

from __future__ import annotations

import hashlib
import zlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from flashjob.virtual.flash import SECTOR

_BYTES = 384
"""Of a 3072-bit number."""
_BLOCK = 1216


def sign(image: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """Return `image`, padded to a sector, with one signature sector behind it.

    Raises:
        ValueError: the key is not RSA-3072.
    """
    if key.key_size != _BYTES * 8:
        raise ValueError(f"Secure Boot v2 wants RSA-3072, this key has {key.key_size} bits")
    padded = image.ljust(-(-len(image) // SECTOR) * SECTOR, b"\xff")
    digest = hashlib.sha256(padded).digest()
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
    signature = key.sign(digest, pss, Prehashed(hashes.SHA256()))
    block = b"\xe7\x02\0\0" + digest + _public_part(key.public_key()) + signature[::-1]
    block += zlib.crc32(block).to_bytes(4, "little")
    return padded + block.ljust(_BLOCK, b"\0").ljust(SECTOR, b"\xff")


def key_digest(key: rsa.RSAPublicKey) -> bytes:
    """SHA-256 of the key as signature blocks hold it: what is burnt into eFuses."""
    return hashlib.sha256(_public_part(key)).digest()


def _public_part(key: rsa.RSAPublicKey) -> bytes:
    """Modulus, exponent, and the two constants that spare the ROM its Montgomery preparation; little-endian."""
    numbers = key.public_numbers()
    square = (1 << (2 * _BYTES * 8)) % numbers.n
    inverse = -pow(numbers.n, -1, 1 << 32) % (1 << 32)
    return (
        numbers.n.to_bytes(_BYTES, "little")
        + numbers.e.to_bytes(4, "little")
        + square.to_bytes(_BYTES, "little")
        + inverse.to_bytes(4, "little")
    )
