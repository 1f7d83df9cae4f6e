# SPDX-License-Identifier: Apache-2.0
"""OTA data: the bootloader's choice, and records that survive a power cut at any point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.otadata import (
    NO_BOOT_ID,
    OTADATA_SIZE,
    OtaRecord,
    SlotState,
    blank_otadata,
    parse_otadata,
    parse_record,
    select,
    select_record,
    seq_crc,
    write_record,
)
from tests.unit.firmware.builds import refused

BOOT_ID = bytes(range(1, 17))


def flash(first: OtaRecord | None, second: OtaRecord | None) -> bytes:
    data = blank_otadata()
    for sector, record in enumerate((first, second)):
        if record is not None:
            data = write_record(data, sector, record.to_bytes())
    return data


def record(seq: int, state: SlotState = SlotState.VALID) -> OtaRecord:
    return OtaRecord(seq, state, b"\xff" * 20)


def test_known_checksums() -> None:
    """Values that real devices hold for the first two installations."""
    assert (seq_crc(1), seq_crc(2)) == (0x4743989A, 0x55F63774)


def test_record_layout() -> None:
    raw = OtaRecord(1, SlotState.NEW, BOOT_ID + b"FJ1\0").to_bytes()
    assert raw == b"\x01\0\0\0" + BOOT_ID + bytes.fromhex("464a3100") + bytes(4) + bytes.fromhex("9a984347")


@pytest.mark.parametrize(("number", "bootable"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_states_have_the_numbers_that_flash_holds(number: int, bootable: bool) -> None:
    """3 is INVALID, 4 ABORTED; only these two rule a record out (rule 1)."""
    raw = (1).to_bytes(4, "little") + b"\xff" * 20 + bytes([number, 0, 0, 0]) + seq_crc(1).to_bytes(4, "little")
    parsed = parse_record(raw)
    assert parsed is not None
    assert parsed.bootable is bootable


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (None, None, None),
        (record(1), None, (0, 0)),
        (None, record(2), (1, 1)),
        (record(5), record(6), (1, 1)),
        (record(7), record(6), (0, 0)),
        (record(5), record(5), (0, 0)),
        (record(5), record(6, SlotState.ABORTED), (0, 0)),
        (record(5), record(6, SlotState.INVALID), (0, 0)),
        (record(5, SlotState.INVALID), record(6, SlotState.ABORTED), None),
        (record(5), record(6, SlotState.NEW), (1, 1)),
        (record(5), record(6, SlotState.PENDING_VERIFY), (1, 1)),
        (record(5), record(6, SlotState.UNDEFINED), (1, 1)),
        (record(5), record(0xFFFFFFFF), (0, 0)),
    ],
)  # fmt: skip
def test_bootloader_choice(first: OtaRecord | None, second: OtaRecord | None, expected: tuple[int, int] | None) -> None:
    """Rules 1, 2 and 4, for two slots: (sector, slot)."""
    chosen = select(flash(first, second), 2)
    assert (None if chosen is None else (chosen.sector, chosen.slot)) == expected


def test_wrong_checksum_does_not_count() -> None:
    raw = bytearray(record(9).to_bytes())
    raw[0] ^= 1
    assert parse_record(bytes(raw)) is None
    assert select(write_record(flash(record(4), None), 1, bytes(raw)), 2) == select(flash(record(4), None), 2)


@pytest.mark.parametrize("n_slots", [1, 2, 3, 16])
def test_slot_of_a_sequence_number(n_slots: int) -> None:
    """Rule 3."""
    assert [record(seq).slot(n_slots) for seq in range(1, 2 * n_slots + 1)] == list(range(n_slots)) * 2


def test_boot_id_is_read_from_its_label_only() -> None:
    assert record(1).boot_id == NO_BOOT_ID
    assert OtaRecord(1, SlotState.NEW, BOOT_ID + b"FJ1\0").boot_id == BOOT_ID
    assert OtaRecord(1, SlotState.NEW, BOOT_ID + b"FJ2\0").boot_id == NO_BOOT_ID


def test_first_installation_writes_sector_0() -> None:
    sector, raw = select_record(blank_otadata(), 1, 2, boot_id=BOOT_ID)
    assert (sector, parse_record(raw)) == (0, OtaRecord(2, SlotState.NEW, BOOT_ID + b"FJ1\0"))


def test_rollback_leads_to_the_old_slot() -> None:
    before = flash(record(3), record(2))
    sector, raw = select_record(before, 1, 2, boot_id=BOOT_ID)
    after = write_record(before, sector, raw)
    chosen = select(after, 2)
    assert chosen is not None
    aborted = write_record(after, sector, chosen.record.with_state(SlotState.ABORTED).to_bytes())
    assert select(aborted, 2) == select(before, 2)


@given(
    st.integers(1, 16).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.booleans()), max_size=8))
    )
)
def test_records_chain_and_survive_power_cuts(plan: tuple[int, list[tuple[int, bool]]]) -> None:
    """Rules 5 and 6: each record decides alone once written; until then the old choice stands."""
    n_slots, installs = plan
    data = blank_otadata()
    for number, (slot, rolled_back) in enumerate(installs):
        before = select(data, n_slots)
        boot_id = (number + 1).to_bytes(16, "big")
        sector, raw = select_record(data, slot, n_slots, boot_id=boot_id)
        for cut in (0, 4, 24, 28):  # erased, or partly written: the bytes behind the cut stay FF
            assert select(write_record(data, sector, raw[:cut]), n_slots) == before
        data = write_record(data, sector, raw)
        chosen = select(data, n_slots)
        assert chosen is not None
        assert (chosen.sector, chosen.slot, chosen.record.boot_id) == (sector, slot, boot_id)
        assert chosen.record.state is SlotState.NEW
        if before is not None:
            assert before.record.seq < chosen.record.seq <= before.record.seq + n_slots
        if rolled_back:
            data = write_record(data, sector, chosen.record.with_state(SlotState.ABORTED).to_bytes())
            assert select(data, n_slots) == before


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(1, 16))
def test_noise_never_breaks_the_choice(first: bytes, second: bytes, n_slots: int) -> None:
    data = write_record(write_record(blank_otadata(), 0, first), 1, second)
    chosen = select(data, n_slots)
    assert chosen is None or 0 <= chosen.slot < n_slots


@given(st.integers(0, 0xFFFFFFFF), st.binary(min_size=20, max_size=20), st.integers(0, 0xFFFFFFFF))
def test_record_round_trip(seq: int, label: bytes, state: int) -> None:
    parsed = parse_record(OtaRecord(seq, state, label).to_bytes())
    assert parsed == OtaRecord(seq, state, label)


def test_refusals() -> None:
    data = blank_otadata()
    refused(Reason.OtadataMalformed, lambda: parse_otadata(data[:-1]))
    refused(Reason.OtadataMalformed, lambda: parse_record(data[:31]))
    refused(Reason.OtadataMalformed, lambda: select(data, 0))
    refused(Reason.OtadataMalformed, lambda: select(data, 17))
    refused(Reason.OtadataMalformed, lambda: select_record(data, 2, 2, boot_id=BOOT_ID))
    refused(Reason.OtadataMalformed, lambda: select_record(data, 0, 2, boot_id=BOOT_ID[:-1]))
    refused(Reason.OtadataMalformed, lambda: select_record(data, 0, 2, boot_id=NO_BOOT_ID))
    last = flash(record(0xFFFFFFFE), None)
    refused(Reason.OtadataMalformed, lambda: select_record(last, 0, 2, boot_id=BOOT_ID))
    assert len(data) == OTADATA_SIZE
