# SPDX-License-Identifier: Apache-2.0
"""Images: what is accepted, what is refused and why, and what is measured."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.appdesc import AppDescriptor, build_app_descriptor, parse_app_descriptor
from firmware_pipeline.esp.builder import assemble, build_app, build_bootloader
from firmware_pipeline.esp.chips import CHIPS, by_id, by_target
from firmware_pipeline.esp.image import HEADER_SIZE, parse_image, xor_bytes
from firmware_pipeline.esp.measurement import SHA_256, SHA_512, measure
from tests.unit.firmware.builds import refused

IMAGE = build_app("esp32c3", "porch", "1.0", payload_size=16384, pad_to_page=False)
INFO = parse_image(IMAGE)


def put(offset: int, value: bytes) -> bytes:
    return IMAGE[:offset] + value + IMAGE[offset + len(value) :]


def flip(*offsets: int) -> bytes:
    data = bytearray(IMAGE)
    for offset in offsets:
        data[offset] ^= 1
    return bytes(data)


INNER = INFO.segments[1].offset
CHECKSUM_AT = INFO.hashed_length - 1

ZOO: list[tuple[str, bytes, Reason]] = [
    ("nothing", b"", Reason.NotAnImage),
    ("an ELF", b"\x7fELF" + bytes(200), Reason.NotAnImage),
    ("erased flash", b"\xff" * 4096, Reason.NotAnImage),
    ("only the magic", b"\xe9", Reason.ImageTruncated),
    ("half a header", IMAGE[:20], Reason.ImageTruncated),
    ("no segment", put(1, b"\0"), Reason.ImageMalformed),
    ("17 segments", put(1, b"\x11"), Reason.ImageMalformed),
    ("more segments than bytes", put(1, b"\x10"), Reason.ImageMalformed),
    ("undefined SPI mode", put(2, b"\x06"), Reason.ImageMalformed),
    ("undefined flash size", put(3, b"\x8f"), Reason.ImageMalformed),
    ("undefined hash flag", put(23, b"\x02"), Reason.ImageMalformed),
    ("chip id of no chip", put(12, b"\x77\x77"), Reason.UnknownChip),
    ("minimum above maximum revision", put(15, b"\x64\0\x63\0"), Reason.ImageMalformed),
    ("segment length not a multiple of 4", put(28, b"\x01"), Reason.ImageMalformed),
    ("segment length of 4 GB", put(28, b"\xf0\xff\xff\xff"), Reason.ImageMalformed),
    ("segment behind the end", put(28, b"\0\0\x80\0"), Reason.ImageTruncated),
    ("mapped segment off its page", put(24, b"\x24"), Reason.ImageMalformed),
    ("one bit of a segment", flip(INNER), Reason.ImageChecksumMismatch),
    ("two bits that cancel in the checksum", flip(INNER, INNER + 1), Reason.ImageHashMismatch),
    ("the checksum", flip(CHECKSUM_AT), Reason.ImageChecksumMismatch),
    ("the appended hash", flip(len(IMAGE) - 1), Reason.ImageHashMismatch),
    ("the entry point, which only the hash covers", flip(4), Reason.ImageHashMismatch),
    ("last byte cut", IMAGE[:-1], Reason.ImageTruncated),
    ("cut in a segment", IMAGE[: INNER + 8], Reason.ImageTruncated),
]


@pytest.mark.parametrize(("data", "reason"), [z[1:] for z in ZOO], ids=[z[0] for z in ZOO])
def test_bad_images_are_refused_for_their_own_reason(data: bytes, reason: Reason) -> None:
    refused(reason, lambda: parse_image(data))


def test_another_chip_id_of_the_table_is_another_image() -> None:
    """The chip id is covered by the hash: an image cannot be relabelled."""
    refused(Reason.ImageHashMismatch, lambda: parse_image(put(12, b"\x0d\0")))


def test_header_fields() -> None:
    data = build_app("esp32", "a", "1", secure_version=7, min_rev=300, max_rev=399, flash_size="8MB")
    info = parse_image(data)
    assert (info.chip.target, info.min_rev, info.max_rev) == ("esp32", 300, 399)
    assert (info.flash_mode, info.flash_size, info.flash_freq) == ("dio", "8MB", "80m")
    assert info.app is not None
    assert (info.app.project_name, info.app.version, info.app.secure_version) == ("a", "1", 7)
    assert info.app.mmu_page_size == 64 * 1024
    assert info.image_length == len(data)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.target)
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [16384, 65536, 65536 * 3 + 4, 100_001])
def test_builder_and_parser_agree(chip: object, pad: bool, size: int) -> None:
    target = getattr(chip, "target")  # noqa: B009 - parametrised
    data = build_app(target, "p", "1", payload_size=size, pad_to_page=pad)
    info = parse_image(data)
    assert (info.chip.target, info.image_length) == (target, len(data))
    assert info.fills_pages or not pad
    assert parse_image(build_bootloader(target)).app is None


def test_bytes_behind_the_image_do_not_count() -> None:
    longer = IMAGE + b"\xff" * 5000
    assert parse_image(longer) == INFO
    assert measure(longer) == measure(IMAGE)


def test_measurement_with_appended_hash() -> None:
    sha512, sha256 = measure(IMAGE)
    assert (sha512.scheme, sha512.alg, sha256.alg) == ("esp-image", SHA_512, SHA_256) == ("esp-image", -44, -16)
    assert sha512.value == hashlib.sha512(IMAGE).digest()
    assert sha256.value == hashlib.sha256(IMAGE[:-32]).digest() == IMAGE[-32:]


def test_measurement_without_appended_hash() -> None:
    chip = by_target("esp32c3")
    data = assemble(chip, [(chip.iram[0], b"\x13\0\0\0" * 8)], entry=chip.iram[0], append_hash=False)
    assert parse_image(data).appended_hash is None
    assert [m.value for m in measure(data)] == [hashlib.sha512(data).digest(), hashlib.sha256(data).digest()]


def test_a_damaged_image_is_not_measured() -> None:
    refused(Reason.ImageHashMismatch, lambda: measure(flip(len(IMAGE) - 1)))


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(PipelineError):
        parse_image(data)


@given(st.binary(max_size=400))
def test_noise_behind_a_magic_is_refused(data: bytes) -> None:
    with pytest.raises(PipelineError):
        parse_image(b"\xe9" + data)


@given(st.integers(0, len(IMAGE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused_or_changes_the_measurement(offset: int, mask: int) -> None:
    data = bytearray(IMAGE)
    data[offset] ^= mask
    try:
        measured = measure(bytes(data))
    except PipelineError:
        return
    assert offset == HEADER_SIZE - 1, "only the hash flag is covered by neither checksum nor hash"
    assert measured[0].value != measure(IMAGE)[0].value


@given(st.binary(max_size=70))
def test_xor_bytes_equals_the_loop(data: bytes) -> None:
    expected = 0
    for byte in data:
        expected ^= byte
    assert xor_bytes(data) == expected


def _descriptor(**changes: object) -> AppDescriptor:
    values: dict[str, object] = {
        "project_name": "p", "version": "v", "secure_version": 0, "idf_version": "v5.5", "compile_date": "d",
        "compile_time": "t", "elf_sha256": bytes(32),
    }  # fmt: skip
    return AppDescriptor(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:48] + b"\xff\xfe\xfd" + raw[51:],
        lambda raw: raw[:16] + b"a\nb\0" + raw[20:],
        lambda raw: raw[:180] + b"\x3f" + raw[181:],
    ],
    ids=["name is not UTF-8", "version holds a line break", "page of 2^63 bytes"],
)
def test_malformed_descriptors(change: Callable[[bytes], bytes]) -> None:
    raw = bytes(0x20) + change(build_app_descriptor(_descriptor()))
    refused(Reason.AppDescriptorMalformed, lambda: parse_app_descriptor(raw))


def test_descriptor_round_trip_and_limits() -> None:
    app = _descriptor(project_name="a" * 31, secure_version=2**32 - 1, mmu_page_size=32768)
    assert parse_app_descriptor(bytes(0x20) + build_app_descriptor(app)) == app
    refused(Reason.AppDescriptorMalformed, lambda: build_app_descriptor(_descriptor(project_name="a" * 32)))
    refused(Reason.AppDescriptorMissing, lambda: parse_app_descriptor(bytes(400)))


def test_chip_names_and_ids() -> None:
    assert by_target("ESP32-S3") is by_target("esp32_s3") is by_id(9)
    assert [chip.target for chip in CHIPS if not chip.hmac_key] == ["esp32", "esp32c2", "esp32c61"]
    assert len({chip.chip_id for chip in CHIPS}) == len(CHIPS)
    refused(Reason.UnknownChip, lambda: by_target("esp8266"))
    refused(Reason.UnknownChip, lambda: by_id(0xFFFF))


def test_real_applications(firmware_dir: Path) -> None:
    hello = parse_image((firmware_dir / "hello_world-esp32-app.bin").read_bytes())
    assert hello.app is not None
    assert (hello.app.project_name, hello.app.idf_version[:4], hello.max_rev) == ("hello_world", "v6.0", 399)
    assert not hello.fills_pages
    mpy = parse_image((firmware_dir / "micropython-esp32c3-2023-06-10-app.bin").read_bytes())
    assert mpy.app is not None
    assert (mpy.app.project_name, mpy.min_rev, mpy.max_rev) == ("", 3, None)
    assert mpy.app.mmu_page_size is None


@pytest.mark.parametrize("target", ["esp32", "esp32c3-2023-04-26", "esp32s2", "esp32s3"])
def test_real_bootloaders(target: str, firmware_dir: Path) -> None:
    data = (firmware_dir / f"micropython-{target}-merged.bin").read_bytes()
    info = parse_image(data)
    assert info.chip.target == target[:7].rstrip("-")
    assert info.app is None
    assert info.image_length < 0x8000 - info.chip.bootloader_offset
    app = parse_image(data[0x10000 - info.chip.bootloader_offset :])
    assert app.chip is info.chip
    assert app.app is not None
