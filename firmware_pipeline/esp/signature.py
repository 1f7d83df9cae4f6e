# SPDX-License-Identifier: Apache-2.0
"""Secure Boot v2 signature blocks behind an image: found, checked against the image, keys identified.

The 4 KiB sector that follows the image (padded to a sector boundary) holds one to three 1,216-byte blocks: magic 0xE7,
version (2 = RSA-3072, 3 = ECDSA), hash (0 = SHA-256, 1 = SHA-384), a zero byte, the hash of everything before the sector,
public key and signature, CRC-32 of the first 1,196 bytes. What the eFuses hold is the SHA-256 of the public-key part of a block.

Here the digest and the CRC are checked, so that the block belongs to these bytes; the signature itself is the ROM's to
judge, with the key digest that `compatibility` compares.
"""

import hashlib
import zlib
from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_SECTOR

BLOCK_SIZE = 1216
MAX_BLOCKS = 3
_MAGIC = 0xE7
_CRC_AT = 1196
_DIGEST_AT = 4
_FORMATS = {(2, 0): ("rsa3072", "sha256", 776), (3, 0): ("ecdsa", "sha256", 65), (3, 1): ("ecdsa384", "sha384", 97)}
"""(version, hash) -> name, hash of the image, length of the public-key part, which follows that hash."""


@dataclass(frozen=True, slots=True)
class SignatureBlock:
    """One block: algorithm, and the digest of its public key as the chip's eFuses hold it."""

    algorithm: str
    key_digest: bytes


def find_signatures(data: bytes, image_length: int) -> tuple[SignatureBlock, ...]:
    """The signature blocks of a file that holds an image of `image_length` bytes; empty = not signed.

    Raises:
        PipelineError: SecureBootSignatureMalformed, if a block is there but is damaged or for other bytes.
    """
    start = -(-image_length // FLASH_SECTOR) * FLASH_SECTOR
    sector = data[start : start + FLASH_SECTOR]
    if not sector or sector[0] != _MAGIC:
        return ()
    blocks: list[SignatureBlock] = []
    for number in range(MAX_BLOCKS):
        block = sector[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
        if not block or block[0] != _MAGIC:
            break
        if len(block) < BLOCK_SIZE or zlib.crc32(block[:_CRC_AT]) != int.from_bytes(block[_CRC_AT:1200], "little"):
            raise _malformed(number, "is damaged (its CRC is wrong)")
        form = _FORMATS.get((block[1], block[2]))
        if form is None:
            raise _malformed(number, f"has version {block[1]} and hash {block[2]}, which are not defined")
        name, algorithm, key_length = form
        digest = hashlib.new(algorithm, data[:start]).digest()
        key_at = _DIGEST_AT + len(digest)
        if block[_DIGEST_AT:key_at] != digest:
            raise _malformed(number, "was made for other bytes")
        blocks.append(SignatureBlock(name, hashlib.sha256(block[key_at : key_at + key_length]).digest()))
    return tuple(blocks)


def _malformed(number: int, what: str) -> PipelineError:
    return PipelineError(
        Reason.SecureBootSignatureMalformed,
        f"Signature block {number} behind the image {what}; a device with secure boot would not start it.",
        "Pad and sign the image again (espsecure sign-data --version 2), then push that file unchanged.",
    )
