# SPDX-License-Identifier: Apache-2.0
"""The bootloader: which slot boots, what is certified, and that no secret survives it."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest

from attestation import mint
from attestation.cbor import strict_loads
from attestation.dice_cbor import parse_certificate, read_application_config, verify_chain
from attestation.keys import Alg
from attestation.mint import Mode
from attestation.statement import SHA_256
from firmware_pipeline.esp import otadata, partitions
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.otadata import NO_BOOT_ID, OtaRecord, SlotState, boot_label
from firmware_pipeline.esp.partitions import Partition
from flashjob.virtual.adversaries import RunsOldImage, StaleBootId
from flashjob.virtual.application import Application
from flashjob.virtual.bootloader import (
    HANDOVER_SIZE,
    BootError,
    BootResult,
    Handover,
    boot,
    measure_bytes,
    read_otadata,
    write_record,
)
from flashjob.virtual.flash import Flash
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import make_identity
from tests.unit.virtual.workbench import Bench, bootloader, image

BOOT_ID = bytes(range(16))


def install_by_hand(bench: Bench, data: bytes, state: SlotState = SlotState.NEW, boot_id: bytes = BOOT_ID) -> None:
    """What a serial writer does: image into slot 1, record into otadata."""
    slot = bench.slot(1)
    bench.flash.erase(slot.offset, 0x10000)
    bench.flash.program(slot.offset, data)
    current = read_otadata(bench.flash, bench.table)
    sector, record = otadata.select_record(current, 1, 2, boot_id=boot_id, state=state)
    write_record(bench.flash, bench.table, sector, record)


def state_of(bench: Bench, sector: int) -> Any:
    record = otadata.parse_otadata(read_otadata(bench.flash, bench.table))[sector]
    assert record is not None
    return record.state


# --- which slot boots --------------------------------------------------------------------------------------------


def test_rule_4_blank_otadata_boots_ota_0_and_writes_a_first_valid_record() -> None:
    bench = Bench()
    assert bench.application.boot.slot.subtype_name == "ota_0"
    assert bench.application.boot.boot_id == NO_BOOT_ID
    assert state_of(bench, 0) == SlotState.VALID
    before = bench.flash.bytes_erased
    bench.reset()
    assert bench.flash.bytes_erased == before, "the second boot writes nothing"


def test_rule_3_new_becomes_pending_before_the_application_starts() -> None:
    bench = Bench()
    install_by_hand(bench, image("2.0"))
    result = bench.reset().boot
    assert (result.slot.subtype_name, result.version, result.boot_id) == ("ota_1", "2.0", BOOT_ID)
    assert result.slot_state == SlotState.PENDING_VERIFY
    assert result.unconfirmed
    assert state_of(bench, 1) == SlotState.PENDING_VERIFY


def test_rule_2_a_second_boot_without_confirmation_goes_back() -> None:
    bench = Bench()
    install_by_hand(bench, image("2.0"))
    bench.reset()
    result = bench.reset().boot
    assert (result.version, result.slot_state) == ("1.0", SlotState.VALID)
    assert state_of(bench, 1) == SlotState.ABORTED
    assert any("ABORTED" in line for line in result.log)


def test_a_valid_record_stays_selected_over_resets() -> None:
    bench = Bench()
    install_by_hand(bench, image("2.0"), SlotState.VALID)
    assert [bench.reset().boot.version for _ in range(3)] == ["2.0"] * 3


def test_rule_5_a_damaged_image_falls_back_and_rule_11_forgets_its_boot_id() -> None:
    bench = Bench()
    damaged = bytearray(image("2.0"))
    damaged[5000] ^= 1
    install_by_hand(bench, bytes(damaged))
    result = bench.reset().boot
    assert (result.version, result.boot_id, result.slot_state) == ("1.0", NO_BOOT_ID, SlotState.UNDEFINED)


@pytest.mark.parametrize(
    "wrong",
    [
        build_app("esp32c3", "porch", "2.0", payload_size=16384, pad_to_page=False),
        build_app("esp32s3", "porch", "2.0", payload_size=16384, pad_to_page=False, min_rev=300),
        build_app("esp32s3", "porch", "2.0", payload_size=16384, pad_to_page=False, max_rev=1),
        bootloader("esp32s3"),
    ],
    ids=["other chip", "chip too old", "chip too new", "no application"],
)
def test_rule_5_what_cannot_run_here_does_not_boot(wrong: bytes) -> None:
    bench = Bench()
    install_by_hand(bench, wrong)
    assert bench.reset().boot.version == "1.0"


def test_rule_5_anti_rollback_refuses_an_older_secure_version_and_rule_6_burns() -> None:
    identity = make_identity("bench", "esp32s3", anti_rollback=True)
    bench = Bench(identity=identity, first=image(secure_version=2))
    assert identity.hardware.fuses.secure_version == 2, "the slot was valid: burnt at once"
    install_by_hand(bench, image("2.0", secure_version=1))
    assert bench.reset().boot.version == "1.0"
    install_by_hand(bench, image("3.0", secure_version=3))
    assert bench.reset().boot.version == "3.0"
    assert identity.hardware.fuses.secure_version == 2, "an unconfirmed installation burns nothing"


def test_factory_partition_boots_without_otadata_and_in_recovery_mode() -> None:
    identity = make_identity("factory", "esp32c3")
    flash = Flash(identity.hardware.flash_size)
    table = partitions.check([Partition("factory", 0, 0, 0x10000, 0x100000)], table_offset=0x8000)
    flash.load(0, bootloader("esp32c3"))
    flash.load(0x8000, partitions.build_table(table))
    flash.load(0x10000, image(chip="esp32c3"))
    result = boot(flash, identity, nvs=Nvs(), area=bytearray(HANDOVER_SIZE), random=bytes)
    assert (result.slot.subtype_name, result.slot_state, result.mode) == ("factory", SlotState.UNDEFINED, Mode.RECOVERY)


@pytest.mark.parametrize(
    ("wipe", "reason"),
    [((0x0, 0x1000), "NoBootloader"), ((0x8000, 0x1000), "NoPartitionTable"), ((0x20000, 0x1000), "NoBootableApp")],
)
def test_a_chip_that_cannot_start_says_why_and_leaves_nothing_behind(wipe: tuple[int, int], reason: str) -> None:
    bench = Bench()
    bench.flash.erase(*wipe)
    with pytest.raises(BootError) as caught:
        bench.reset()
    assert caught.value.reason == reason
    assert not any(bench.area), "rule 9: the hand-over area is overwritten also when the boot fails"


def test_an_unreadable_record_mark_is_no_boot_id() -> None:
    bench = Bench()
    write_record(bench.flash, bench.table, 1, OtaRecord(3, SlotState.VALID, BOOT_ID + b"XXXX"))
    assert bench.reset().boot.boot_id == NO_BOOT_ID
    write_record(bench.flash, bench.table, 1, OtaRecord(3, SlotState.VALID, boot_label(BOOT_ID)))
    assert bench.reset().boot.boot_id == BOOT_ID


# --- what is certified -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", [Alg.ES256, Alg.EDDSA])
@pytest.mark.parametrize("hash_alg", [-16, -44])
def test_the_chain_verifies_and_says_what_booted(alg: Alg, hash_alg: int) -> None:
    identity = make_identity("chain", "esp32s3", alg=alg, hash_alg=hash_alg)
    bench = Bench(identity=identity)
    install_by_hand(bench, image("2.0", secure_version=4))
    result = bench.reset().boot
    handover = result.handover()
    chain = [parse_certificate(certificate) for certificate in handover.certificates]
    verify_chain(chain, identity.anchor)
    config = read_application_config(chain[1].configuration)
    assert (config.name, config.security_version, config.boot_id) == ("porch", 4, BOOT_ID)
    assert config.slot == 0x11
    assert config.partition_table == partitions.table_sha256(partitions.build_table(bench.table))
    assert config.security_efuses == int(identity.hardware.fuses.flags)
    assert chain[1].code_hash == bench.measurement(image("2.0", secure_version=4)).value
    raw = bootloader("esp32s3")
    assert chain[0].code_hash == measure_bytes(raw, parse_image(raw), hash_alg).value
    assert {certificate.mode for certificate in chain} == {"Normal"}
    assert handover.ueid == identity.ueid


def test_self_reported_devices_say_not_configured_and_no_authority() -> None:
    bench = Bench(identity=make_identity("old", "esp32", tier="SelfReported", hash_alg=SHA_256))
    chain = [parse_certificate(certificate) for certificate in bench.application.boot.handover().certificates]
    assert {certificate.mode for certificate in chain} == {"NotConfigured"}
    assert {certificate.authority_hash for certificate in chain} == {bytes(32)}


def test_a_chip_without_hmac_key_cannot_be_signed_boot() -> None:
    with pytest.raises(ValueError, match="eFuse HMAC key"):
        make_identity("x", "esp32", tier="SignedBoot")


def test_open_jtag_makes_debug_mode() -> None:
    identity = make_identity("debug", "esp32s3")
    identity.hardware.fuses.jtag_off = False
    assert Bench(identity=identity).application.boot.mode is Mode.DEBUG


def test_every_image_and_every_installation_has_its_own_secret() -> None:
    bench = Bench()
    cdis = [bench.application.boot.handover().cdi]
    install_by_hand(bench, image("2.0"))
    cdis.append(bench.reset().boot.handover().cdi)
    bench.reset()
    install_by_hand(bench, image("2.0"), boot_id=b"\x01" * 16)
    cdis.append(bench.reset().boot.handover().cdi)
    assert len(set(cdis)) == 3
    assert Bench().application.boot.handover().cdi == cdis[0], "and the same one whenever the same thing boots"


# --- secrets -----------------------------------------------------------------------------------------------------


def reachable(root: object) -> list[bytes]:
    """Every byte string that can be reached from an object, as a debugger would find it."""
    found: list[bytes] = []
    seen: set[int] = set()
    todo = [root]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ in ("module", "function"):
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            found.append(bytes(item))
        todo.extend(gc.get_referents(item))
    return found


def test_rules_7_to_9_nothing_handed_over_leads_back_to_the_device_secret() -> None:
    bench = Bench()
    identity, result = bench.identity, bench.application.boot
    chain = [parse_certificate(certificate) for certificate in result.handover().certificates]
    layer0 = mint.Layer(chain[0].code_hash, chain[0].configuration, chain[0].authority_hash, Mode.NORMAL)
    cdi0 = mint.next_cdi(identity.uds, layer0)
    seeds = [mint.hkdf(secret, mint.ASYM_SALT, b"Key Pair", 32) for secret in (identity.uds, cdi0)]
    layer1 = mint.Layer(
        chain[1].code_hash,
        chain[1].configuration,
        chain[1].authority_hash,
        Mode.NORMAL,
        mint.application_hidden("porch"),
    )
    assert mint.next_cdi(cdi0, layer1) == result.handover().cdi, "the test knows the real secrets"
    handed_over = reachable(result)
    assert any(result.handover().cdi in item for item in handed_over), "the search finds what is there"
    for secret in (identity.uds, cdi0, *seeds):
        assert not any(secret in item for item in handed_over)
    application = Application(
        result,
        flash=bench.flash,
        hardware=identity.hardware,
        owner=bench.owner,
        nvs=bench.nvs,
        clock=float,
        random=bytes,
    )
    application.evidence(bytes(32))
    assert not any(identity.uds in item or cdi0 in item for item in reachable(application))


def test_rules_7_to_9_no_secret_is_left_anywhere_in_the_process() -> None:
    """Not only what was handed over: every buffer, cache and frame that the collector knows, after two boots."""
    bench = Bench()
    bench.reset()
    uds = bench.identity.uds
    chain = [parse_certificate(certificate) for certificate in bench.application.boot.handover().certificates]
    layer0 = mint.Layer(chain[0].code_hash, chain[0].configuration, chain[0].authority_hash, Mode.NORMAL)
    marks = {mint.hkdf(secret, mint.ASYM_SALT, b"Key Pair", 32) for secret in (uds, mint.next_cdi(uds, layer0))}
    marks.add(mint.next_cdi(uds, layer0))
    gc.collect()
    mine = {id(mark) for mark in marks}
    leaks = [
        type(holder).__name__
        for holder in gc.get_objects()
        if holder is not marks
        for item in gc.get_referents(holder)
        if isinstance(item, bytes | bytearray) and id(item) not in mine and any(mark in item for mark in marks)
    ]
    assert leaks == []


def test_boot_results_have_exactly_the_specified_fields() -> None:
    """What the application finds: a new field here is a decision about secrets."""
    assert {field.name for field in dataclasses.fields(Handover)} == {"cdi", "ueid", "anchor_id", "certificates"}
    handed = strict_loads(bytes(Bench().area[4 : 4 + int.from_bytes(Bench().area[:4], "little")]), HANDOVER_SIZE)
    assert isinstance(handed, dict)
    assert set(handed) == {1, 2, 3, 4}
    assert {field.name for field in dataclasses.fields(BootResult)} == {
        "area",
        "table",
        "table_sha256",
        "slot",
        "sector",
        "slot_state",
        "boot_id",
        "image",
        "measurement",
        "name",
        "version",
        "secure_version",
        "mode",
        "bootseed",
        "boot_count",
        "log",
    }


def test_rule_9_the_next_boot_leaves_nothing_of_the_last_one() -> None:
    bench = Bench()
    old = bench.application.boot.handover().cdi
    assert old in bench.area
    install_by_hand(bench, image("2.0"))
    bench.reset()
    assert old not in bench.area


# --- liars -------------------------------------------------------------------------------------------------------


def test_runs_old_image_claims_the_new_boot_id_over_the_old_measurement() -> None:
    bench = Bench(behaviour=RunsOldImage())
    install_by_hand(bench, image("2.0"))
    result = bench.reset().boot
    assert (result.version, result.boot_id) == ("1.0", BOOT_ID)
    assert result.measurement == bench.measurement(image("1.0"))


def test_stale_boot_id_runs_the_new_image_under_the_old_id() -> None:
    bench = Bench(behaviour=StaleBootId())
    install_by_hand(bench, image("2.0"), SlotState.VALID, b"\x01" * 16)
    assert bench.reset().boot.boot_id == NO_BOOT_ID
    bench.flash.erase(bench.slot(0).offset, 0x10000)
    bench.flash.program(bench.slot(0).offset, image("3.0"))
    sector, record = otadata.select_record(read_otadata(bench.flash, bench.table), 0, 2, boot_id=b"\x02" * 16)
    write_record(bench.flash, bench.table, sector, record)
    result = bench.reset().boot
    assert (result.version, result.boot_id) == ("3.0", b"\x01" * 16)
