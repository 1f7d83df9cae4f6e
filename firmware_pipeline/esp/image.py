# SPDX-License-Identifier: Apache-2.0
"""The ESP image format: header, segments, checksum, appended hash. Parse and check, never trust.

Format (ESP-IDF `esp_app_format.h`, little-endian): a 24-byte header; per segment {address u32, length u32, data};
zero bytes up to the place where the XOR checksum (start 0xEF) is the last byte of a 16-byte block; then, if the
header says so, SHA-256 of everything before it. The header holds no total length: the segments give it.

Rules, each refusing with its own reason:
 1. The image begins with magic 0xE9 (NotAnImage).
 2. Header and all segments lie within the bytes given (ImageTruncated).
 3. 1 to 16 segments; SPI mode, flash size and hash flag have defined values (ImageMalformed).
 4. The chip id is in the chip table (UnknownChip).
 5. Segment lengths are multiples of 4 and at most 16 MiB; a segment that the MMU maps from flash stands in the file
    at the same place within its page as in memory (ImageMalformed): the chip cannot start it otherwise.
 6. The checksum is right (ImageChecksumMismatch).
 7. An appended hash is right (ImageHashMismatch).
 8. Chip revision limits do not contradict each other (ImageMalformed).

Bytes after the image (a signature sector, erased flash) are not part of it and are ignored here.
"""

import hashlib
import struct
from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.appdesc import AppDescriptor, has_app_descriptor, parse_app_descriptor
from firmware_pipeline.esp.chips import FLASH_MODES, FLASH_SIZES, Chip, by_id

IMAGE_MAGIC = 0xE9
HEADER_SIZE = 24
SEGMENT_HEADER_SIZE = 8
CHECKSUM_SEED = 0xEF
HASH_SIZE = 32
MAX_SEGMENTS = 16
MAX_SEGMENT_SIZE = 16 * 1024 * 1024
ANY_REVISION = 65535

HEADER = struct.Struct("<BBBBIB3sHBHH4sB")
SEGMENT = struct.Struct("<II")

_REBUILD = "Build the image again and compare its SHA-256 with the build's output."


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: load address, file offset of its data in bytes, length in bytes."""

    address: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A checked image.

    Attributes:
        flash_mode, flash_size, flash_freq: names ("dio", "4MB", "80m"); freq is None for a value the chip lacks.
        min_rev, max_rev: chip revisions (major * 100 + minor); max_rev None = no limit.
        checksum: the XOR checksum byte.
        appended_hash: the 32 bytes behind the checksum, or None.
        image_length: bytes from header byte 0 through checksum and appended hash.
        app: the application descriptor; None for a bootloader.
    """

    chip: Chip
    entry: int
    flash_mode: str
    flash_size: str
    flash_freq: str | None
    min_rev: int
    max_rev: int | None
    segments: tuple[Segment, ...]
    checksum: int
    appended_hash: bytes | None
    image_length: int
    app: AppDescriptor | None

    @property
    def hashed_length(self) -> int:
        """Bytes from header byte 0 through the checksum: what an appended hash covers."""
        return self.image_length - (HASH_SIZE if self.appended_hash is not None else 0)

    @property
    def mmu_page_size(self) -> int:
        """MMU page size in bytes this image is linked for (64 KiB unless the descriptor says otherwise)."""
        return (self.app.mmu_page_size if self.app else None) or 64 * 1024

    @property
    def fills_pages(self) -> bool:
        """Whether the image ends on a page boundary, so that nothing mapped behind it stays unmeasured."""
        return self.image_length % self.mmu_page_size == 0


def xor_bytes(data: bytes) -> int:
    """XOR of all bytes of `data` (0 for none), folding halves: linear, without a loop per byte."""
    value, size = int.from_bytes(data, "little"), len(data)
    while size > 1:
        half = (size + 1) // 2
        value = (value >> (8 * half)) ^ (value & ((1 << (8 * half)) - 1))
        size = half
    return value


def checksum_offset(end_of_segments: int) -> int:
    """Offset of the checksum byte: the last byte of the 16-byte block that holds `end_of_segments`."""
    return end_of_segments | 0xF


def _refuse(reason: Reason, message: str, next_step: str = _REBUILD) -> PipelineError:
    return PipelineError(reason, message, next_step)


def _revisions(chip: Chip, legacy_min: int, minimum: int, maximum: int) -> tuple[int, int | None]:
    """Effective limits. Images older than the u16 fields hold 0 in both and count in the legacy byte."""
    if minimum == 0 and maximum == 0:
        return legacy_min * (100 if chip.major_in_legacy_min_rev else 1), None
    if maximum == ANY_REVISION or maximum == 0:
        return minimum, None
    if minimum > maximum:
        raise _refuse(
            Reason.ImageMalformed, f"Minimum chip revision {minimum} exceeds the maximum {maximum} in the header."
        )
    return minimum, maximum


