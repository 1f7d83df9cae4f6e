# SPDX-License-Identifier: Apache-2.0
"""Firmware that others built, on virtual chips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attestation.grants import ConfirmGrant
from firmware_pipeline.config import from_plan
from firmware_pipeline.esp.otadata import SlotState
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.inputs.merged import MergedInput
from flashjob.virtual.bootloader import HANDOVER_SIZE, UNNAMED, boot
from flashjob.virtual.flash import Flash
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.profile import make_identity
from tests.unit.virtual.workbench import Bench

FIRMWARE = os.environ.get("FLASHJOB_FIRMWARE_DIR", "")
pytestmark = pytest.mark.skipif(not FIRMWARE, reason="FLASHJOB_FIRMWARE_DIR is not set")

OLD, NEW = "micropython-esp32c3-2023-04-26-app.bin", "micropython-esp32c3-2023-06-10-app.bin"


def firmware(name: str) -> bytes:
    return (Path(FIRMWARE) / name).read_bytes()


def test_a_real_update_from_grant_to_confirmation() -> None:
    bench = Bench(identity=make_identity("c3", "esp32c3"), first=firmware(OLD))
    new = firmware(NEW)
    statement = bench.release(new, name="micropython", version="2023-06-10")
    assert bench.install(new, statement=statement).status == 200
    result = bench.reset().boot
    assert result.measurement == bench.measurement(new)
    assert result.name == UNNAMED, "these builds name no project"
    assert bench.send(bench.running_grant(ConfirmGrant)).status == 200
    assert bench.info().slot_state == SlotState.VALID


@pytest.mark.parametrize(
    ("name", "chip", "offset"),
    [
        ("micropython-esp32c3-2023-04-26-merged.bin", "esp32c3", 0),
        ("micropython-esp32s3-merged.bin", "esp32s3", 0),
        ("micropython-esp32s2-merged.bin", "esp32s2", 0x1000),
        ("micropython-esp32-merged.bin", "esp32", 0x1000),
    ],
)
def test_factory_images_boot_and_take_no_update(name: str, chip: str, offset: int) -> None:
    identity = make_identity(name, chip, tier="SelfReported", flash_size="8MB")
    flash = Flash(identity.hardware.flash_size)
    flash.load(offset, firmware(name))
    result = boot(flash, identity, nvs=Nvs(), area=bytearray(HANDOVER_SIZE), random=bytes)
    assert (result.slot.subtype_name, result.slot_state) == ("factory", SlotState.UNDEFINED)
    assert not any(result.boot_id)
    assert result.table.ota_slots == ()
    named = Overrides(name="micropython", version="1.20")
    config = from_plan(MergedInput().load(Path(FIRMWARE) / name, named))
    assert result.table_sha256.hex() == config.partition_table_sha256, "a device certifies what a config pins"
