# SPDX-License-Identifier: Apache-2.0
"""The last look before byte one: the rules of preflight.py. Compatibility has tests of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
