# SPDX-License-Identifier: Apache-2.0
"""Which slot is written and how it is selected: the rules of slots.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.esp import otadata
from firmware_pipeline.esp.builder import default_partitions
from firmware_pipeline.esp.otadata import OtaRecord, SlotState
from firmware_pipeline.esp.partitions import Partition, PartitionTable, check
from flashjob.errors import FlashJobError
from flashjob.flasher.slots import choose

BOOT_ID = bytes(range(1, 17))
TABLE = default_partitions()


def table(slots: int, *, factory: bool = False) -> PartitionTable:
    rows = [Partition("otadata", 1, 0, 0x9000, 0x2000)]
    at = 0x10000
    if factory:
        rows.append(Partition("factory", 0, 0, at, 0x10000))
        at += 0x10000
    for n in range(slots):
        rows.append(Partition(f"ota_{n}", 0, 0x10 + n, at, 0x20000))
        at += 0x20000
    return check(rows)


def data(*records: tuple[int, SlotState]) -> bytes:
    sectors = [OtaRecord(seq, state, b"\xff" * 20).to_bytes().ljust(4096, b"\xff") for seq, state in records]
    return b"".join(sectors).ljust(otadata.OTADATA_SIZE, b"\xff")


@given(st.integers(2, 4), st.integers(0, 1000), st.sampled_from([SlotState.VALID, SlotState.UNDEFINED, SlotState.NEW]))
def test_rules_1_2_and_4_the_next_slot_boots_and_never_the_running_one(n: int, seq: int, state: SlotState) -> None:
    content = data((seq + 1, state))
    plan = choose(table(n), content)
    running = otadata.select(content, n)
    assert running is not None
    assert plan.index == (running.slot + 1) % n
    offset, sector = plan.selection(BOOT_ID)
    number = (offset - plan.otadata.offset) // 4096
    assert number != running.sector
    after = otadata.write_record(content, number, sector[:32])
    chosen = otadata.select(after, n)
    assert chosen is not None
    assert (chosen.slot, chosen.record.state, chosen.record.boot_id) == (plan.index, SlotState.NEW, BOOT_ID)


def test_rule_1_the_applications_word_goes_before_otadata() -> None:
    content = data((1, SlotState.VALID))
    assert choose(TABLE, content).index == 1
    assert choose(TABLE, content, running_subtype=0x11).index == 0  # the bootloader fell back to ota_1


def test_rule_1_a_word_that_names_no_slot_counts_for_nothing() -> None:
    assert choose(table(2), data((1, SlotState.VALID)), running_subtype=0x47).index == 1


def test_rule_1_nothing_chosen_yet() -> None:
    blank = otadata.blank_otadata()
    assert choose(table(2), blank).index == 1
    assert choose(table(2, factory=True), blank).index == 0
    assert choose(table(1, factory=True), blank).index == 0
    assert choose(table(2, factory=True), blank, running_subtype=0x00).index == 0


def test_rule_1_an_aborted_installation_is_not_what_runs() -> None:
    assert choose(table(2), data((1, SlotState.VALID), (2, SlotState.ABORTED))).index == 1


@pytest.mark.parametrize("layout", [table(1), check([Partition("factory", 0, 0, 0x10000, 0x10000)])])
def test_rule_2_no_slot_to_write(layout: PartitionTable) -> None:
    with pytest.raises(FlashJobError) as refused:
        choose(layout, otadata.blank_otadata(), None if layout.factory else 0x10)
    assert refused.value.reason == "NoUpdateSlot"
    assert refused.value.next_step


@given(st.integers(0, 1000), st.sampled_from([SlotState.VALID, SlotState.UNDEFINED, SlotState.NEW]))
def test_rule_2_the_only_slot_is_overwritten_if_permitted_and_selected_anew(seq: int, state: SlotState) -> None:
    content = data((seq + 1, state))
    plan = choose(table(1), content, in_place=True)
    assert plan.index == 0
    offset, sector = plan.selection(BOOT_ID)
    number = (offset - plan.otadata.offset) // 4096
    after = otadata.select(otadata.write_record(content, number, sector[:32]), 1)
    assert after is not None
    assert (after.slot, after.record.state, after.record.boot_id, after.sector) == (0, SlotState.NEW, BOOT_ID, number)
    assert number == 1, "the old choice stays until the new one is whole"


def test_rule_2_the_permission_changes_nothing_where_there_is_another_slot() -> None:
    for content in (otadata.blank_otadata(), data((1, SlotState.VALID)), data((2, SlotState.VALID))):
        assert choose(TABLE, content, in_place=True) == choose(TABLE, content)


def test_rule_2_without_otadata_there_is_no_place_for_a_boot_id() -> None:
    with pytest.raises(FlashJobError) as refused:
        choose(check([Partition("factory", 0, 0, 0x10000, 0x10000)]), otadata.blank_otadata(), in_place=True)
    assert refused.value.reason == "NoUpdateSlot"


@given(st.integers(1, 0x1C0000))
def test_rule_3_the_rest_of_the_last_page_is_erased(size: int) -> None:
    plan = choose(TABLE, otadata.blank_otadata())
    offset, length = plan.tail(size)
    assert offset % 4096 == length % 4096 == 0
    assert offset >= plan.slot.offset + size
    assert offset + length <= plan.slot.end
    assert length < 0x10000
    if length:
        assert (offset + length - plan.slot.offset) % 0x10000 == 0


@given(st.integers(1, 0x1C0000))
def test_rule_5_nothing_outside_slot_and_otadata_is_touched(size: int) -> None:
    plan = choose(TABLE, otadata.blank_otadata())
    at, sector = plan.selection(BOOT_ID)
    tail, length = plan.tail(size)
    assert plan.otadata.offset <= at < plan.otadata.end
    assert at + len(sector) <= plan.otadata.end
    assert plan.slot.offset <= tail
    assert tail + length <= plan.slot.end