def _segments(data: bytes, count: int, chip: Chip) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    position = HEADER_SIZE
    page = min(chip.mmu_pages)
    for number in range(count):
        if position + SEGMENT_HEADER_SIZE > len(data):
            raise _refuse(
                Reason.ImageTruncated,
                f"The header of segment {number} at offset 0x{position:x} lies behind the end ({len(data)} bytes).",
            )
        address, length = SEGMENT.unpack_from(data, position)
        position += SEGMENT_HEADER_SIZE
        if length % 4 or length > MAX_SEGMENT_SIZE:
            raise _refuse(
                Reason.ImageMalformed, f"Segment {number} has length {length}: not a multiple of 4 up to 16 MiB."
            )
        if position + length > len(data):
            raise _refuse(
                Reason.ImageTruncated,
                f"Segment {number} ends at 0x{position + length:x}, behind the end of the file ({len(data)} bytes).",
            )
        if chip.is_mapped(address) and (address - position) % page:
            raise _refuse(
                Reason.ImageMalformed,
                f"Segment {number} is mapped to 0x{address:x}, but stands at file offset 0x{position:x}: "
                "not the same place within a flash page.",
            )
        segments.append(Segment(address, position, length))
        position += length
    return tuple(segments)


def parse_image(data: bytes) -> ImageInfo:
    """Check an image that begins at byte 0 of `data`; bytes behind it are ignored.

    Args:
        data: plain (decrypted) bytes.

    Returns:
        What the image says and how long it is, all of it checked against the bytes.

    Raises:
        PipelineError: NotAnImage, ImageTruncated, ImageMalformed, UnknownChip, ImageChecksumMismatch,
            ImageHashMismatch, AppDescriptorMalformed.
    """
    if not data or data[0] != IMAGE_MAGIC:
        found = f"0x{data[0]:02x}" if data else "no byte at all"
        raise _refuse(
            Reason.NotAnImage,
            f"An ESP image begins with 0xe9; found {found}.",
            "Pass the application or bootloader .bin, not an ELF, a merged image or an encrypted dump.",
        )
    if len(data) < HEADER_SIZE:
        raise _refuse(Reason.ImageTruncated, f"{len(data)} bytes are less than the image header's {HEADER_SIZE}.")
    (_, count, mode, size_freq, entry, _, _, chip_id, old_min, min_rev, max_rev, _, hashed) = HEADER.unpack_from(data)
    chip = by_id(chip_id)
    if not 1 <= count <= MAX_SEGMENTS:
        raise _refuse(Reason.ImageMalformed, f"The header names {count} segments; 1 to {MAX_SEGMENTS} are possible.")
    if mode >= len(FLASH_MODES) or size_freq >> 4 >= len(FLASH_SIZES):
        raise _refuse(
            Reason.ImageMalformed, f"The header's SPI mode {mode} or flash size {size_freq >> 4} is not defined."
        )
    if hashed > 1:
        raise _refuse(Reason.ImageMalformed, f"The header's hash_appended is {hashed}; only 0 and 1 are defined.")
    low, high = _revisions(chip, old_min, min_rev, max_rev)
    segments = _segments(data, count, chip)

    at = checksum_offset(segments[-1].offset + segments[-1].length)
    end = at + 1 + (HASH_SIZE if hashed else 0)
    if end > len(data):
        raise _refuse(
            Reason.ImageTruncated, f"The image ends at 0x{end:x} (with checksum and hash), the file at 0x{len(data):x}."
        )
    checksum = CHECKSUM_SEED
    for segment in segments:
        checksum ^= xor_bytes(data[segment.offset : segment.offset + segment.length])
    if checksum != data[at]:
        raise _refuse(
            Reason.ImageChecksumMismatch,
            f"The checksum at 0x{at:x} is 0x{data[at]:02x}, the segments give 0x{checksum:02x}: damaged bytes.",
        )
    appended = data[at + 1 : end] if hashed else None
    if appended is not None and hashlib.sha256(data[: at + 1]).digest() != appended:
        raise _refuse(
            Reason.ImageHashMismatch,
            f"The SHA-256 appended at 0x{at + 1:x} is not that of the bytes before it: damaged or edited bytes.",
        )
    frequencies = {nibble: name for name, nibble in reversed(chip.flash_freq.items())}
    return ImageInfo(
        chip=chip,
        entry=entry,
        flash_mode=FLASH_MODES[mode],
        flash_size=list(FLASH_SIZES)[size_freq >> 4],
        flash_freq=frequencies.get(size_freq & 0xF),
        min_rev=low,
        max_rev=high,
        segments=segments,
        checksum=checksum,
        appended_hash=appended,
        image_length=end,
        app=parse_app_descriptor(data) if _holds_descriptor(data, segments[0]) else None,
    )


def _holds_descriptor(data: bytes, first: Segment) -> bool:
    return first.offset == 0x20 and first.length >= 256 and has_app_descriptor(data)
