# SPDX-License-Identifier: Apache-2.0
"""The last look before byte one: the rules of preflight.py. Compatibility has tests of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attestation.device_protocol import Flag, Info
from attestation.statement import Digest
from firmware_pipeline import config as signed_config
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import Reason as PipelineReason
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.inputs.files import load_files
from flashjob.errors import FlashJobError
from flashjob.flasher import preflight
from flashjob.pipeline_reasons import HARDWARE_REASONS
from flashjob.wire.pod import Assignment
from flashjob.wire.target import Target

IMAGE = build_app("esp32s3", "porch", "2.0.0", payload_size=32 * 1024)
UEID = b"\x01" + b"u" * 32
DIGEST = "sha256:" + "0" * 64
FACTS: dict[str, Any] = {
    "target": "esp32s3",
    "chip_id": 9,
    "revision": 2,
    "flash_size": 4 * 1024 * 1024,
    "mac": "24:6f:28:01:02:03",
    "secure_boot": False,
    "flash_encryption": "off",
    "secure_download": False,
    "efuse_secure_version": 0,
    "target_slot": 1,
    "target_slot_size": 0x1C0000,
}


def target(image: bytes = IMAGE, chip: str = "esp32s3") -> Target:
    measurements = [{"scheme": m.scheme, "alg": m.alg, "value": m.value.hex()} for m in measure(image)]
    return Target.parse(
        {
            "repository": "registry.example/porch",
            "indexDigest": DIGEST,
            "manifestDigest": DIGEST,
            "configDigest": DIGEST,
            "chip": chip,
            "chipId": 9,
            "application": "porch",
            "version": "2.0.0",
            "secureVersion": 0,
            "imageSize": len(image),
            "imageDigest": DIGEST,
            "measurements": measurements,
        }
    )


def task(**changes: object) -> Assignment:
    fields: dict[str, object] = {
        "task": "job-porch",
        "attempt": 1,
        "device": UEID.hex(),
        "transport": "Serial",
        "mac": "24:6f:28:01:02:03",
        "target": target().dump(),
    }
    return Assignment.parse(fields | changes)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FirmwareConfig:
    file = Path(tmp_path_factory.mktemp("build")) / "app.bin"
    file.write_bytes(IMAGE)
    return signed_config.from_plan(load_files([f"0x20000={file}"]))


def refused(call: Any) -> FlashJobError:
    with pytest.raises(FlashJobError) as error:
        call()
    assert error.value.message
    assert error.value.next_step
    return error.value


def test_what_fits_passes(config: FirmwareConfig) -> None:
    preflight.check_image(IMAGE, target())
    preflight.check_identity(task(), ueid=UEID)
    preflight.check_hardware(task(), HardwareFacts(**FACTS), config)


def test_rule_1_another_mac(config: FirmwareConfig) -> None:
    facts = HardwareFacts(**FACTS | {"mac": "24:6f:28:ff:ff:ff", "target": "esp32c3", "chip_id": 5})
    error = refused(lambda: preflight.check_hardware(task(), facts, config))
    assert error.reason == "WrongDevice"  # before everything else that is wrong too
    assert "24:6f:28:ff:ff:ff" in error.message


def test_rule_1_a_mac_that_cannot_be_read_is_nobodys(config: FirmwareConfig) -> None:
    facts = HardwareFacts(**FACTS | {"mac": None})
    assert refused(lambda: preflight.check_hardware(task(), facts, config)).reason == "WrongDevice"


def test_rule_1_another_id() -> None:
    assert refused(lambda: preflight.check_identity(task(), ueid=b"\x01" + b"v" * 32)).reason == "WrongDevice"
    preflight.check_identity(task(device="00112233"), ueid=UEID)  # an owner-given id says nothing about the UEID


def test_rule_2_the_wrong_image_in_a_right_looking_manifest() -> None:
    other_chip = build_app("esp32c3", "porch", "2.0.0", payload_size=32 * 1024)
    assert refused(lambda: preflight.check_image(other_chip, target())).reason == "WrongChip"
    other_version = build_app("esp32s3", "porch", "2.0.1", payload_size=32 * 1024)
    assert refused(lambda: preflight.check_image(other_version, target())).reason == "ArtifactInvalid"
    assert refused(lambda: preflight.check_image(b"\xe9 no image", target())).reason == "ArtifactInvalid"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": "esp32c3", "chip_id": 5}, "WrongChip"),
        ({"flash_size": 2 * 1024 * 1024}, "FlashTooSmall"),
        ({"target_slot_size": 0x10000 // 2}, "ImageTooLarge"),
        ({"target_slot": None, "target_slot_size": None}, "NoUpdateSlot"),
        ({"secure_boot": True}, "SecureBootMismatch"),
        ({"flash_encryption": "release"}, "SecureBootMismatch"),
        ({"secure_download": True}, "SecureBootMismatch"),
        ({"efuse_secure_version": 3}, "SecurityVersionRollback"),
        ({"app_name": "porch", "app_version": "3.0.0"}, "Downgrade"),
        ({"revision": None, "flash_size": None}, "PreflightFailed"),
    ],
)
def test_rule_3_each_mismatch_has_its_wire_reason(config: FirmwareConfig, change: dict[str, Any], reason: str) -> None:
    facts = HardwareFacts(**FACTS | change)
    assert refused(lambda: preflight.check_hardware(task(), facts, config)).reason == reason


def test_all_compatibility_reasons_are_named_or_knowingly_general() -> None:
    general = {
        "OffsetMisaligned", "ImagesOverlap", "BootloaderOffsetWrong", "RoleNotAllowed", "HardwareUnknown",
        "SecurityVersionUnrepresentable",
    }  # fmt: skip
    names = list(PipelineReason)
    first, last = names.index(PipelineReason.WrongChip), names.index(PipelineReason.HardwareUnknown)
    assert {r.value for r in names[first : last + 1] if r not in HARDWARE_REASONS} == general


# --- rules 3 to 5: what the application says ----------------------------------------------------------------------

INFO = Info(
    versions=[1], ueid=UEID, chip_id=9, chip_revision=2, flash_size=4 * 1024 * 1024, running_slot=0x10, slot_state=2,
    target_slot_size=0x1C0000, measurement=Digest(alg=-16, value=bytes(32)), name="porch", version="1.0.0",
    secure_version=0, efuse_secure_version=0, flags=Flag.ROLLBACK, partition_table=bytes(32), bootseed=bytes(16),
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "said", "part"),
    [
        ({"target": "esp32c3", "chip_id": 5}, {}, "says chip ESP32-S3, the chip is ESP32-C3"),
        ({}, {"chip_id": 4711}, "says chip number 4711"),
        ({}, {"chip_revision": 101}, "revision 101"),
        ({}, {"flash_size": 16 * 1024 * 1024}, "16777216 bytes of flash"),
        ({"partition_table_sha256": "11" * 32}, {}, "partition table 0000"),
        ({"secure_boot": True}, {}, "secure boot is off"),
        ({"flash_encryption": "release"}, {}, "encryption is off"),
    ],
)
def test_rule_3_application_and_chip_agree(
    config: FirmwareConfig, facts: dict[str, Any], said: dict[str, Any], part: str
) -> None:
    found, info = HardwareFacts(**FACTS | facts), INFO.model_copy(update=said)
    error = refused(lambda: preflight.check_hardware(task(), found, config, info))
    assert error.reason == "HardwareContradiction"
    assert part in error.message


def test_rule_3_an_application_may_know_of_less_flash_than_there_is(config: FirmwareConfig) -> None:
    info = INFO.model_copy(update={"flash_size": 2 * 1024 * 1024})
    preflight.check_hardware(task(), HardwareFacts(**FACTS), config, info)


def test_rule_3_a_claim_of_secure_boot_is_a_reason_to_refuse(config: FirmwareConfig) -> None:
    info = INFO.model_copy(update={"flags": Flag.ROLLBACK | Flag.SECURE_BOOT})
    error = refused(lambda: preflight.check_hardware(task(), HardwareFacts(**FACTS), config, info))
    assert error.reason == "SecureBootMismatch"


def test_rule_4_a_bootloader_that_does_not_go_back(config: FirmwareConfig) -> None:
    info, facts = INFO.model_copy(update={"flags": Flag(0)}), HardwareFacts(**FACTS)
    assert refused(lambda: preflight.check_hardware(task(), facts, config, info)).reason == "NoRollback"
    preflight.check_hardware(task(safety={"allowWithoutRollback": True}), facts, config, info)


def test_rule_5_versions_to_start_from(config: FirmwareConfig) -> None:
    facts, job = HardwareFacts(**FACTS), task(safety={"fromVersions": ["1.4.0", "1.5.0"]})
    error = refused(lambda: preflight.check_hardware(job, facts, config, INFO))
    assert error.reason == "FromVersion"
    assert "1.4.0, 1.5.0" in error.message
    for version in ("1.5.0", "2.0.0"):  # the second is the target's own: an attempt that is made again
        preflight.check_hardware(job, facts, config, INFO.model_copy(update={"version": version}))


def test_rule_6_in_place_is_a_serial_permission(config: FirmwareConfig) -> None:
    facts = HardwareFacts(**FACTS | {"target_slot": None, "target_slot_size": None, "partitions": None})
    for safety in ({}, {"allowInPlace": True}):
        network = task(transport="Network", address="127.0.0.1:1", mac=None, safety=safety)
        assert refused(lambda t=network: preflight.check_hardware(t, facts, config)).reason == "NoUpdateSlot"
