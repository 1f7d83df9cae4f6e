# SPDX-License-Identifier: Apache-2.0
"""Compatibility: every rule accepts what it should and refuses what it should, for its own reason."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.compatibility import CheckOptions, Mismatch, check, check_layout
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import PartitionEntry, Role, SecureBoot
from tests.unit.firmware import builds

KEY, OTHER_KEY = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FirmwareConfig:
    return builds.config(tmp_path_factory.mktemp("build"), "esp32c3")


def facts(config: FirmwareConfig, **changes: Any) -> HardwareFacts:
    """A device that fits, all facts known."""
    known: dict[str, Any] = {
        "target": "esp32c3", "chip_id": 5, "revision": 4, "flash_size": 4 << 20, "mac": "7c:df:a1:00:00:01",
        "secure_boot": False, "flash_encryption": "off", "secure_download": False, "efuse_secure_version": 0,
        "partition_table_sha256": config.partition_table_sha256, "partitions": config.partitions,
        "running_slot": 0, "target_slot": 1, "target_slot_size": 0x1C0000,
        "app_name": "porch-sensor", "app_version": "2.0.0", "app_sequence": 7,
    }  # fmt: skip
    return HardwareFacts(**(known | changes))


def edit(config: FirmwareConfig, **changes: Any) -> FirmwareConfig:
    return config.model_copy(update=changes)


def chip(config: FirmwareConfig, **changes: Any) -> FirmwareConfig:
    return edit(config, chip=config.chip.model_copy(update=changes))


def app(config: FirmwareConfig, **changes: Any) -> FirmwareConfig:
    return edit(config, app=config.app.model_copy(update=changes))


def images(config: FirmwareConfig, role: Role, **changes: Any) -> FirmwareConfig:
    return edit(
        config,
        images=tuple(i.model_copy(update=changes) if i.role is role else i for i in config.images),
    )


def signed(config: FirmwareConfig) -> FirmwareConfig:
    return edit(config, secure_boot=SecureBoot(key_digests=(KEY,)))


def reasons(found: list[Mismatch]) -> list[Reason]:
    for mismatch in found:
        assert mismatch.message
        assert mismatch.next_step
        assert isinstance(mismatch.to_error(), PipelineError)
    return [mismatch.reason for mismatch in found]


SERIAL = CheckOptions(transport="serial")
NETWORK = CheckOptions(transport="network")


@pytest.mark.parametrize("options", [None, SERIAL, NETWORK, CheckOptions(complete=False)])
def test_a_device_that_fits(config: FirmwareConfig, options: CheckOptions | None) -> None:
    assert check(facts(config), config, options=options) == []


# --- layout ----------------------------------------------------------------------------------------------------

LAYOUT: list[tuple[str, Callable[[FirmwareConfig], FirmwareConfig], list[Reason]]] = [
    ("L1 app", lambda c: images(c, Role.APP, offset=0x21000, partition=None), [Reason.OffsetMisaligned]),
    ("L1 data", lambda c: images(c, Role.OTADATA, offset=0xD800, partition=None), [Reason.OffsetMisaligned]),
    ("L2", lambda c: images(c, Role.BOOTLOADER, offset=0x1000), [Reason.BootloaderOffsetWrong]),
    ("L3 images", lambda c: images(c, Role.OTADATA, offset=0x20000, partition=None), [Reason.ImagesOverlap]),
    ("L3 table", lambda c: images(c, Role.BOOTLOADER, size=0x8001), [Reason.ImagesOverlap]),
    ("L3 sector", lambda c: images(c, Role.OTADATA, offset=0x8C00, partition=None), [Reason.OffsetMisaligned, Reason.ImagesOverlap]),
    ("L4", lambda c: images(c, Role.APP, offset=0x3F0000, partition=None), [Reason.ImageBeyondFlash]),
    ("L5 begin", lambda c: images(c, Role.APP, offset=0x30000), [Reason.OffsetMisaligned]),
    ("L5 size", lambda c: images(c, Role.APP, size=0x1C0001), [Reason.ImageTooLarge]),
    ("L5 type", lambda c: images(c, Role.APP, offset=0x3A0000, size=0x1000, partition="storage"), [Reason.RoleNotAllowed]),
    ("L6", lambda c: app(c, secure_version=17), [Reason.SecurityVersionUnrepresentable]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in LAYOUT], ids=[case[0] for case in LAYOUT])
def test_layout_rules(
    config: FirmwareConfig, change: Callable[[FirmwareConfig], FirmwareConfig], expected: list[Reason]
) -> None:
    assert reasons(check_layout(change(config))) == expected


def test_layout_is_part_of_the_check(config: FirmwareConfig) -> None:
    assert Reason.BootloaderOffsetWrong in reasons(check(facts(config), images(config, Role.BOOTLOADER, offset=0x1000)))


def test_the_partition_table_is_protected_even_if_it_is_no_image(config: FirmwareConfig) -> None:
    """L3."""
    without = edit(config, images=tuple(i for i in config.images if i.role is not Role.PARTITION_TABLE))
    assert check_layout(without) == []
    assert reasons(check_layout(images(without, Role.BOOTLOADER, size=0x8001))) == [Reason.ImagesOverlap]


# --- rules on the device -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"target": "esp32s3"}, {"chip_id": 9}, {"target": None, "chip_id": 9}, {"target": "esp32s3", "chip_id": None}],
)
def test_rule_1_wrong_chip_and_nothing_else(config: FirmwareConfig, changes: dict[str, Any]) -> None:
    device = facts(config, **changes, flash_size=None, secure_boot=None)
    assert reasons(check(device, config)) == [Reason.WrongChip]


def test_rule_1_either_name_or_id_is_enough(config: FirmwareConfig) -> None:
    assert check(facts(config, target=None), config) == []
    assert check(facts(config, target="ESP32-C3", chip_id=None), config) == []


@pytest.mark.parametrize(
    ("low", "high", "found", "expected"),
    [
        (3, None, 3, []),
        (3, None, 2, [Reason.ChipRevisionTooLow]),
        (0, 99, 99, []),
        (0, 99, 100, [Reason.ChipRevisionTooHigh]),
        (0, 99, None, [Reason.HardwareUnknown]),
        (0, None, None, []),
    ],
)
def test_rule_2_revision(
    config: FirmwareConfig, low: int, high: int | None, found: int | None, expected: list[Reason]
) -> None:
    assert reasons(check(facts(config, revision=found), chip(config, min_rev=low, max_rev=high))) == expected


def test_rule_3_flash_size(config: FirmwareConfig) -> None:
    assert check(facts(config, flash_size=16 << 20), config) == []
    assert reasons(check(facts(config, flash_size=2 << 20), config)) == [Reason.FlashTooSmall]
    tiny = check(facts(config, flash_size=1 << 16), config)
    assert reasons(tiny) == [Reason.FlashTooSmall, Reason.ImageBeyondFlash]
    assert "app image" in tiny[1].message, "what is not written need not fit"


@pytest.mark.parametrize("role", [Role.BOOTLOADER, Role.PARTITION_TABLE, Role.OTADATA])
def test_rule_4_roles_need_permission(config: FirmwareConfig, role: Role) -> None:
    wish = frozenset({Role.APP, role})
    assert reasons(check(facts(config), config, options=CheckOptions(write=wish))) == [Reason.RoleNotAllowed]
    assert check(facts(config), config, options=CheckOptions(write=wish, permitted=wish)) == []


def test_rule_4_the_application_too_needs_to_be_permitted(config: FirmwareConfig) -> None:
    assert reasons(check(facts(config), config, options=CheckOptions(permitted=frozenset()))) == [Reason.RoleNotAllowed]


def test_rule_5_slot(config: FirmwareConfig) -> None:
    size = config.app_image.size
    assert check(facts(config, target_slot_size=size), config) == []
    assert reasons(check(facts(config, target_slot_size=size - 1), config)) == [Reason.ImageTooLarge]


def test_rule_5_in_place(config: FirmwareConfig) -> None:
    in_place = CheckOptions(allow_in_place=True)
    one_slot = facts(config, target_slot=None, target_slot_size=None)
    assert reasons(check(one_slot, config)) == [Reason.SlotUnknown]
    assert check(one_slot, config, options=in_place) == []

    def with_row(**row: Any) -> HardwareFacts:
        values: dict[str, Any] = {"name": "factory", "type": 0, "subtype": 0, "offset": 0x20000, "size": 0x100000} | row
        return one_slot.model_copy(update={"partitions": (PartitionEntry(**values),)})

    assert check(with_row(), config, options=in_place) == []
    assert check(with_row(size=config.app_image.size), config, options=in_place) == []
    assert reasons(check(with_row(offset=0x10000), config, options=in_place)) == [Reason.PartitionTableMismatch]
    assert reasons(check(with_row(type=1, subtype=6), config, options=in_place)) == [Reason.PartitionTableMismatch]
    assert reasons(check(with_row(size=0x10000), config, options=in_place)) == [Reason.ImageTooLarge]
    unread = one_slot.model_copy(update={"partitions": None})
    assert reasons(check(unread, config, options=in_place)) == [Reason.HardwareUnknown]


def test_rule_6_partition_table(config: FirmwareConfig) -> None:
    other = facts(config, partition_table_sha256="0" * 64)
    assert reasons(check(other, config)) == [Reason.PartitionTableMismatch]
    roles = frozenset({Role.APP, Role.PARTITION_TABLE})
    assert check(other, config, options=CheckOptions(write=roles, permitted=roles)) == []
    assert check(facts(config, partition_table_sha256=None), config) == []
    without = edit(images(config, Role.APP, partition=None), partitions=(), partition_table_sha256=None)
    assert check(other, without) == []


@pytest.mark.parametrize(
    ("enforced", "keys", "sign", "expected"),
    [
        (False, None, False, []),
        (False, None, True, []),
        (True, None, False, [Reason.SecureBootUnsigned]),
        (True, (KEY,), False, [Reason.SecureBootUnsigned]),
        (True, None, True, []),
        (True, (OTHER_KEY, KEY), True, []),
        (True, (OTHER_KEY,), True, [Reason.SecureBootUnsigned]),
        (True, (), True, [Reason.SecureBootUnsigned]),
        (None, None, False, [Reason.HardwareUnknown]),
        (None, None, True, []),
    ],
)
def test_rule_7_secure_boot(
    config: FirmwareConfig, enforced: bool | None, keys: tuple[str, ...] | None, sign: bool, expected: list[Reason]
) -> None:
    device = facts(config, secure_boot=enforced, secure_boot_key_digests=keys)
    assert reasons(check(device, signed(config) if sign else config)) == expected


@pytest.mark.parametrize(
    ("mode", "marked", "expected"),
    [
        ("off", False, []),
        ("off", True, [Reason.EncryptionMismatch]),
        ("development", True, []),
        ("development", False, [Reason.EncryptionMismatch]),
        ("release", True, [Reason.EncryptionMismatch]),
        ("release", False, [Reason.EncryptionMismatch]),
        (None, False, [Reason.HardwareUnknown]),
    ],
)
def test_rule_8_flash_encryption_over_serial(
    config: FirmwareConfig, mode: str | None, marked: bool, expected: list[Reason]
) -> None:
    device, firmware = facts(config, flash_encryption=mode), images(config, Role.APP, encrypt=marked)
    assert reasons(check(device, firmware, options=SERIAL)) == expected
    assert check(device, firmware, options=NETWORK) == [], "over the network the device encrypts"


@pytest.mark.parametrize(
    ("locked", "expected"),
    [(False, []), (True, [Reason.SecureDownloadMode]), (None, [Reason.HardwareUnknown])],
)
def test_rule_9_secure_download(config: FirmwareConfig, locked: bool | None, expected: list[Reason]) -> None:
    device = facts(config, secure_download=locked)
    assert reasons(check(device, config, options=SERIAL)) == expected
    assert check(device, config, options=NETWORK) == []


@pytest.mark.parametrize(
    ("wanted", "burnt", "allow", "expected"),
    [
        (0, 0, False, []),
        (2, 2, False, []),
        (1, 2, False, [Reason.SecurityVersionTooLow]),
        (1, 2, True, [Reason.SecurityVersionTooLow]),
        (3, 2, False, [Reason.SecurityVersionBurnNotAllowed]),
        (3, 2, True, []),
        (1, None, True, [Reason.HardwareUnknown]),
        (0, None, False, []),
    ],
)
def test_rule_10_security_version(
    config: FirmwareConfig, wanted: int, burnt: int | None, allow: bool, expected: list[Reason]
) -> None:
    device = facts(config, efuse_secure_version=burnt)
    options = CheckOptions(allow_security_version_burn=allow)
    assert reasons(check(device, app(config, secure_version=wanted), options=options)) == expected


def test_rule_10_unknown_counter_matters_where_no_old_image_remains(config: FirmwareConfig) -> None:
    device = facts(config, efuse_secure_version=None, target_slot_size=None)
    assert reasons(check(device, config, options=CheckOptions(allow_in_place=True))) == [Reason.HardwareUnknown]


@pytest.mark.parametrize(
    ("sequence", "stored", "new", "old", "name", "expected"),
    [
        (7, 7, "1.0", "2.0", "porch-sensor", []),
        (8, 7, "1.0", "2.0", "porch-sensor", []),
        (6, 7, "2.1", "2.0", "porch-sensor", [Reason.DowngradeNotAllowed]),
        (None, 7, "1.9", "2.0", "porch-sensor", [Reason.DowngradeNotAllowed]),
        (6, None, "v2.9", "2.10.0", "porch-sensor", [Reason.DowngradeNotAllowed]),
        (None, None, "2.0", "2.0.0", "porch-sensor", []),
        (None, None, "1.0", "2.0", "gate", []),
        (None, None, "1.0-rc1", "2.0", "porch-sensor", [Reason.DowngradeNotAllowed]),
        (None, None, "2.0-rc1", "2.0", "porch-sensor", []),
        (None, None, "1.0", None, "porch-sensor", []),
    ],
)
def test_rule_12_downgrade(
    config: FirmwareConfig, sequence: int | None, stored: int | None, new: str, old: str | None, name: str,
    expected: list[Reason],
) -> None:  # fmt: skip
    device = facts(config, app_sequence=stored, app_version=old, app_name=name)
    firmware = app(config, version=new)
    assert reasons(check(device, firmware, options=CheckOptions(sequence=sequence))) == expected
    assert check(device, firmware, options=CheckOptions(sequence=sequence, allow_downgrade=True)) == []


def test_nothing_known(config: FirmwareConfig) -> None:
    """Planning goes on with an unknown device, preflight does not."""
    assert check(HardwareFacts(), config, options=CheckOptions(complete=False, transport="serial")) == []
    assert reasons(check(HardwareFacts(), config, options=SERIAL)) == [Reason.HardwareUnknown]
    barely = check(HardwareFacts(target="esp32c3"), config, options=SERIAL)
    assert set(reasons(barely)) == {Reason.HardwareUnknown, Reason.SlotUnknown}


FIELDS = ["revision", "flash_size", "secure_boot", "flash_encryption", "secure_download", "efuse_secure_version",
          "partition_table_sha256", "partitions", "target_slot_size", "app_version", "app_sequence"]  # fmt: skip


@given(
    forgotten=st.sets(st.sampled_from(FIELDS)),
    flash_size=st.sampled_from([1 << 20, 4 << 20]),
    efuse=st.integers(0, 3),
    wanted=st.integers(0, 3),
    slot=st.sampled_from([0x10000, 0x1C0000]),
    enforced=st.booleans(),
    sequence=st.none() | st.integers(5, 9),
)
def test_a_read_device_is_never_judged_more_mildly_than_a_recorded_one(
    config: FirmwareConfig, forgotten: set[str], flash_size: int, efuse: int, wanted: int, slot: int, enforced: bool,
    sequence: int | None,
) -> None:  # fmt: skip
    """Forgetting facts never turns a preflight refusal about them into an acceptance, and planning only skips."""
    device = facts(
        config, flash_size=flash_size, efuse_secure_version=efuse, target_slot_size=slot, secure_boot=enforced
    )
    dim = device.model_copy(update=dict.fromkeys(forgotten))
    firmware = app(config, secure_version=wanted)
    preflight = CheckOptions(transport="serial", sequence=sequence)
    planning = CheckOptions(transport="serial", sequence=sequence, complete=False)
    assert set(check(dim, firmware, options=planning)) <= set(check(dim, firmware, options=preflight))
    refusals = set(reasons(check(device, firmware, options=preflight)))
    dangerous = {
        Reason.FlashTooSmall,
        Reason.ImageTooLarge,
        Reason.SecureBootUnsigned,
        Reason.SecurityVersionBurnNotAllowed,
    }
    if refusals & dangerous:
        assert check(dim, firmware, options=preflight) != []
