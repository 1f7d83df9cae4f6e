# SPDX-License-Identifier: Apache-2.0
"""The MCUboot image format, as Zephyr builds it for ESP chips: header, image, TLVs. Parse and check, never trust.

Format (MCUboot design document, "Image format"; `esp_image_loader_header` of its Espressif port), little-endian: a
32-byte header {magic u32, load address u32, header size u16, protected TLV size u16, image size u32, flags u32, version
{major u8, minor u8, revision u16, build u32}, pad u32}; the image; protected TLVs (info magic 0x6908), then unprotected
ones (0x6907), each block {magic u16, length u16 with this info}, each TLV {type u16, length u16, value}. On ESP chips
the image begins with a load header {magic 0xACE637D3, entry u32, IRAM destination, offset, size; DRAM the same; ...}.

Rules, each refusing with its own reason:
 1. The image begins with magic 0x96F3B83D (NotAnImage).
 2. Header, image and TLVs lie within the bytes given (ImageTruncated).
 3. Header size is 32 to 4096 and a multiple of 4, the image is not empty, and neither encrypted nor compressed; the
    protected TLVs are as long as the header says; TLVs fill their blocks exactly (ImageMalformed).
 4. The ESP load header is there, its parts lie within the image (ImageMalformed).
 5. The SHA-256, SHA-384 or SHA-512 TLV is there once (ImageHashMissing) and right (ImageHashMismatch): it covers header,
    image and protected TLVs, the bytes that are measured.

The header names no chip: `runs_on` compares addresses with a chip's memory. The signature is the bootloader's to judge.
Bytes behind the TLVs (padding of the slot) are not part of the image.
"""

import hashlib
import struct
from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import Chip

MCUBOOT_MAGIC = 0x96F3B83D
HEADER_SIZE = 32
MAX_HEADER_SIZE = 4096
LOAD_HEADER_MAGIC = 0xACE637D3

TLV_INFO, PROTECTED_TLV_INFO = 0x6907, 0x6908
TLV_SECURITY_COUNTER = 0x50
HASH_TLVS = {0x10: "sha256", 0x11: "sha384", 0x12: "sha512"}
SIGNATURE_TLVS = frozenset({0x20, 0x21, 0x22, 0x23, 0x24})

_HEADER = struct.Struct("<IIHHII2BHI4x")
_LOAD_HEADER = struct.Struct("<8I")
_PAIR = struct.Struct("<HH")
_UNREADABLE_FLAGS = 0x0004 | 0x0008 | 0x0200 | 0x0400 | 0x0800
"""Encrypted with AES-128 or AES-256; compressed with LZMA1, LZMA2, or filtered."""
_REBUILD = "Build the application again with west; do not edit the signed image."


@dataclass(frozen=True, slots=True)
class McubootInfo:
    """A checked image.

    Attributes:
        version: "major.minor.revision+build", as imgtool prints it; "+0" is left out.
        security_counter: of the protected TLV, or 0.
        hash_algorithm: of the hash TLV, as hashlib calls it.
        signed: whether it carries a signature TLV.
        measured_length: bytes from header byte 0 through the protected TLVs.
        image_length: bytes through the last TLV.
        entry, loaded: entry address; (address, bytes) of what the bootloader copies into RAM.
    """

    version: str
    security_counter: int
    hash_algorithm: str
    signed: bool
    measured_length: int
    image_length: int
    entry: int
    loaded: tuple[tuple[int, int], ...]

    def runs_on(self, chip: Chip) -> bool:
        """Whether entry and all RAM parts lie in this chip's internal RAM."""
        ram = (chip.iram, chip.dram)
        inside = all(any(low <= at and at + size <= high for low, high in ram) for at, size in self.loaded)
        return inside and chip.iram[0] <= self.entry < chip.iram[1]


def _bad(message: str, reason: Reason = Reason.ImageMalformed) -> PipelineError:
    return PipelineError(reason, message, _REBUILD)


def is_mcuboot(data: bytes) -> bool:
    """Whether the bytes begin like an MCUboot image (magic only)."""
    return data[:4] == MCUBOOT_MAGIC.to_bytes(4, "little")


