# SPDX-License-Identifier: Apache-2.0
"""Builds of PlatformIO, Arduino, Zephyr and esptool's arguments: each becomes the plan that its files mean."""

import json
from pathlib import Path

import pytest

from firmware_pipeline.compatibility import CheckOptions, check
from firmware_pipeline.config import dumps, from_plan, loads
from firmware_pipeline.contents import check_contents
from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.mcuboot import build_mcuboot, parse_mcuboot
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.esp.otadata import select
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.inputs.detect import INPUTS, load_build
from firmware_pipeline.plan import BuildPlan, Role
from tests.unit.firmware import build_systems, builds
from tests.unit.firmware.builds import edit_json, refused

FOUR = [
    (Role.BOOTLOADER, 0x1000, None),
    (Role.PARTITION_TABLE, 0x8000, None),
    (Role.OTADATA, 0xD000, "otadata"),
    (Role.APP, 0x20000, "ota_0"),
]


def places(plan: BuildPlan) -> list[tuple[Role, int, str | None]]:
    return [(file.role, file.offset, file.partition) for file in plan.files]


def accepted(plan: BuildPlan) -> BuildPlan:
    """A plan whose config can be read back and describes every one of its images."""
    config = loads(dumps(from_plan(plan)))
    for file, image in zip(plan.files, config.images, strict=True):
        assert check_contents(config, image, file.data) == []
    return plan


@pytest.mark.parametrize("idedata", [True, False])
def test_platformio(tmp_path: Path, idedata: bool) -> None:
    plan = accepted(load_build(build_systems.write_platformio(tmp_path, idedata=idedata)))
    assert places(plan) == FOUR
    assert plan.build.framework == "platformio"
    otadata = next(file.data for file in plan.files if file.role is Role.OTADATA)
    selected = select(otadata, 2)
    assert selected is not None
    assert selected.slot == 0


def test_platformio_project(tmp_path: Path) -> None:
    build_systems.write_platformio(tmp_path / ".pio/build/board")
    assert places(load_build(tmp_path)) == FOUR


def test_a_boot_app0_in_the_build_counts(tmp_path: Path) -> None:
    build_systems.write_platformio(tmp_path)
    (tmp_path / "boot_app0.bin").write_bytes(b"\xff" * 8192)
    assert next(f.data for f in load_build(tmp_path).files if f.role is Role.OTADATA) == b"\xff" * 8192


@pytest.mark.parametrize("args", [True, False])
def test_arduino(tmp_path: Path, args: bool) -> None:
    plan = accepted(load_build(build_systems.write_arduino(tmp_path, "esp32", args=args)))
    assert places(plan) == FOUR
    assert (plan.build.framework, plan.warnings) == ("arduino", ())


def test_arduino_without_a_name_of_its_own_is_said(tmp_path: Path) -> None:
    plan = load_build(build_systems.write_arduino(tmp_path, name="arduino-lib-builder"))
    assert "--name" in plan.warnings[0]


def test_flash_args_by_folder_and_by_name(tmp_path: Path) -> None:
    folder = build_systems.write_flash_args(tmp_path)
    plan = accepted(load_build(folder))
    assert places(plan) == [FOUR[1], FOUR[3]]
    (named,) = load_builds([f"@{folder / 'flash_args'}"])
    assert named == plan


def test_flash_args_in_every_spelling(tmp_path: Path) -> None:
    text = "write_flash -p COM3 --before default_reset -z --encrypt --flash_size=4MB -fm dio 0x20000 'app image.bin'"
    plan = load_build(build_systems.write_flash_args(tmp_path, text))
    assert places(plan) == [(Role.APP, 0x20000, None)]
    assert plan.app_file.encrypt is True


def test_espidf_is_not_mistaken_for_its_own_flash_args(tmp_path: Path) -> None:
    builds.write_espidf(tmp_path)
    (tmp_path / "flash_args").write_text("0x20000 porch-sensor.bin")
    assert [i.name for i in INPUTS if i.detect(tmp_path)] == ["espidf"]


def test_two_kinds_in_one_folder_need_a_word(tmp_path: Path) -> None:
    build_systems.write_arduino(build_systems.write_platformio(tmp_path), "esp32")
    assert "--from platformio" in refused(Reason.InputAmbiguous, lambda: load_build(tmp_path)).next_step
    assert load_build(tmp_path, kind="arduino").build.framework == "arduino"


