# SPDX-License-Identifier: Apache-2.0
"""Build inputs: what build systems claim is held against the bytes."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from firmware_pipeline.config import from_plan
from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.partitions import build_table, check
from firmware_pipeline.inputs.detect import load_build
from firmware_pipeline.inputs.files import Assignment, load_files, read_file
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.plan import BuildPlan, Role
from tests.unit.firmware.builds import (
    PAYLOAD,
    edit_json,
    refused,
    write_espidf,
    write_parts,
)

# --- ESP-IDF -------------------------------------------------------------------------------------------------


def test_espidf_build(tmp_path: Path) -> None:
    plan = load_build(write_espidf(tmp_path))
    assert (plan.target, plan.chip_id, plan.flash.mode, plan.flash.size) == ("esp32s3", 9, "dio", "4MB")
    assert [(f.role, f.offset, f.partition) for f in plan.files] == [
        (Role.BOOTLOADER, 0x0, None),
        (Role.PARTITION_TABLE, 0x8000, None),
        (Role.OTADATA, 0xD000, "otadata"),
        (Role.APP, 0x20000, "ota_0"),
    ]
    assert (plan.app.project_name, plan.app.version) == ("porch-sensor", "2.1.0")
    assert (plan.build.framework, plan.build.framework_version) == ("espidf", "v5.5")
    assert plan.warnings == ()


def test_espidf_and_files_reduce_to_the_same_config(tmp_path: Path) -> None:
    (tmp_path / "idf").mkdir()
    one = load_build(write_espidf(tmp_path / "idf", "esp32c3"))
    two = load_files(write_parts(tmp_path, "esp32c3"))
    assert from_plan(one).images == from_plan(two).images
    assert from_plan(one).measurements == from_plan(two).measurements


def test_a_build_without_description_or_bootloader(tmp_path: Path) -> None:
    """Secure-boot builds flash no bootloader; older ones leave no description."""
    write_espidf(tmp_path)
    (tmp_path / "project_description.json").unlink()
    (tmp_path / "config/sdkconfig.json").unlink()
    edit_json(
        tmp_path / "flasher_args.json",
        flash_files={"0x20000": "porch-sensor.bin"},
        flash_settings={"flash_mode": "keep", "flash_size": "detect"},
        extra_esptool_args=None,
    )
    plan = load_build(tmp_path)
    assert [f.role for f in plan.files] == [Role.APP]
    assert (plan.partitions, plan.partition_table_sha256) == ((), None)


def test_encrypted_parts_are_marked(tmp_path: Path) -> None:
    write_espidf(tmp_path)
    app = {"offset": "0x20000", "file": "porch-sensor.bin", "encrypted": "true"}
    edit_json(tmp_path / "flasher_args.json", app=app)
    assert load_build(tmp_path).app_file.encrypt is True


APP, TABLE = "porch-sensor.bin", "partition_table/partition-table.bin"


def link_out(folder: Path) -> None:
    (folder.parent / "outside.bin").write_bytes((folder / APP).read_bytes())
    (folder / APP).unlink()
    (folder / APP).symlink_to(folder.parent / "outside.bin")


def to_folder(folder: Path) -> None:
    (folder / APP).unlink()
    (folder / APP).mkdir()


def to_fifo(folder: Path) -> None:
    (folder / APP).unlink()
    os.mkfifo(folder / APP)


def args(folder: Path, **changes: object) -> None:
    edit_json(folder / "flasher_args.json", **changes)


def project(folder: Path, **changes: object) -> None:
    edit_json(folder / "project_description.json", **changes)


def sdkconfig(folder: Path, **changes: object) -> None:
    edit_json(folder / "config/sdkconfig.json", **changes)


def flash_only(folder: Path, files: dict[str, str]) -> None:
    """Flash these files only, and let nothing else in the build name the application."""
    args(folder, flash_files=files, app=None)
    project(folder, app_bin=None)


def target(folder: Path, chip: str) -> None:
    args(folder, extra_esptool_args={"chip": chip})
    project(folder, target=chip)


def app_part(folder: Path, **part: str) -> None:
    args(folder, app={"offset": "0x20000", "file": APP, **part})


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def image(chip: str = "esp32s3") -> bytes:
    return build_app(chip, "porch-sensor", "2.1.0", payload_size=PAYLOAD)


ESPIDF_ZOO: list[tuple[str, Callable[[Path], object], Reason]] = [
    ("flasher_args is no JSON", lambda f: write(f, "flasher_args.json", b"{"), Reason.InputMalformed),
    ("flasher_args is a list", lambda f: write(f, "flasher_args.json", b"[]"), Reason.InputMalformed),
    ("deep JSON", lambda f: write(f, "flasher_args.json", b"[" * 100_000), Reason.InputMalformed),
    ("no files", lambda f: args(f, flash_files={}), Reason.InputMalformed),
    ("offset is no number", lambda f: args(f, flash_files={"app": APP}), Reason.InputMalformed),
    ("offset of 33 bits", lambda f: args(f, flash_files={"0x100000000": APP}), Reason.InputMalformed),
    ("encrypted is a word", lambda f: app_part(f, encrypted="yes"), Reason.InputMalformed),
    ("part and list disagree", lambda f: app_part(f, file="other.bin"), Reason.InputDisagrees),
    ("other chip in one file", lambda f: project(f, target="esp32"), Reason.InputDisagrees),
    ("other chip in both files", lambda f: target(f, "esp32"), Reason.InputDisagrees),
    ("unknown chip", lambda f: target(f, "avr"), Reason.UnknownChip),
    ("other flash mode", lambda f: args(f, flash_settings={"flash_mode": "qio"}), Reason.InputDisagrees),
    ("other flash size", lambda f: args(f, flash_settings={"flash_size": "8MB"}), Reason.InputDisagrees),
    ("other frequency", lambda f: args(f, flash_settings={"flash_freq": "40m"}), Reason.InputDisagrees),
    ("other project name", lambda f: project(f, project_name="other"), Reason.InputDisagrees),
    ("other version", lambda f: project(f, project_version="2.1.1"), Reason.InputDisagrees),
    ("other application file", lambda f: project(f, app_bin="other.bin"), Reason.InputDisagrees),
    ("other minimum revision", lambda f: project(f, min_rev="100"), Reason.InputDisagrees),
    ("other secure version", lambda f: sdkconfig(f, BOOTLOADER_APP_SECURE_VERSION=2), Reason.InputDisagrees),
    ("file is missing", lambda f: (f / APP).unlink(), Reason.InputMissing),
    ("file is a folder", to_folder, Reason.InputMissing),
    ("file is a FIFO", to_fifo, Reason.InputMissing),
    ("file is empty", lambda f: write(f, APP, b""), Reason.InputMalformed),
    ("symlink to the outside", link_out, Reason.InputEscapes),
    ("path to the outside", lambda f: flash_only(f, {"0x20000": "../outside.bin"}), Reason.InputEscapes),
    ("dots that come back", lambda f: flash_only(f, {"0x20000": f"config/../{APP}"}), Reason.InputEscapes),
    ("absolute path", lambda f: flash_only(f, {"0x20000": str(f / APP)}), Reason.InputEscapes),
    ("application of another chip", lambda f: write(f, APP, image("esp32c3")), Reason.InputDisagrees),
    ("bootloader as application", lambda f: write(f, APP, build_bootloader("esp32s3")), Reason.AppDescriptorMissing),
    ("text as application", lambda f: write(f, APP, b"hello"), Reason.NotAnImage),
    ("application as bootloader", lambda f: write(f, "bootloader/bootloader.bin", image()), Reason.AppAmbiguous),
    ("text as bootloader", lambda f: write(f, "bootloader/bootloader.bin", b"hello"), Reason.NotAnImage),
    ("text as partition table", lambda f: write(f, TABLE, b"hello"), Reason.PartitionTableMalformed),
    ("otadata of one sector", lambda f: write(f, "ota_data_initial.bin", b"\xff" * 4096), Reason.OtadataMalformed),
    ("no partition begins there", lambda f: flash_only(f, {"0x30000": APP, "0x8000": TABLE}), Reason.InputDisagrees),
    ("in a data partition", lambda f: flash_only(f, {"0x3a0000": APP, "0x8000": TABLE}), Reason.InputDisagrees),
    (
        "data in an application slot",
        lambda f: flash_only(f, {"0x20000": APP, "0x8000": TABLE, "0x1e0000": "flasher_args.json"}),
        Reason.NotAnImage,
    ),
    ("only a bootloader", lambda f: flash_only(f, {"0x0": "bootloader/bootloader.bin"}), Reason.AppMissing),
]


@pytest.mark.parametrize(("spoil", "reason"), [z[1:] for z in ESPIDF_ZOO], ids=[z[0] for z in ESPIDF_ZOO])
def test_builds_that_cannot_be_right(tmp_path: Path, spoil: Callable[[Path], object], reason: Reason) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    write_espidf(folder)
    spoil(folder)
    refused(reason, lambda: load_build(folder))


def test_a_symlink_within_the_build_is_fine(tmp_path: Path) -> None:
    write_espidf(tmp_path)
    (tmp_path / "porch-sensor.bin").rename(tmp_path / "real.bin")
    (tmp_path / "porch-sensor.bin").symlink_to("real.bin")
    assert load_build(tmp_path).app_file.name == "porch-sensor.bin"


def test_long_versions_are_compared_as_far_as_the_descriptor_holds_them(tmp_path: Path) -> None:
    write_espidf(tmp_path, app=build_app("esp32s3", "porch-sensor", "v" * 31, payload_size=PAYLOAD))
    project(tmp_path, project_version="v" * 60)
    assert load_build(tmp_path).app.version == "v" * 31


def test_unknown_folders(tmp_path: Path) -> None:
    refused(Reason.InputNotRecognised, lambda: load_build(tmp_path))
    refused(Reason.InputNotRecognised, lambda: load_build(write_espidf(tmp_path), kind="make"))
    assert load_build(tmp_path, kind="espidf").target == "esp32s3"


# --- OFFSET=FILE ---------------------------------------------------------------------------------------------


def app_only(folder: Path, data: bytes, **options: object) -> BuildPlan:
    (folder / "app.bin").write_bytes(data)
    return load_files([f"0x10000={folder / 'app.bin'}"], **options)  # type: ignore[arg-type]


def test_assignments() -> None:
    assert Assignment.parse("0x10000=a=b.bin") == Assignment(0x10000, Path("a=b.bin"))
    assert Assignment.parse("65536=a").offset == 0x10000
    for text in ("", "a.bin", "=a", "0x=a", "-1=a", "0x100000000=a", "4294967296=a", "0x10000=", "010x=a"):
        refused(Reason.InputMalformed, partial(Assignment.parse, text))


def test_chip_comes_from_the_image_or_must_agree(tmp_path: Path) -> None:
    data = build_app("esp32s2", "p", "1", payload_size=PAYLOAD)
    assert app_only(tmp_path, data).target == "esp32s2"
    assert app_only(tmp_path, data, chip="ESP32-S2").target == "esp32s2"
    refused(Reason.InputDisagrees, lambda: app_only(tmp_path, data, chip="esp32"))


def test_empty_names_need_an_override(tmp_path: Path) -> None:
    """Rule 7."""
    data = build_app("esp32", "", "", payload_size=PAYLOAD)
    refused(Reason.AppNameMissing, lambda: app_only(tmp_path, data))
    refused(Reason.AppVersionMissing, lambda: app_only(tmp_path, data, overrides=Overrides(name="p")))
    plan = app_only(tmp_path, data, overrides=Overrides(name="p", version="1", source="https://example.org/p"))
    assert (plan.app.project_name, plan.app.version, plan.build.source) == ("p", "1", "https://example.org/p")


def test_an_override_against_the_bytes_is_said(tmp_path: Path) -> None:
    data = build_app("esp32", "p", "1", payload_size=PAYLOAD)
    plan = app_only(tmp_path, data, overrides=Overrides(version="1-rc1"))
    assert plan.app.version == "1-rc1"
    assert "will report '1'" in plan.warnings[0]


def test_warnings_for_unmeasured_bytes(tmp_path: Path) -> None:
    data = build_app("esp32", "p", "1", payload_size=PAYLOAD, pad_to_page=False)
    rest = -len(data) % 65536
    assert f"{rest} bytes of its last 64 KiB page" in app_only(tmp_path, data).warnings[0]
    padded = build_app("esp32", "p", "1", payload_size=PAYLOAD)
    assert app_only(tmp_path, padded + b"\xff" * 100).warnings == ()
    assert "100 bytes behind the image" in app_only(tmp_path, padded + b"x" * 100).warnings[0]


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    app, boot, table, otadata = write_parts(tmp_path)[3], *write_parts(tmp_path)[:3]
    path = app.partition("=")[2]
    refused(Reason.InputDisagrees, lambda: load_files([app, app]))
    refused(Reason.AppAmbiguous, lambda: load_files([app, f"0x1e0000={path}"]))
    refused(Reason.AppMissing, lambda: load_files([boot, table, otadata]))
    refused(Reason.AppMissing, lambda: load_files([]))
    refused(Reason.InputDisagrees, lambda: load_files([app, table, table.replace("0x8000", "0x9000")]))
    refused(Reason.OffsetMisaligned, lambda: load_files([f"0x11000={path}"]))
    refused(Reason.BootloaderOffsetWrong, lambda: load_files([app, boot.replace("0x0", "0x1000")]))
    refused(Reason.ImageBeyondFlash, lambda: load_files([f"0x3f0000={path}"]))
    other = tmp_path / "big.bin"
    other.write_bytes(b"x" * 0x10001)
    refused(Reason.ImagesOverlap, lambda: load_files([app, f"0x10000={other}"]))
    refused(Reason.InputMissing, lambda: load_files([f"0x10000={tmp_path / 'none.bin'}"]))


def test_an_application_larger_than_its_slot(tmp_path: Path) -> None:
    rows = [row for row in default_partitions().partitions if row.name in ("otadata", "ota_0")]
    small = check([rows[0], type(rows[1])("ota_0", 0, 0x10, 0x20000, 0x10000)])
    (tmp_path / "table.bin").write_bytes(build_table(small))
    (tmp_path / "app.bin").write_bytes(build_app("esp32c3", "p", "1", payload_size=PAYLOAD))
    parts = [f"0x8000={tmp_path / 'table.bin'}", f"0x20000={tmp_path / 'app.bin'}"]
    refused(Reason.ImageTooLarge, lambda: load_files(parts))


def test_a_partition_table_may_fill_its_sector(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    short = load_files(parts)
    with (tmp_path / "table.bin").open("ab") as table:
        table.write(b"\xff" * 0x400)
    assert load_files(parts).partition_table_sha256 == short.partition_table_sha256


def test_data_files_get_the_role_of_their_partition(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    (tmp_path / "data").mkdir()
    for at, name in (("0x9000", "image.bin"), ("0x3a0000", "data/image.bin")):
        (tmp_path / name).write_bytes(b"\0" * 64)
        parts.append(f"{at}={tmp_path / name}")
    plan = load_files(parts)
    roles = {f.offset: (f.role, f.name) for f in plan.files}
    assert roles[0x9000] == (Role.NVS, "9000-image.bin")
    assert roles[0x3A0000] == (Role.SPIFFS, "3a0000-image.bin"), "one name twice would collide when pulled"


def test_read_file_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_file(tmp_path / "f", limit=5) == b"12345"
    refused(Reason.InputTooLarge, lambda: read_file(tmp_path / "f", limit=4))


# --- real firmware -------------------------------------------------------------------------------------------


def test_real_application_without_a_name(firmware_dir: Path) -> None:
    path = firmware_dir / "micropython-esp32c3-2023-06-10-app.bin"
    refused(Reason.AppNameMissing, lambda: load_files([f"0x10000={path}"]))
    plan = load_files([f"0x10000={path}"], overrides=Overrides(name="micropython", version="1.20.0"))
    assert (plan.target, plan.min_rev, plan.flash.size) == ("esp32c3", 3, "4MB")
    assert "31808 bytes" in plan.warnings[0]


def test_real_merged_image_is_refused(firmware_dir: Path) -> None:
    path = firmware_dir / "micropython-esp32s2-merged.bin"
    error = refused(Reason.InputDisagrees, lambda: load_files([f"0x1000={path}"]))
    assert "merged" in error.message


def test_parts_cut_from_a_real_merged_image(tmp_path: Path, firmware_dir: Path) -> None:
    data = (firmware_dir / "micropython-esp32s3-merged.bin").read_bytes()
    for name, start, end in (
        ("boot", 0, parse_image(data).image_length),
        ("table", 0x8000, 0x8C00),
        ("app", 0x10000, None),
    ):
        (tmp_path / name).write_bytes(data[start:end])
    parts = [f"0={tmp_path / 'boot'}", f"0x8000={tmp_path / 'table'}", f"0x10000={tmp_path / 'app'}"]
    plan = load_files(parts, overrides=Overrides(name="micropython", version="1.20.0"))
    assert plan.app_file.partition == "factory"
    assert plan.flash.size == "8MB"


# --- merged images -------------------------------------------------------------------------------------------


def merge(folder: Path, parts: list[str], base: int) -> Path:
    """What a merge tool makes of the parts: one file from flash offset `base` on, gaps erased."""
    flash = bytearray()
    for part in parts:
        offset, _, path = part.partition("=")
        data = Path(path).read_bytes()
        flash.extend(b"\xff" * (int(offset, 0) + len(data) - len(flash)))
        flash[int(offset, 0) : int(offset, 0) + len(data)] = data
    (folder / "merged.bin").write_bytes(flash[base:])
    return folder / "merged.bin"


@pytest.mark.parametrize(("chip", "base"), [("esp32c3", 0), ("esp32", 0), ("esp32", 0x1000)])
def test_a_merged_image_is_cut_into_what_it_was_made_of(tmp_path: Path, chip: str, base: int) -> None:
    parts = write_parts(tmp_path, chip)
    merged = load_build(merge(tmp_path, parts, base))
    plain = load_files([part for part in parts if "otadata" not in part])  # erased OTA data is no part
    assert [(f.role, f.offset, f.data) for f in merged.files] == [(f.role, f.offset, f.data) for f in plain.files]
    assert merged.measurements == plain.measurements


def test_a_merged_image_may_hold_data(tmp_path: Path) -> None:
    (tmp_path / "nvs.bin").write_bytes(b"settings")
    parts = [*write_parts(tmp_path), f"0x9000={tmp_path / 'nvs.bin'}"]
    plan = load_build(merge(tmp_path, parts, 0))
    nvs = next(f for f in plan.files if f.role is Role.NVS)
    assert (nvs.offset, nvs.size, nvs.data.rstrip(b"\xff")) == (0x9000, 4096, b"settings")


def test_merged_images_that_are_none(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    (tmp_path / "note.bin").write_bytes(b"note")
    stray = merge(tmp_path, [*parts, f"0x8d00={tmp_path / 'note.bin'}"], 0)
    assert "0x8c00" in refused(Reason.InputDisagrees, lambda: load_build(stray)).message
    refused(Reason.InputNotRecognised, lambda: load_build(tmp_path / "app.bin"))
    refused(Reason.InputNotRecognised, lambda: load_build(tmp_path / "note.bin", kind="merged"))
    refused(Reason.InputMissing, lambda: load_build(tmp_path / "none.bin", kind="merged"))


@pytest.mark.parametrize("chip", ["esp32", "esp32s2", "esp32s3", "esp32c3-2023-04-26", "esp32c3-2023-06-10"])
def test_real_merged_images(chip: str, firmware_dir: Path) -> None:
    path = firmware_dir / f"micropython-{chip}-merged.bin"
    plan = load_build(path, overrides=Overrides(name="micropython", version="1.20.0"))
    assert plan.target == chip.partition("-")[0]
    assert [f.role for f in plan.files] == [Role.BOOTLOADER, Role.PARTITION_TABLE, Role.APP]
    assert plan.app_file.partition == "factory"
    cut = firmware_dir / f"micropython-{chip}-app.bin"
    if cut.exists():
        assert plan.app_file.data == cut.read_bytes()