def parse_mcuboot(data: bytes) -> McubootInfo:
    """Check an MCUboot image that begins at byte 0 of `data`; bytes behind its TLVs are ignored.

    Raises:
        PipelineError: NotAnImage, ImageTruncated, ImageMalformed, ImageHashMissing, ImageHashMismatch.
    """
    if not is_mcuboot(data):
        raise _bad(f"An MCUboot image begins with 3db8f396; found {data[:4].hex() or 'nothing'}.", Reason.NotAnImage)
    if len(data) < HEADER_SIZE:
        raise _bad(f"{len(data)} bytes are less than the MCUboot header's {HEADER_SIZE}.", Reason.ImageTruncated)
    (_, _, header, protected, size, flags, major, minor, revision, build) = _HEADER.unpack_from(data)
    if not HEADER_SIZE <= header <= MAX_HEADER_SIZE or header % 4 or not size:
        raise _bad(f"The MCUboot header names a header of {header} and an image of {size} bytes.")
    if flags & _UNREADABLE_FLAGS:
        raise _bad(
            f"The MCUboot image is encrypted or compressed (flags 0x{flags:x}); what runs could not be measured."
        )
    image_end = header + size
    measured = image_end + protected
    if measured + _PAIR.size > len(data):
        raise _bad(f"The MCUboot image ends at 0x{measured:x} (without TLVs), the file before.", Reason.ImageTruncated)
    entry, loaded = _load_header(data[header:image_end])
    known = _tlvs(data, image_end, PROTECTED_TLV_INFO) if protected else []
    if protected and sum(4 + len(value) for _, value in known) + 4 != protected:
        raise _bad(f"The protected TLVs are not the {protected} bytes that the header names.")
    counters = [value for kind, value in known if kind == TLV_SECURITY_COUNTER]
    if len(counters) > 1 or any(len(value) != 4 for value in counters):
        raise _bad("The security counter TLV is there twice, or is not 4 bytes long.")
    open_tlvs = _tlvs(data, measured, TLV_INFO)
    hashes = [(HASH_TLVS[kind], value) for kind, value in open_tlvs if kind in HASH_TLVS]
    if len(hashes) != 1:
        raise _bad(f"The MCUboot image has {len(hashes)} hash TLVs; it needs one.", Reason.ImageHashMissing)
    algorithm, value = hashes[0]
    if hashlib.new(algorithm, data[:measured]).digest() != value:
        raise _bad(f"The {algorithm} TLV is not the hash of the image: damaged bytes.", Reason.ImageHashMismatch)
    return McubootInfo(
        version=f"{major}.{minor}.{revision}" + (f"+{build}" if build else ""),
        security_counter=int.from_bytes(counters[0], "little") if counters else 0,
        hash_algorithm=algorithm,
        signed=any(kind in SIGNATURE_TLVS for kind, _ in open_tlvs),
        measured_length=measured,
        image_length=measured + 4 + sum(4 + len(value) for _, value in open_tlvs),
        entry=entry,
        loaded=loaded,
    )


def _load_header(image: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Rule 4: entry address, and what goes into IRAM and DRAM."""
    if len(image) < _LOAD_HEADER.size or image[:4] != LOAD_HEADER_MAGIC.to_bytes(4, "little"):
        raise _bad("The MCUboot image holds no ESP load header, so no ESP chip could start it.")
    (_, entry, iram, iram_at, iram_size, dram, dram_at, dram_size) = _LOAD_HEADER.unpack_from(image)
    for name, at, size in (("IRAM", iram_at, iram_size), ("DRAM", dram_at, dram_size)):
        if at + size > len(image) + HEADER_SIZE:  # offsets count from the slot's begin, the header included
            raise _bad(f"The load header's {name} part ends at 0x{at + size:x}, behind the image.")
    return entry, tuple((at, size) for at, size in ((iram, iram_size), (dram, dram_size)) if size)


def _tlvs(data: bytes, start: int, magic: int) -> list[tuple[int, bytes]]:
    """The (type, value) pairs of one TLV block."""
    found, length = _PAIR.unpack_from(data, start)
    if found != magic:
        raise _bad(f"At 0x{start:x} stands 0x{found:04x}, not the TLV info 0x{magic:04x}.")
    end = start + length
    if end > len(data):
        raise _bad(f"The TLVs at 0x{start:x} end at 0x{end:x}, behind the file.", Reason.ImageTruncated)
    entries, position = [], start + _PAIR.size
    while position + _PAIR.size <= end:
        kind, size = _PAIR.unpack_from(data, position)
        position += _PAIR.size + size
        if position > end:
            break
        entries.append((kind, data[position - size : position]))
    if position != end:
        raise _bad(f"The TLVs at 0x{start:x} do not fill their {length} bytes.")
    return entries


def build_mcuboot(
    chip: Chip, payload: bytes, version: tuple[int, int, int, int], *, security_counter: int | None = None
) -> bytes:
    """A true MCUboot image without signature, for demos, tests and virtual devices.

    Args:
        payload: stands behind the load header; its first KiB is what the load header copies into IRAM.
        version: major, minor, revision, build.
        security_counter: for a protected TLV; None leaves it out.
    """
    in_ram = min(1024, len(payload))
    load = (
        LOAD_HEADER_MAGIC,
        chip.iram[0] + 0x4000,
        chip.iram[0] + 0x4000,
        HEADER_SIZE + _LOAD_HEADER.size,
        in_ram,
        0,
        0,
        0,
    )
    image = _LOAD_HEADER.pack(*load) + payload
    counter = b""
    if security_counter is not None:
        tlv = _PAIR.pack(TLV_SECURITY_COUNTER, 4) + security_counter.to_bytes(4, "little")
        counter = _PAIR.pack(PROTECTED_TLV_INFO, 4 + len(tlv)) + tlv
    body = _HEADER.pack(MCUBOOT_MAGIC, 0, HEADER_SIZE, len(counter), len(image), 0, *version) + image + counter
    tlv = _PAIR.pack(0x10, 32) + hashlib.sha256(body).digest()
    return body + _PAIR.pack(TLV_INFO, 4 + len(tlv)) + tlv