def test_a_merged_image_may_be_named_like_any_build(tmp_path: Path) -> None:
    refused(Reason.InputNotRecognised, lambda: load_builds([str(tmp_path / "none.bin")]))
    (tmp_path / "note.txt").write_text("note")
    refused(Reason.InputNotRecognised, lambda: load_builds([str(tmp_path / "note.txt")]))


# --- Zephyr --------------------------------------------------------------------------------------------------


def test_zephyr_with_mcuboot(tmp_path: Path) -> None:
    plan = accepted(load_build(build_systems.write_zephyr_sysbuild(tmp_path)))
    assert places(plan) == [(Role.BOOTLOADER, 0x0, None), (Role.APP, 0x20000, None)]
    assert (plan.app.project_name, plan.app.version, plan.app.secure_version) == ("porch", "2.1.0", 1)
    data = plan.app_file.data
    assert {(m.scheme, m.alg, m.value) for m in plan.measurements} == {
        (m.scheme, m.alg, m.value.hex()) for m in measure(data)
    }
    hash_tlv = data[-32:]
    assert from_plan(plan).measurement(-16, "mcuboot") == hash_tlv
    assert from_plan(plan).measurement(-16) is None


def test_zephyr_application_alone_takes_settings_from_the_build(tmp_path: Path) -> None:
    build_systems.write_zephyr_sysbuild(tmp_path)
    plan = accepted(load_build(tmp_path / "porch", overrides=Overrides(name="porch")))
    assert places(plan) == [(Role.APP, 0x20000, None)]
    assert (plan.flash.mode, plan.flash.size, plan.target) == ("dio", "4MB", "esp32c3")


def test_zephyr_without_mcuboot_is_started_by_the_rom(tmp_path: Path) -> None:
    plan = accepted(load_build(build_systems.write_zephyr_simple(tmp_path), overrides=Overrides(name="p", version="1")))
    assert places(plan) == [(Role.APP, 0x1000, None)]
    device = HardwareFacts(target="esp32", chip_id=0, revision=300, flash_size=4 << 20, secure_boot=False)
    found = check(device, from_plan(plan), options=CheckOptions(transport="network"))
    assert Reason.SlotUnknown in {mismatch.reason for mismatch in found}, "never overwritten without permission"


def test_a_version_of_the_build_must_be_that_of_the_image(tmp_path: Path) -> None:
    build_systems.write_zephyr_sysbuild(tmp_path)
    header = tmp_path / "porch/zephyr/include/generated/zephyr/app_version.h"
    header.parent.mkdir(parents=True)
    header.write_text('#define APP_VERSION_STRING "2.1.0"\n')
    assert load_build(tmp_path).app.version == "2.1.0"
    header.write_text('#define APP_VERSION_STRING "2.2.0"\n')
    refused(Reason.InputDisagrees, lambda: load_build(tmp_path))


def test_mcuboot_fields() -> None:
    data = build_mcuboot(by_target("esp32s3"), bytes(4096), (1, 2, 3, 4), security_counter=7)
    info = parse_mcuboot(data + b"\xff" * 64)
    assert (info.version, info.security_counter, info.signed) == ("1.2.3+4", 7, False)
    assert info.image_length == len(data)
    assert info.measured_length == len(data) - 40
    assert info.runs_on(by_target("esp32s3"))
    assert not info.runs_on(by_target("esp32"))


def test_idedata_written_on_windows(tmp_path: Path) -> None:
    build_systems.write_platformio(tmp_path)
    text = (tmp_path / "idedata.json").read_text().replace("/home/someone/porch/.pio/build/board/", "C:\\\\porch\\\\")
    (tmp_path / "idedata.json").write_text(text)
    assert places(load_build(tmp_path)) == FOUR


def test_idedata_that_disagrees_with_the_table(tmp_path: Path) -> None:
    build_systems.write_platformio(tmp_path)
    extra = json.loads((tmp_path / "idedata.json").read_text())["extra"] | {"application_offset": "0x30000"}
    edit_json(tmp_path / "idedata.json", extra=extra)
    refused(Reason.InputDisagrees, lambda: load_build(tmp_path))
