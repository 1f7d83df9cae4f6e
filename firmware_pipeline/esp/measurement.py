# SPDX-License-Identifier: Apache-2.0
"""Measurements: the hash of firmware that a device's bootloader computes and evidence must carry.

Scheme `esp-image` covers the plain bytes from header byte 0 through the checksum and, if present, the appended hash;
nothing behind them (a signature sector is excluded). The 64-byte value is SHA-512 of all that. The 32-byte value is
SHA-256 of it without the appended hash: recomputed here, never copied from the image.
Scheme `mcuboot` covers the plain bytes of header, image and protected TLVs, what the image's own hash TLV covers, with
both algorithms: recomputed here.
A measurement is not the digest of the file or of the OCI layer.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from firmware_pipeline.esp.image import ImageInfo, parse_image
from firmware_pipeline.esp.mcuboot import McubootInfo, is_mcuboot, parse_mcuboot

Scheme = Literal["esp-image", "mcuboot"]
Algorithm = Literal[-16, -44]

SHA_256: Algorithm = -16
"""COSE algorithm id of SHA-256 (RFC 9054)."""
SHA_512: Algorithm = -44
"""COSE algorithm id of SHA-512 (RFC 9054)."""

DIGEST_SIZE: dict[int, int] = {SHA_256: 32, SHA_512: 64}
"""COSE algorithm id -> bytes."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured value: scheme, COSE hash algorithm, digest bytes."""

    scheme: Scheme
    alg: Algorithm
    value: bytes


def measure(data: bytes) -> tuple[Measurement, ...]:
    """Check the image at byte 0 of `data`, of either format, and measure it with every algorithm, SHA-512 first.

    Raises:
        PipelineError: whatever `parse_image` or `parse_mcuboot` refuses.
    """
    if is_mcuboot(data):
        return measure_mcuboot(data, parse_mcuboot(data))
    return measure_image(data, parse_image(data))


def measure_image(data: bytes, info: ImageInfo) -> tuple[Measurement, ...]:
    """Measure an image that `parse_image(data)` has already accepted as `info`."""
    return (
        Measurement("esp-image", SHA_512, hashlib.sha512(data[: info.image_length]).digest()),
        Measurement("esp-image", SHA_256, hashlib.sha256(data[: info.hashed_length]).digest()),
    )


def measure_mcuboot(data: bytes, info: McubootInfo) -> tuple[Measurement, ...]:
    """Measure an image that `parse_mcuboot(data)` has already accepted as `info`."""
    measured = data[: info.measured_length]
    return (
        Measurement("mcuboot", SHA_512, hashlib.sha512(measured).digest()),
        Measurement("mcuboot", SHA_256, hashlib.sha256(measured).digest()),
    )
