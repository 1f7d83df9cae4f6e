# SPDX-License-Identifier: Apache-2.0
"""A delta payload: the image as a difference to what the device runs. Made on the fly, judged by its result alone.

Format (esp_delta_ota): 64 bytes of header, magic 0xFCCDDE10 little-endian, SHA-256 of the base as its own image names it
(the appended hash), zeros; then a detools sequential patch, compressed with heatshrink.

Rules (tests name them):

1. The base is what the device runs: one of the base's measurements is the device's own. The judge compares with what is
   attested, the device with what it is.
2. A delta that saves less than a fifth of the image is not sent.
3. Whatever goes wrong here, the raw image is sent instead.
"""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass, field
from typing import Final

from firmware_pipeline.esp.image import parse_image

MAGIC: Final = 0xFCCDDE10
HEADER_BYTES: Final = 64
_HASH_BYTES: Final = 32
_MAX_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Delta:
    """A payload and the measurement (COSE algorithm, hash) of the image that it starts from."""

    base: tuple[int, bytes]
    payload: bytes = field(repr=False)


def available() -> bool:
    """Whether the extra `delta` is installed."""
    return importlib.util.find_spec("detools") is not None


def make(base: bytes, image: bytes) -> bytes | None:
    """The payload that turns `base` into `image`; None where it does not pay (rule 2). Takes tenths of a second.

    Raises:
        PipelineError: the base is no image.
        ValueError: the base has no appended hash.
    """
    import detools

    info = parse_image(base)
    if info.appended_hash is None:
        raise ValueError("the base has no appended hash, which deltas are named by")
    patch = io.BytesIO()
    detools.create_patch(
        io.BytesIO(base), io.BytesIO(image), patch, compression="heatshrink", patch_type="sequential", use_mmap=False
    )
    payload = (
        MAGIC.to_bytes(4, "little") + info.appended_hash + bytes(HEADER_BYTES - 4 - _HASH_BYTES) + patch.getvalue()
    )
    return payload if len(payload) <= _MAX_SHARE * len(image) else None
