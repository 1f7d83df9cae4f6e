# SPDX-License-Identifier: Apache-2.0
"""Rule 10 of admission: what is recorded of a device is judged by the rules of preflight, before there is a pod."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.plan import SecureBoot
from flashjob.api.device import DeviceStatus, Hardware
from flashjob.planning.admission import Admitted, Enrolment, admit
from flashjob.planning.state import Admission, Refusal
from tests.unit.firmware import builds

from .model import READY, T0, device, job

FITS = {"chip": "esp32s3", "revision": 2, "flashSize": 8 << 20, "secureBoot": False, "slotSize": 0x1C0000}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FirmwareConfig:
    folder: Path = tmp_path_factory.mktemp("build")
    return builds.config(folder, "esp32s3")


def judged(config: FirmwareConfig | None, hardware: dict[str, Any] | None, **safety: bool) -> Admitted | Refusal:
    found = device("porch-1", hardware=None if hardware is None else Hardware.parse(hardware))
    configs = {} if config is None else {"esp32s3": config}
    admission: Admission = replace(READY, configs=configs)
    return admit(job(safety=safety), found, Enrolment.of([found]), {}, admission, T0)


@pytest.mark.parametrize("hardware", [None, {"chip": "esp32s3"}, FITS, FITS | {"flashSize": 0}])
def test_what_fits_or_is_not_known_is_admitted(config: FirmwareConfig, hardware: dict[str, Any] | None) -> None:
    assert isinstance(judged(config, hardware), Admitted)


def chip(config: FirmwareConfig, **changes: Any) -> FirmwareConfig:
    return config.model_copy(update={"chip": config.chip.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("hardware", "firmware", "reason"),
    [
        ({"revision": 1}, {"min_rev": 2}, "ChipRevision"),
        ({"revision": 200}, {"max_rev": 199}, "ChipRevision"),
        ({"flashSize": 2 << 20}, {}, "FlashTooSmall"),
        ({"slotSize": 0x10000}, {}, "ImageTooLarge"),
        ({"secureBoot": True}, {}, "SecureBootMismatch"),
        ({}, {"features": ("flash>=16M",)}, "NoMatchingPlatform"),
        ({}, {"features": ("secure-boot-v2",)}, "NoMatchingPlatform"),
    ],
)
def test_what_is_known_not_to_fit_is_refused_without_a_pod(
    config: FirmwareConfig, hardware: dict[str, Any], firmware: dict[str, Any], reason: str
) -> None:
    revisions = {k: v for k, v in firmware.items() if k.endswith("_rev")}
    others = {k: v for k, v in firmware.items() if not k.endswith("_rev")}
    found = judged(chip(config, **revisions).model_copy(update=others), FITS | hardware)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert "porch-1" in found.message


def test_without_the_config_preflight_alone_judges() -> None:
    assert isinstance(judged(None, FITS | {"flashSize": 2 << 20}), Admitted)


def test_a_signed_application_suits_a_device_with_secure_boot(config: FirmwareConfig) -> None:
    signed = config.model_copy(update={"secure_boot": SecureBoot(key_digests=("a" * 64,))})
    assert isinstance(judged(signed, FITS | {"secureBoot": True}), Admitted)


def test_what_a_preflight_read_counts_before_what_was_enrolled(config: FirmwareConfig) -> None:
    small = Hardware.parse(FITS | {"flashSize": 2 << 20})
    found = device("porch-1", hardware=Hardware.parse(FITS), status=DeviceStatus(hardware=small))
    refusal = admit(job(), found, Enrolment.of([found]), {}, replace(READY, configs={"esp32s3": config}), T0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "FlashTooSmall"
