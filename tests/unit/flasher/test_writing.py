# SPDX-License-Identifier: Apache-2.0
"""What a serial update writes beyond the application: the rules of writing.py, on flash and bootloader of a virtual chip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from firmware_pipeline.esp import builder, otadata, partitions
from firmware_pipeline.esp.data_partitions import holds_data, wiped
from firmware_pipeline.esp.otadata import OTADATA_SIZE, OtaRecord, SlotState
from firmware_pipeline.esp.partitions import Partition, PartitionTable, check
from flashjob.errors import FlashJobError
from flashjob.flasher import slots, writing
from flashjob.flasher.content import Content
from flashjob.flasher.writing import Step, WritePlan
from flashjob.virtual.bootloader import HANDOVER_SIZE, BootError, BootResult, boot
from flashjob.virtual.flash import SECTOR, Flash, FlashIOError, Operation
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import make_identity

CHIP, TABLE, SIZE = "esp32c3", 0x8000, 0x200000
BOOT_ID = bytes(range(1, 17))
IDENTITY = make_identity("writing", CHIP, tier="SelfReported", flash_size="2MB")
APPS = {n: builder.build_app(CHIP, "porch", f"{n}.0.0", payload_size=40 * 1024, flash_size="2MB") for n in (1, 2)}
LOADERS = {n: builder.build_bootloader(CHIP, version=n, flash_size="2MB") for n in (1, 2)}
PHY, NVS, OTADATA, SPIFFS, NVS_KEYS = 0x01, 0x02, 0x00, 0x82, 0x04


def rows(*parts: tuple[str, int, int, int, int]) -> PartitionTable:
    return check([Partition(*part) for part in parts], table_offset=TABLE, flash_size=SIZE)


OLD = rows(
    ("nvs", 1, NVS, 0x9000, 0x4000),
    ("otadata", 1, OTADATA, 0xD000, 0x2000),
    ("phy_init", 1, PHY, 0xF000, 0x1000),
    ("ota_0", 0, 0x10, 0x10000, 0x80000),
    ("ota_1", 0, 0x11, 0x90000, 0x80000),
    ("keys", 1, NVS_KEYS, 0x110000, 0x1000),
    ("storage", 1, SPIFFS, 0x111000, 0x20000),
)


def changed(table: PartitionTable = OLD, **changes: dict[str, object] | None) -> PartitionTable:
    """The table with rows changed, or left out (None)."""
    kept = [row for row in table.partitions if changes.get(row.name, {}) is not None]
    return check([replace(row, **(changes.get(row.name) or {})) for row in kept], table_offset=TABLE)  # type: ignore[arg-type]


BIGGER = changed(ota_1={"offset": 0x140000, "size": 0xA0000})
"""ota_1 grows into what was free; every data partition stays."""
FACTORY = rows(
    ("nvs", 1, NVS, 0x9000, 0x6000), ("phy_init", 1, PHY, 0xF000, 0x1000), ("factory", 0, 0, 0x10000, 0x100000)
)  # fmt: skip
TWO_SLOTS = rows(
    ("nvs", 1, NVS, 0x9000, 0x4000),
    ("otadata", 1, OTADATA, 0xD000, 0x2000),
    ("phy_init", 1, PHY, 0xF000, 0x1000),
    ("ota_0", 0, 0x10, 0x10000, 0x100000),
    ("ota_1", 0, 0x11, 0x110000, 0xF0000),
)


def raw(table: PartitionTable) -> bytes:
    return partitions.build_table(table)


def record(slot: int) -> bytes:
    """OTA data that selects a slot of two."""
    return OtaRecord(slot + 1, SlotState.VALID, b"\xff" * 20).to_bytes().ljust(OTADATA_SIZE, b"\xff")


def content(**changes: object) -> Content:
    return replace(Content(CHIP, len(APPS[2])), **changes)  # type: ignore[arg-type]


def planned(
    old: PartitionTable | bytes,
    brought: Content,
    ota: bytes = record(0),
    *,
    subtype: int | None = None,
    answers: bool = True,
) -> WritePlan:
    place = writing.layout(old if isinstance(old, bytes) else raw(old), TABLE, brought, answers=answers)
    return writing.plan(place, ota, subtype, brought)


def refusal(old: PartitionTable | bytes, brought: Content, ota: bytes = record(0), *, answers: bool = True) -> str:
    with pytest.raises(FlashJobError) as caught:
        planned(old, brought, ota, answers=answers)
    assert caught.value.next_step
    return str(caught.value.reason)


def touched(steps: Iterable[Step]) -> set[int]:
    """Sectors that are erased or written."""
    spans = [span for step in steps for span in (*step.erase, (step.offset, len(step.data)))]
    return {n for offset, size in spans for n in range(offset // SECTOR, -(-(offset + size) // SECTOR))}


def sectors(row: Partition) -> set[int]:
    return set(range(row.offset // SECTOR, row.end // SECTOR))


# --- rule by rule ----------------------------------------------------------------------------------------------------


def test_the_application_alone_touches_nothing_but_slot_and_otadata() -> None:
    steps = planned(OLD, content()).steps(APPS[2], BOOT_ID)
    assert [step.name for step in steps] == ["image", "otadata"]
    slot, place = OLD.by_name("ota_1"), OLD.otadata
    assert slot is not None
    assert place is not None
    assert touched(steps) <= sectors(slot) | sectors(place)


def test_rule_1_a_table_that_is_there_is_not_written() -> None:
    assert planned(OLD, content(table=raw(OLD))).layout.written is None


@pytest.mark.parametrize("found", [b"\xff" * 0xC00, bytes(0xC00), raw(OLD)[:64].ljust(0xC00, b"\xff")])
def test_rule_1_a_table_that_cannot_be_read(found: bytes) -> None:
    assert refusal(found, content(), answers=False) == "PartitionMismatch"
    assert refusal(found, content(table=raw(BIGGER))) == "PartitionMismatch", "an application answers: where from?"
    plan = planned(found, content(table=raw(BIGGER)), answers=False)
    assert plan.layout.written == raw(BIGGER)
    assert plan.target.slot.name == "ota_1", "not the slot that OTA data selects"


def test_rule_2_otadata_stays_and_nothing_lies_before_the_table() -> None:
    moved = changed(nvs={"offset": 0xB000}, otadata={"offset": 0x9000})
    assert refusal(OLD, content(table=raw(moved), wipe=True)) == "PartitionMismatch"
    none = changed(otadata=None, ota_1=None)
    assert refusal(OLD, content(table=raw(none), wipe=True)) == "PartitionMismatch"
    low = changed(nvs={"offset": 0x6000, "size": 0x2000})
    assert refusal(OLD, content(table=raw(low), wipe=True)) == "PartitionMismatch"


def test_rule_2_a_table_of_the_artifact_that_is_none() -> None:
    assert refusal(OLD, content(table=b"\xaa\x50" * 20)) == "ArtifactInvalid"


@pytest.mark.parametrize(
    "new",
    [
        changed(storage={"offset": 0x112000}),
        changed(storage={"size": 0x1F000}),
        changed(storage={"name": "files"}),
        changed(storage={"subtype": 0x83}),
        changed(storage=None),
        changed(nvs={"offset": 0xA000, "size": 0x3000}),
    ],
    ids=["moves", "shrinks", "renamed", "another kind", "vanishes", "nvs moves"],
)
def test_rule_3_data_is_kept_or_the_table_is_refused(new: PartitionTable) -> None:
    assert refusal(OLD, content(table=raw(new))) == "DataWouldBeLost"
    assert planned(OLD, content(table=raw(new), wipe=True)).layout.written == raw(new)


@pytest.mark.parametrize("name", ["keys", "phy_init"])
def test_rule_3_what_is_never_wiped_may_not_go_either(name: str) -> None:
    less = check([row for row in OLD.partitions if row.name != name], table_offset=TABLE)
    assert refusal(OLD, content(table=raw(less), wipe=True)) == "DataWouldBeLost"


def test_rule_2_nothing_lies_behind_the_flash() -> None:
    with pytest.raises(FlashJobError) as caught:
        writing.layout(raw(OLD), TABLE, content(table=raw(BIGGER)), answers=True, flash_size=0x180000)
    assert caught.value.reason == "FlashTooSmall"


def test_rule_3_growing_is_no_harm() -> None:
    new = changed(storage={"size": 0x40000}, ota_1={"size": 0x70000})
    assert planned(OLD, content(table=raw(new))).layout.written == raw(new)


def test_rule_4_the_slot_is_chosen_in_the_new_table_and_spares_what_runs() -> None:
    assert planned(OLD, content(table=raw(BIGGER))).target.slot.offset == 0x140000
    one = changed(ota_1=None)
    assert refusal(OLD, content(table=raw(one))) == "NoUpdateSlot"
    assert planned(OLD, content(table=raw(one), in_place=True)).target.slot.name == "ota_0"
    assert planned(OLD, content(table=raw(BIGGER)), subtype=0x47).target.slot.offset == 0x140000, "no slot of the table"
    over = changed(ota_0={"size": 0x40000}, ota_1={"offset": 0x50000})
    assert refusal(OLD, content(table=raw(over))) == "NoUpdateSlot", "ota_1 would begin within what runs"


def test_rule_5_the_way_back_stays_open() -> None:
    smaller = changed(ota_0={"size": 0x70000})
    assert refusal(OLD, content(table=raw(smaller))) == "NoRollback"
    assert planned(OLD, content(table=raw(smaller), without_rollback=True)).target.slot.name == "ota_1"
    assert refusal(OLD, content(table=raw(smaller), in_place=True)) == "NoRollback", "that is another permission"
    assert refusal(OLD, content(table=raw(BIGGER)), record(1)) == "NoRollback", "what runs stands elsewhere then"
    three = rows(
        *[(row.name, row.type, row.subtype, row.offset, row.size) for row in OLD.partitions],
        ("ota_2", 0, 0x12, 0x140000, 0x80000),
    )
    fourth = OtaRecord(4, SlotState.VALID, b"\xff" * 20).to_bytes().ljust(OTADATA_SIZE, b"\xff")
    assert refusal(OLD, content(table=raw(three)), fourth) == "NoRollback", "seq 4 is ota_1 of two, ota_0 of three"


def test_rule_6_wiping_spares_what_is_not_the_applications() -> None:
    plan = planned(OLD, content(table=raw(BIGGER), wipe=True))
    erased = touched([Step("erase", 0, b"", plan.erase)])
    by_name = {row.name: sectors(row) for row in OLD.partitions}
    assert by_name["nvs"] | by_name["storage"] == erased
    read_only = changed(storage={"flags": 2})
    assert touched([Step("erase", 0, b"", planned(read_only, content(wipe=True)).erase)]) == by_name["nvs"]


def test_rule_6_what_the_old_table_called_data_is_wiped_also_where_the_new_one_does_not() -> None:
    gone = changed(storage=None)
    plan = planned(OLD, content(table=raw(gone), wipe=True))
    storage = OLD.by_name("storage")
    assert storage is not None
    assert sectors(storage) <= touched([Step("erase", 0, b"", plan.erase)])


def test_rule_7_images_of_data() -> None:
    image = b"files" * 1000
    plan = planned(OLD, content(wipe=True, data=((0x111000, image), (0x110000, b"new keys"))))
    assert [(row.name, data) for row, data in plan.data] == [("storage", image)], "keys are the board's"
    assert 0x111000 // SECTOR not in touched([Step("erase", 0, b"", plan.erase)]), "written, and so erased, anyway"
    assert refusal(OLD, content(wipe=True, data=((0x112000, image),))) == "PartitionMismatch"
    assert refusal(OLD, content(wipe=True, data=((0x9000, bytes(0x4001)),))) == "ImageTooLarge"


def test_rule_8_the_order() -> None:
    brought = content(bootloader=LOADERS[2], table=raw(BIGGER), wipe=True, data=((0x111000, b"files"),))
    steps = planned(OLD, brought).steps(APPS[2], BOOT_ID)
    assert [step.name for step in steps] == ["image", "bootloader", "table", "erase", "data-111000", "otadata"]


# --- a cut of power at every sector ----------------------------------------------------------------------------------


class Cut(FlashIOError):
    """The power fails."""


@dataclass
class Board:
    """Flash and bootloader of a chip; power that may fail before any change of a sector."""

    flash: Flash
    nvs: Nvs
    left: int = -1
    """Changes until the power fails; negative: it does not."""

    @classmethod
    def factory(cls, table: PartitionTable, running: int) -> Board:
        flash = Flash(SIZE)
        flash.load(0, LOADERS[1])
        flash.load(TABLE, raw(table))
        flash.load(table.app_slots[running].offset, APPS[1])
        for row in filter(holds_data, table.partitions):
            flash.load(row.offset, hashlib.shake_256(row.name.encode()).digest(row.size))
        if table.otadata is not None:
            flash.load(table.otadata.offset, record(running))
        return cls(flash, Nvs())

    def boots(self) -> BootResult | None:
        try:
            return boot(self.flash, IDENTITY, nvs=self.nvs, area=bytearray(HANDOVER_SIZE), random=bytes)
        except BootError:
            return None

    def update(self, brought: Content, running: BootResult | None) -> str:
        """One attempt; the name of the step in which the power failed, "" if it did not."""
        found = self.flash.snapshot()
        place = writing.layout(found[TABLE : TABLE + 0xC00], TABLE, brought, answers=running is not None)
        where = place.new.otadata
        assert where is not None
        ota = found[where.offset : where.offset + OTADATA_SIZE]
        plan = writing.plan(place, ota, running.slot.subtype if running else None, brought)
        self.flash.hook = self._power
        try:
            for step in plan.steps(APPS[2], BOOT_ID):
                name = step.name
                for offset, size in step.erase:
                    self.flash.erase(offset, size)
                for at in range(0, len(step.data), SECTOR):
                    self.flash.erase(step.offset + at, SECTOR)
                    self.flash.program(step.offset + at, step.data[at : at + SECTOR])
        except Cut:
            return name
        finally:
            self.flash.hook = None
        return ""

    def _power(self, operation: Operation, _offset: int, _length: int) -> None:
        if operation == "read":
            return
        if self.left == 0:
            raise Cut("the power fails")
        self.left -= 1


WHOLE = content(bootloader=LOADERS[2])
STORIES = {
    "bootloader alone": (OLD, 0, WHOLE),
    "bootloader alone, ota_1 runs": (OLD, 1, WHOLE),
    "a bigger slot, data kept": (OLD, 0, replace(WHOLE, table=raw(BIGGER))),
    "data wiped": (OLD, 1, replace(WHOLE, wipe=True, data=((0x111000, b"files" * 2000),))),
    "all at once": (
        OLD, 0,
        replace(WHOLE, table=raw(changed(ota_1={"offset": 0x140000}, storage={"size": 0x10000})), wipe=True,
                data=((0x111000, b"files" * 2000),)),
    ),
    "a factory application becomes ota_0": (FACTORY, 0, replace(WHOLE, table=raw(TWO_SLOTS), wipe=True)),
    "no way back": (OLD, 1, replace(WHOLE, table=raw(BIGGER), without_rollback=True)),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_after_a_cut_at_any_sector_old_or_new_boots_or_the_next_attempt_heals(story: str) -> None:
    old, running, brought = STORIES[story]
    cut = -1
    while True:
        cut += 1
        board = Board.factory(old, running)
        before = board.boots()
        assert before is not None
        assert before.version == "1.0.0"
        kept = {row.name: board.flash.read(row.offset, row.size) for row in filter(holds_data, old.partitions)}
        board.left = cut
        step = board.update(brought, before)
        after = board.boots()
        if after is None:
            assert step in ("bootloader", "table"), f"cut {cut} in {step}: dead"
        elif after.version == "2.0.0" and step:
            assert after.boot_id == bytes(16), f"cut {cut} in {step}: nobody takes this for the installation"
        else:
            assert after.version == ("1.0.0" if step else "2.0.0")
        board.left = -1
        if step:
            assert board.update(brought, after) == ""
            after = board.boots()
        assert after is not None, f"cut {cut} in {step}"
        assert (after.version, after.boot_id) == ("2.0.0", BOOT_ID), f"cut {cut} in {step}"
        for row in filter(holds_data, old.partitions):
            if not (brought.wipe and wiped(row)):
                assert board.flash.read(row.offset, row.size) == kept[row.name], f"cut {cut}: {row.name}"
        if not brought.without_rollback:
            back = board.boots()
            assert back is not None
            assert back.version == "1.0.0", "not confirmed: the device goes back"
        if not step:
            break
    assert cut > 20


# --- any two tables --------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> PartitionTable:
    """Any table of at most two slots whose OTA data is at 0xD000."""
    found = [Partition("otadata", 1, OTADATA, 0xD000, 0x2000)]
    if draw(st.booleans()):
        found.append(Partition("nvs", 1, NVS, 0x9000, draw(st.sampled_from([0x3000, 0x4000]))))
    at = 0x10000
    names = ["ota_0", "ota_1", "storage", "keys", "cert"][: draw(st.integers(2, 5))]
    kinds = {"ota_0": (0, 0x10), "ota_1": (0, 0x11), "storage": (1, SPIFFS), "keys": (1, NVS_KEYS), "cert": (0x3F, 6)}
    for name in draw(st.permutations(names)):
        kind, subtype = kinds[name]
        size = draw(st.integers(1, 6)) * 0x8000
        at = -(-at // 0x10000) * 0x10000 if kind == 0 else at
        found.append(Partition(name, kind, subtype, at, size))
        at += size + draw(st.sampled_from([0, 0x8000]))
    return check(found, table_offset=TABLE, flash_size=SIZE)


@settings(max_examples=300, deadline=None)
@given(tables(), tables(), st.integers(0, 1), st.booleans(), st.booleans(), st.integers(1, 0x28000))
def test_no_table_makes_a_plan_break_its_promises(
    old: PartitionTable, new: PartitionTable, running: int, wipe: bool, no_way_back: bool, size: int
) -> None:
    brought = Content(CHIP, size, LOADERS[2], raw(new), (), wipe, False, no_way_back)
    try:
        plan = planned(old, brought, record(running))
    except FlashJobError as refused:
        reason = str(refused.reason)
        event(reason)
        if reason not in ("DataWouldBeLost", "NoUpdateSlot", "NoRollback"):
            raise
        return
    steps = plan.steps(bytes(size), BOOT_ID)
    changes = touched(steps)
    runs = old.ota_slots[running]
    if size <= plan.target.slot.size:  # else preflight refuses
        assert not changes & sectors(runs), "the application that runs stays whole"
        for row in filter(holds_data, old.partitions):
            if not (wipe and wiped(row)):
                assert not changes & sectors(row), f"{row.name} stays byte for byte"
    assert steps[-1].name == "otadata"
    if not no_way_back:
        again = slots.booting(plan.layout.new, record(running))
        assert again is not None
        assert again.offset == runs.offset
    after = otadata.write_record(record(running), (steps[-1].offset - 0xD000) // SECTOR, steps[-1].data[:32])
    chosen = otadata.select(after, len(new.ota_slots))
    assert chosen is not None
    assert chosen.slot == plan.target.index
