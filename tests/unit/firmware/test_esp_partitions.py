# SPDX-License-Identifier: Apache-2.0
"""Partition tables: every rule with a table that breaks it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.builder import default_partitions
from firmware_pipeline.esp.partitions import (
    Partition,
    PartitionTable,
    build_table,
    check,
    parse_table,
    table_sha256,
)
from tests.unit.firmware.builds import refused

TABLE = default_partitions()
RAW = build_table(TABLE)


def test_default_table() -> None:
    assert parse_table(RAW, table_offset=0x8000, flash_size=4 << 20) == TABLE
    assert [slot.size for slot in TABLE.ota_slots] == [0x1C0000, 0x1C0000]
    assert TABLE.otadata is not None
    assert TABLE.factory is None
    assert TABLE.starting_at(0x20000) == TABLE.by_name("ota_0") == TABLE.containing(0x20001)
    assert TABLE.containing(0) is None
    assert table_sha256(RAW + b"\xff" * 1024) == hashlib.sha256(RAW).digest()


def test_default_table_may_leave_room_for_a_large_bootloader() -> None:
    table = default_partitions(table_offset=0x10000, flash_size=8 << 20)
    assert table.by_name("nvs") == Partition("nvs", 1, 2, 0x11000, 0x4000)
    assert [slot.size for slot in table.ota_slots] == [0x3C0000, 0x3C0000]
    refused(Reason.PartitionTableMalformed, lambda: default_partitions(table_offset=0x1A000))


@pytest.mark.parametrize(
    ("kind", "subtype", "words"),
    [
        (0, 0x00, ("app", "factory")), (0, 0x10, ("app", "ota_0")), (0, 0x1F, ("app", "ota_15")),
        (0, 0x20, ("app", "test")), (0, 0x30, ("app", "0x30")), (1, 0x00, ("data", "ota")), (1, 0x01, ("data", "phy")),
        (1, 0x02, ("data", "nvs")), (1, 0x03, ("data", "coredump")), (1, 0x04, ("data", "nvs_keys")),
        (1, 0x05, ("data", "efuse")), (1, 0x06, ("data", "undefined")), (1, 0x81, ("data", "fat")),
        (1, 0x82, ("data", "spiffs")), (1, 0x83, ("data", "littlefs")), (1, 0x10, ("data", "0x10")),
        (2, 0x00, ("bootloader", "0x00")), (3, 0x01, ("partition_table", "0x01")), (0x40, 0x07, ("0x40", "0x07")),
    ],
)  # fmt: skip
def test_words_for_types(kind: int, subtype: int, words: tuple[str, str]) -> None:
    row = Partition("p", kind, subtype, 0x10000, 0x1000, flags=kind & 1)
    assert (row.type_name, row.subtype_name, row.encrypted) == (*words, bool(kind & 1))


def changed(which: str, **values: object) -> list[Partition]:
    return [replace(row, **values) if row.name == which else row for row in TABLE.partitions]  # type: ignore[arg-type]


BAD_ROWS: dict[str, list[Partition]] = {
    "no rows": [],
    "96 rows": [Partition(f"p{n}", 1, 6, 0x10000 + n * 0x1000, 0x1000) for n in range(96)],
    "empty name": changed("nvs", name=""),
    "unprintable name": changed("nvs", name="a\nb"),
    "name of 17 bytes": changed("nvs", name="a" * 17),
    "same name twice": changed("nvs", name="storage"),
    "unknown flag": changed("nvs", flags=4),
    "type 0xff": changed("nvs", type=0xFF),
    "data not on a sector": changed("storage", offset=0x3A0800),
    "application not on 64 KiB": changed("ota_1", offset=0x1E1000),
    "size 0": changed("nvs", size=0),
    "size of half a sector": changed("nvs", size=0x800),
    "overlap": changed("ota_0", size=0x1D0000),
    "over the table": changed("nvs", offset=0x8000, size=0x1000),
    "behind the flash": changed("storage", size=0x61000),
    "a gap in the OTA numbers": changed("ota_1", subtype=0x12),
    "an OTA number twice": changed("ota_1", subtype=0x10),
    "two otadata": changed("storage", subtype=0),
    "small otadata": changed("otadata", size=0x1000),
    "OTA slots without otadata": [row for row in TABLE.partitions if row.name != "otadata"],
}


@pytest.mark.parametrize("rows", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_rows(rows: list[Partition]) -> None:
    refused(Reason.PartitionTableMalformed, lambda: check(rows, table_offset=0x8000, flash_size=4 << 20))


def test_building_does_not_hide_bad_rows_from_the_parser() -> None:
    """The MD5 row of a wrong table is right; the rules still hold."""
    raw = build_table(PartitionTable(tuple(changed("ota_0", size=0x1D0000))))
    refused(Reason.PartitionTableMalformed, lambda: parse_table(raw))


BAD_BYTES: list[tuple[str, Callable[[], bytes], Reason]] = [
    ("empty", lambda: b"", Reason.PartitionTableMalformed),
    ("too short", lambda: RAW[:-1], Reason.PartitionTableMalformed),
    ("bytes behind the table", lambda: RAW + b"\0", Reason.PartitionTableMalformed),
    ("longer than its sector", lambda: RAW + b"\xff" * 0x401, Reason.PartitionTableMalformed),
    ("erased", lambda: b"\xff" * 0xC00, Reason.PartitionTableHashMismatch),
    ("an image", lambda: b"\xe9" + RAW[1:], Reason.PartitionTableMalformed),
    ("a changed size", lambda: RAW[:9] + b"\x10" + RAW[10:], Reason.PartitionTableHashMismatch),
    ("no MD5 row", lambda: RAW[: 32 * 6] + b"\xff" * (0xC00 - 32 * 6), Reason.PartitionTableHashMismatch),
    ("a row behind the end", lambda: RAW[:0x400] + RAW[:32] + RAW[0x420:], Reason.PartitionTableMalformed),
    ("a name that is no text", lambda: RAW[:12] + b"\xff\xfe" + RAW[14:], Reason.PartitionTableMalformed),
]


@pytest.mark.parametrize(("make", "reason"), [b[1:] for b in BAD_BYTES], ids=[b[0] for b in BAD_BYTES])
def test_bad_bytes(make: Callable[[], bytes], reason: Reason) -> None:
    refused(reason, lambda: parse_table(make()))


@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(offset: int, mask: int) -> None:
    data = bytearray(RAW)
    data[offset] ^= mask
    with pytest.raises(PipelineError):
        parse_table(bytes(data))


@given(st.binary(min_size=64, max_size=256))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(PipelineError):
        parse_table((b"\xaa\x50" + data).ljust(0xC00, b"\xff"))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(2, 0xFE)), min_size=1, max_size=90))
def test_round_trip(sizes: list[tuple[int, int]]) -> None:
    rows, at = [], 0x9000
    for number, (sectors, subtype) in enumerate(sizes):
        rows.append(Partition(f"p{number}", 1, subtype, at, sectors * 0x1000, number % 4))
        at += sectors * 0x1000
    table = check(rows)
    assert parse_table(build_table(table)) == table


@pytest.mark.parametrize("target", ["esp32", "esp32c3-2023-06-10", "esp32s2", "esp32s3"])
def test_real_tables(target: str, firmware_dir: Path) -> None:
    data = (firmware_dir / f"micropython-{target}-merged.bin").read_bytes()
    start = 0x8000 - (0x1000 if target in ("esp32", "esp32s2") else 0)
    table = parse_table(data[start : start + 0xC00], table_offset=0x8000)
    assert table.factory is not None
    assert (table.factory.offset, table.ota_slots, table.otadata) == (0x10000, (), None)
    assert build_table(table) == data[start : start + 0xC00]
