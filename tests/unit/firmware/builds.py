# SPDX-License-Identifier: Apache-2.0
"""Small true builds for the tests of this folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firmware_pipeline.config import FirmwareConfig, from_plan
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.otadata import blank_otadata
from firmware_pipeline.esp.partitions import build_table
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.plan import BuildPlan

PAYLOAD = 64 * 1024


def refused(reason: Reason, act: Callable[[], object]) -> PipelineError:
    """Run `act`, which must be refused for `reason`, and return the error."""
    with pytest.raises(PipelineError) as caught:
        act()
    assert caught.value.reason is reason, str(caught.value)
    assert caught.value.message
    assert caught.value.next_step
    return caught.value


def firmware_dir() -> Path:
    """Folder of real firmware images, for tests without the fixture of this name; skips where there is none."""
    folder = os.environ.get("FLASHJOB_FIRMWARE_DIR")
    if not folder:
        pytest.skip("FLASHJOB_FIRMWARE_DIR is not set: no real firmware images here")
    return Path(folder)


def write_parts(folder: Path, chip: str = "esp32c3", *, app: bytes | None = None) -> list[str]:
    """Write the four files of a build and return their OFFSET=FILE arguments."""
    offset = by_target(chip).bootloader_offset
    parts = {
        "bootloader.bin": (offset, build_bootloader(chip, payload_size=8192)),
        "table.bin": (0x8000, build_table(default_partitions())),
        "otadata.bin": (0xD000, blank_otadata()),
        "app.bin": (0x20000, app or build_app(chip, "porch-sensor", "2.1.0", payload_size=PAYLOAD)),
    }
    arguments = []
    for name, (at, data) in parts.items():
        (folder / name).write_bytes(data)
        arguments.append(f"0x{at:x}={folder / name}")
    return arguments


def plan(folder: Path, chip: str = "esp32c3", *, app: bytes | None = None) -> BuildPlan:
    return load_files(write_parts(folder, chip, app=app))


def config(folder: Path, chip: str = "esp32c3", *, app: bytes | None = None) -> FirmwareConfig:
    return from_plan(plan(folder, chip, app=app))


def write_espidf(folder: Path, chip: str = "esp32s3", *, app: bytes | None = None) -> Path:
    """An ESP-IDF build folder with the files that `idf.py build` leaves."""
    image = app or build_app(chip, "porch-sensor", "2.1.0", payload_size=PAYLOAD)
    offset = hex(by_target(chip).bootloader_offset)
    for name, data in {
        "bootloader/bootloader.bin": build_bootloader(chip, payload_size=8192),
        "partition_table/partition-table.bin": build_table(default_partitions()),
        "ota_data_initial.bin": blank_otadata(),
        "porch-sensor.bin": image,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    args = {
        "write_flash_args": ["--flash_mode", "dio", "--flash_size", "4MB", "--flash_freq", "80m"],
        "flash_settings": {"flash_mode": "dio", "flash_size": "4MB", "flash_freq": "80m"},
        "flash_files": {
            offset: "bootloader/bootloader.bin",
            "0x20000": "porch-sensor.bin",
            "0x8000": "partition_table/partition-table.bin",
            "0xd000": "ota_data_initial.bin",
        },
        "bootloader": {"offset": offset, "file": "bootloader/bootloader.bin", "encrypted": "false"},
        "app": {"offset": "0x20000", "file": "porch-sensor.bin", "encrypted": "false"},
        "partition-table": {
            "offset": "0x8000", "file": "partition_table/partition-table.bin", "encrypted": "false",
        },
        "otadata": {"offset": "0xd000", "file": "ota_data_initial.bin", "encrypted": "false"},
        "extra_esptool_args": {"after": "hard_reset", "before": "default_reset", "stub": True, "chip": chip},
    }  # fmt: skip
    project = {
        "version": "1.2", "project_name": "porch-sensor", "project_version": "2.1.0", "target": chip,
        "app_bin": "porch-sensor.bin", "min_rev": "0", "max_rev": "99", "git_revision": "v5.5",
    }  # fmt: skip
    (folder / "flasher_args.json").write_text(json.dumps(args))
    (folder / "project_description.json").write_text(json.dumps(project))
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/sdkconfig.json").write_text(json.dumps({"BOOTLOADER_APP_SECURE_VERSION": 0}))
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change top-level keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
