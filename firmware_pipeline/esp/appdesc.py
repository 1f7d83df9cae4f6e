# SPDX-License-Identifier: Apache-2.0
"""esp_app_desc_t: what an application says about itself (256 bytes at file offset 0x20).

Layout from ESP-IDF `esp_app_desc.h`, little-endian: magic u32, secure_version u32, reserved u32[2], version[32],
project_name[32], time[16], date[16], idf_ver[32], elf_sha256[32], min and max eFuse block revision u16, page size
u8 (log2 of bytes; 0 in images made before the field), reserved.
"""

import struct
from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason

APP_DESC_MAGIC = 0xABCD5432
APP_DESC_OFFSET = 0x20
APP_DESC_SIZE = 256
_LAYOUT = struct.Struct("<II8x32s32s16s16s32s32sHHB75x")


@dataclass(frozen=True, slots=True)
class AppDescriptor:
    """Claims of an application image: data to compare, nothing to trust.

    Attributes:
        project_name, version: may be empty (real firmware is like that).
        secure_version: anti-rollback counter the image demands.
        mmu_page_size: bytes, or None where the image predates the field.
    """

    project_name: str
    version: str
    secure_version: int
    idf_version: str
    compile_date: str
    compile_time: str
    elf_sha256: bytes
    min_block_rev: int = 0
    max_block_rev: int = 0
    mmu_page_size: int | None = None


def _text(raw: bytes, what: str) -> str:
    head, _, _ = raw.partition(b"\0")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise PipelineError(
            Reason.AppDescriptorMalformed,
            f"The application descriptor's {what} holds bytes that are not printable text.",
            "Rebuild the application; the descriptor is written by the build system.",
        )
    return text


def has_app_descriptor(image: bytes) -> bool:
    """Whether an application descriptor stands at its fixed place (magic only)."""
    return image[APP_DESC_OFFSET : APP_DESC_OFFSET + 4] == APP_DESC_MAGIC.to_bytes(4, "little")


def parse_app_descriptor(image: bytes) -> AppDescriptor:
    """Read the descriptor of an application image that begins at byte 0 of `image`.

    Raises:
        PipelineError: AppDescriptorMissing, AppDescriptorMalformed.
    """
    raw = image[APP_DESC_OFFSET : APP_DESC_OFFSET + APP_DESC_SIZE]
    if len(raw) < APP_DESC_SIZE or not has_app_descriptor(image):
        raise PipelineError(
            Reason.AppDescriptorMissing,
            "No esp_app_desc_t at offset 0x20: this is a bootloader, or not an ESP-IDF application.",
            "Pass an application image built by ESP-IDF (or a framework on top of it).",
        )
    (_, secure, version, name, time, date, idf, elf, min_block, max_block, page) = _LAYOUT.unpack(raw)
    if page and not 12 <= page <= 20:
        raise PipelineError(
            Reason.AppDescriptorMalformed,
            f"The application descriptor's MMU page size 2^{page} is outside 2^12 to 2^20 bytes.",
            "Rebuild the application; the descriptor is written by the build system.",
        )
    return AppDescriptor(
        project_name=_text(name, "project name"),
        version=_text(version, "version"),
        secure_version=secure,
        idf_version=_text(idf, "ESP-IDF version"),
        compile_date=_text(date, "date"),
        compile_time=_text(time, "time"),
        elf_sha256=elf,
        min_block_rev=min_block,
        max_block_rev=max_block,
        mmu_page_size=1 << page if page else None,
    )


def _field(text: str, size: int, what: str) -> bytes:
    raw = text.encode("utf-8")
    if len(raw) >= size or not text.isprintable():
        raise PipelineError(
            Reason.AppDescriptorMalformed,
            f"The {what} {text[:60]!r} does not fit {size - 1} bytes of printable text.",
            f"Choose a {what} of at most {size - 1} bytes.",
        )
    return raw


def build_app_descriptor(app: AppDescriptor) -> bytes:
    """The 256 bytes of esp_app_desc_t.

    Raises:
        PipelineError: AppDescriptorMalformed, if a text is too long for its field.
    """
    return _LAYOUT.pack(
        APP_DESC_MAGIC,
        app.secure_version,
        _field(app.version, 32, "version"),
        _field(app.project_name, 32, "project name"),
        _field(app.compile_time, 16, "time"),
        _field(app.compile_date, 16, "date"),
        _field(app.idf_version, 32, "ESP-IDF version"),
        app.elf_sha256,
        app.min_block_rev,
        app.max_block_rev,
        app.mmu_page_size.bit_length() - 1 if app.mmu_page_size else 0,
    )
