# SPDX-License-Identifier: Apache-2.0
"""Builds that nobody may push, one function each, named for what is wrong; the decorator says how they are refused."""

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.mcuboot import HEADER_SIZE
from firmware_pipeline.esp.partitions import Partition, PartitionTable, build_table
from flashjob.virtual import secure_boot
from tests.unit.firmware import build_systems, builds
from tests.unit.firmware.builds import PAYLOAD, edit_json

CHIP = "esp32c3"
APP, TABLE = "porch-sensor.bin", "partition_table/partition-table.bin"
BOOTLOADER, ARGS = "bootloader/bootloader.bin", "flasher_args.json"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user types: inputs, `--from`, `--platform-feature`."""

    inputs: tuple[str, ...]
    kind: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Specimen:
    """One bad build."""

    name: str
    reason: Reason
    make: Callable[[Path], Wish]


SPECIMENS: list[Specimen] = []


def specimen(reason: Reason) -> Callable[[Callable[[Path], Wish]], Callable[[Path], Wish]]:
    def add(make: Callable[[Path], Wish]) -> Callable[[Path], Wish]:
        SPECIMENS.append(Specimen(make.__name__, reason, make))
        return make

    return add


def idf(folder: Path) -> Wish:
    """A right ESP-IDF build, to be spoilt."""
    return Wish((str(builds.write_espidf(folder, CHIP)),))


def app(**changes: object) -> bytes:
    return build_app(CHIP, "porch-sensor", "2.1.0", **({"payload_size": PAYLOAD} | changes))  # type: ignore[arg-type]


def with_app(folder: Path, data: bytes) -> Wish:
    wish = idf(folder)
    (folder / APP).write_bytes(data)
    return wish


def with_table(folder: Path, data: bytes) -> Wish:
    wish = idf(folder)
    (folder / TABLE).write_bytes(data)
    return wish


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def sealed(data: bytes) -> bytes:
    """The image with checksum and appended hash made right again."""
    size = len(data) - 32
    position, checksum = 24, 0xEF
    for _ in range(data[1]):
        length = struct.unpack_from("<I", data, position + 4)[0]
        for byte in data[position + 8 : position + 8 + length]:
            checksum ^= byte
        position += 8 + length
    body = data[: size - 1] + bytes([checksum])
    return body + hashlib.sha256(body).digest()


def table(*rows: Partition) -> bytes:
    """A table with a right MD5 row, whatever its rows are."""
    return build_table(PartitionTable(rows))


OTADATA = Partition("otadata", 1, 0, 0xD000, 0x2000)
OTA_0 = Partition("ota_0", 0, 0x10, 0x20000, 0x1C0000)
OTA_1 = Partition("ota_1", 0, 0x11, 0x1E0000, 0x1C0000)


def header(name: str, reason: Reason, at: int, value: bytes) -> None:
    """A specimen with other bytes in the application's header or segments."""

    def make(folder: Path) -> Wish:
        return with_app(folder, patched(app(), at, value))

    SPECIMENS.append(Specimen(name, reason, make))


def bad_table(name: str, *rows: Partition) -> None:
    """A specimen with a partition table of these rows."""

    def make(folder: Path) -> Wish:
        return with_table(folder, table(*rows))

    SPECIMENS.append(Specimen(name, Reason.PartitionTableMalformed, make))


# ---- the application image ----------------------------------------------------------------------------------

header("elf_instead_of_an_image", Reason.NotAnImage, 0, b"\x7fELF")
header("image_of_no_segments", Reason.ImageMalformed, 1, b"\0")
header("image_of_17_segments", Reason.ImageMalformed, 1, b"\x11")
header("undefined_spi_mode", Reason.ImageMalformed, 2, b"\x09")
header("undefined_flash_size", Reason.ImageMalformed, 3, b"\xf0")
header("chip_of_nobody", Reason.UnknownChip, 12, b"\x4d\0")
header("minimum_revision_above_maximum", Reason.ImageMalformed, 15, struct.pack("<HH", 300, 100))
header("undefined_hash_flag", Reason.ImageMalformed, 23, b"\x02")
header("segment_of_odd_length", Reason.ImageMalformed, 28, b"\x01\0\0\0")
header("segment_larger_than_any_flash", Reason.ImageMalformed, 28, struct.pack("<I", 17 << 20))
header("segment_behind_the_end", Reason.ImageTruncated, 28, struct.pack("<I", 8 << 20))
header("segment_misplaced_in_its_page", Reason.ImageMalformed, 24, b"\x24\0\0\x3c")
header("flipped_bit_in_the_code", Reason.ImageChecksumMismatch, 0x2000, bytes([app()[0x2000] ^ 1]))
header(
    "two_flips_that_keep_the_checksum",
    Reason.ImageHashMismatch,
    0x2000,
    bytes([app()[0x2000] ^ 1, app()[0x2001] ^ 1]),
)


@specimen(Reason.ImageTruncated)
def image_cut_in_its_header(folder: Path) -> Wish:
    return with_app(folder, app()[:10])


@specimen(Reason.ImageTruncated)
def image_cut_in_a_segment(folder: Path) -> Wish:
    return with_app(folder, app()[:5000])


@specimen(Reason.ImageTruncated)
def image_without_its_appended_hash(folder: Path) -> Wish:
    return with_app(folder, app()[:-32])


@specimen(Reason.AppDescriptorMissing)
def application_without_descriptor(folder: Path) -> Wish:
    return with_app(folder, sealed(patched(app(), 0x20, bytes(4))))


@specimen(Reason.AppDescriptorMalformed)
def project_name_that_is_no_text(folder: Path) -> Wish:
    return with_app(folder, sealed(patched(app(), 0x50, b"\xff\xfe")))


@specimen(Reason.AppDescriptorMalformed)
def version_with_a_line_break(folder: Path) -> Wish:
    return with_app(folder, sealed(patched(app(), 0x30, b"2\n1")))


@specimen(Reason.AppDescriptorMalformed)
def mmu_page_of_a_gigabyte(folder: Path) -> Wish:
    return with_app(folder, sealed(patched(app(), 0x20 + 180, b"\x1e")))


@specimen(Reason.AppNameMissing)
def application_without_name(folder: Path) -> Wish:
    return with_app(folder, build_app(CHIP, "", "2.1.0", payload_size=PAYLOAD))


@specimen(Reason.AppVersionMissing)
def application_without_version(folder: Path) -> Wish:
    return with_app(folder, build_app(CHIP, "porch-sensor", "", payload_size=PAYLOAD))


@specimen(Reason.SecurityVersionUnrepresentable)
def secure_version_beyond_the_efuses(folder: Path) -> Wish:
    wish = with_app(folder, app(secure_version=17))
    edit_json(folder / "config/sdkconfig.json", BOOTLOADER_APP_SECURE_VERSION=17)
    return wish


@specimen(Reason.SecureBootSignatureMalformed)
def signature_block_with_a_damaged_crc(folder: Path) -> Wish:
    signed = secure_boot.sign(app(), secure_boot.maker_key(b"\1" * 32))
    return with_app(folder, patched(signed, len(app()) + 1196, b"\0\0\0\0"))


@specimen(Reason.SecureBootSignatureMalformed)
def signature_of_another_image(folder: Path) -> Wish:
    other = secure_boot.sign(app(seed=b"other"), secure_boot.maker_key(b"\1" * 32))
    return with_app(folder, app() + other[len(app()) :])


@specimen(Reason.ImageTooLarge)
def application_larger_than_its_slot(folder: Path) -> Wish:
    return with_app(folder, app(payload_size=0x1C4000))


@specimen(Reason.InputDisagrees)
def application_of_another_chip(folder: Path) -> Wish:
    return with_app(folder, build_app("esp32s3", "porch-sensor", "2.1.0", payload_size=PAYLOAD))


@specimen(Reason.InputDisagrees)
def application_of_another_version(folder: Path) -> Wish:
    return with_app(folder, build_app(CHIP, "porch-sensor", "2.2.0", payload_size=PAYLOAD))


@specimen(Reason.InputDisagrees)
def application_of_another_secure_version(folder: Path) -> Wish:
    return with_app(folder, app(secure_version=3))


@specimen(Reason.InputDisagrees)
def application_for_newer_chips_than_described(folder: Path) -> Wish:
    return with_app(folder, app(min_rev=3))


@specimen(Reason.InputDisagrees)
def application_for_another_flash_size(folder: Path) -> Wish:
    return with_app(folder, app(flash_size="8MB"))


# ---- tables, OTA data, layout -------------------------------------------------------------------------------

bad_table("table_with_overlapping_rows", OTADATA, OTA_0, replace(OTA_1, offset=0x1D0000))
bad_table("table_with_one_name_twice", OTADATA, OTA_0, replace(OTA_1, name="ota_0"))
bad_table("table_with_misaligned_application", OTADATA, replace(OTA_0, offset=0x21000))
bad_table("table_with_a_size_of_half_a_sector", replace(OTADATA, size=0x800), OTA_0)
bad_table("table_with_an_unknown_flag", OTADATA, replace(OTA_0, flags=4))
bad_table("table_without_otadata_for_two_slots", OTA_0, OTA_1)
bad_table("table_with_a_gap_in_its_slots", OTADATA, replace(OTA_0, subtype=0x12))
bad_table("table_beyond_the_flash", OTADATA, OTA_0, replace(OTA_1, size=0x800000))
bad_table("table_over_itself", replace(OTADATA, offset=0x8000), OTA_0)
bad_table("table_of_no_rows")


@specimen(Reason.PartitionTableHashMismatch)
def table_with_a_flipped_bit(folder: Path) -> Wish:
    return with_table(folder, patched(table(OTADATA, OTA_0), 2, b"\x02"))


@specimen(Reason.PartitionTableHashMismatch)
def table_without_hash(folder: Path) -> Wish:
    return with_table(folder, table(OTADATA, OTA_0)[:64].ljust(0xC00, b"\xff"))


@specimen(Reason.PartitionTableMalformed)
def table_with_bytes_behind_its_end(folder: Path) -> Wish:
    return with_table(folder, patched(table(OTADATA, OTA_0), 0xB00, b"hidden"))


@specimen(Reason.OtadataMalformed)
def otadata_of_three_sectors(folder: Path) -> Wish:
    wish = idf(folder)
    (folder / "ota_data_initial.bin").write_bytes(b"\xff" * 0x3000)
    return wish


@specimen(Reason.BootloaderOffsetWrong)
def bootloader_where_the_rom_does_not_look(folder: Path) -> Wish:
    parts = builds.write_parts(folder, CHIP)
    return Wish((parts[0].replace("0x0=", "0x1000="), parts[3]))


@specimen(Reason.OffsetMisaligned)
def application_off_its_boundary(folder: Path) -> Wish:
    return Wish((builds.write_parts(folder, CHIP)[3].replace("0x20000=", "0x21000="),))


@specimen(Reason.ImageBeyondFlash)
def application_behind_the_end_of_the_flash(folder: Path) -> Wish:
    return Wish((builds.write_parts(folder, CHIP)[3].replace("0x20000=", "0x3f0000="),))


@specimen(Reason.ImagesOverlap)
def data_over_the_application(folder: Path) -> Wish:
    (folder / "data.bin").write_bytes(bytes(0x10001))
    return Wish((builds.write_parts(folder, CHIP)[3], f"0x10000={folder / 'data.bin'}"))


@specimen(Reason.InputDisagrees)
def one_offset_twice(folder: Path) -> Wish:
    application = builds.write_parts(folder, CHIP)[3]
    return Wish((application, application))


@specimen(Reason.InputDisagrees)
def whole_flash_as_application(folder: Path) -> Wish:
    whole = build_bootloader(CHIP).ljust(0x8000, b"\xff") + build_table(default_partitions()).ljust(0x18000, b"\xff")
    (folder / "merged.bin").write_bytes(whole + app())
    return Wish((f"0x0={folder / 'merged.bin'}",))


@specimen(Reason.InputDisagrees)
def merged_image_with_hidden_bytes(folder: Path) -> Wish:
    whole = build_bootloader(CHIP).ljust(0x8000, b"\xff") + build_table(default_partitions()).ljust(0x18000, b"\xff")
    (folder / "merged.bin").write_bytes(patched(whole + app(), 0x8E00, b"hidden"))
    return Wish((str(folder / "merged.bin"),))


@specimen(Reason.AppAmbiguous)
def two_applications(folder: Path) -> Wish:
    application = builds.write_parts(folder, CHIP)[3]
    return Wish((application, application.replace("0x20000=", "0x1e0000=")))


@specimen(Reason.AppMissing)
def bootloader_alone(folder: Path) -> Wish:
    return Wish((builds.write_parts(folder, CHIP)[0],))


# ---- build files --------------------------------------------------------------------------------------------


@specimen(Reason.InputMalformed)
def flasher_args_cut_short(folder: Path) -> Wish:
    wish = idf(folder)
    (folder / ARGS).write_bytes((folder / ARGS).read_bytes()[:-2])
    return wish


@specimen(Reason.InputTooLarge)
def flasher_args_of_five_megabytes(folder: Path) -> Wish:
    wish = idf(folder)
    os.truncate(folder / ARGS, 5 << 20)
    return wish


@specimen(Reason.InputMalformed)
def empty_application_file(folder: Path) -> Wish:
    return with_app(folder, b"")


@specimen(Reason.InputMissing)
def application_file_gone(folder: Path) -> Wish:
    wish = idf(folder)
    (folder / APP).unlink()
    return wish


@specimen(Reason.InputMissing)
def application_is_a_fifo(folder: Path) -> Wish:
    wish = idf(folder)
    (folder / APP).unlink()
    os.mkfifo(folder / APP)
    return wish


@specimen(Reason.InputEscapes)
def application_is_a_link_to_the_outside(folder: Path) -> Wish:
    wish = idf(folder)
    (folder / APP).rename(folder.parent / "outside.bin")
    (folder / APP).symlink_to(folder.parent / "outside.bin")
    return wish


@specimen(Reason.InputEscapes)
def bootloader_path_with_dots(folder: Path) -> Wish:
    wish = idf(folder)
    edit_json(folder / ARGS, flash_files={"0x0": "../bootloader.bin", "0x20000": APP}, bootloader=None)
    return wish


@specimen(Reason.InputNotRecognised)
def folder_of_nothing(folder: Path) -> Wish:
    return Wish((str(folder),))


@specimen(Reason.InputNotRecognised)
def kind_of_build_that_does_not_exist(folder: Path) -> Wish:
    return replace(idf(folder), kind="make")


@specimen(Reason.InputAmbiguous)
def folder_of_two_build_systems(folder: Path) -> Wish:
    build_systems.write_platformio(folder)
    return idf(folder)


@specimen(Reason.FeatureMalformed)
def feature_that_no_device_has(folder: Path) -> Wish:
    return replace(idf(folder), features=("psram>=8MB",))


@specimen(Reason.InputDisagrees)
def two_builds_for_one_chip(folder: Path) -> Wish:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    return Wish((*idf(folder / "a").inputs, *idf(folder / "b").inputs))


@specimen(Reason.InputDisagrees)
def chips_of_different_versions(folder: Path) -> Wish:
    (folder / "a").mkdir()
    other = build_app("esp32s3", "porch-sensor", "2.2.0", payload_size=PAYLOAD)
    (folder / "s3.bin").write_bytes(other)
    return Wish((*idf(folder / "a").inputs, f"esp32s3:0x20000={folder / 's3.bin'}"))


# ---- PlatformIO, Arduino, esptool's arguments ---------------------------------------------------------------


@specimen(Reason.InputMalformed)
def idedata_without_application_offset(folder: Path) -> Wish:
    build_systems.write_platformio(folder)
    edit_json(folder / "idedata.json", extra={"flash_images": []})
    return Wish((str(folder),))


@specimen(Reason.InputMissing)
def idedata_that_names_a_lost_image(folder: Path) -> Wish:
    build_systems.write_platformio(folder)
    (folder / "bootloader.bin").unlink()
    return Wish((str(folder),))


@specimen(Reason.InputAmbiguous)
def project_of_two_environments(folder: Path) -> Wish:
    for name in ("one", "two"):
        build_systems.write_platformio(folder / ".pio/build" / name)
    return Wish((str(folder),))


@specimen(Reason.InputAmbiguous)
def folder_of_two_sketches(folder: Path) -> Wish:
    build_systems.write_arduino(folder)
    (folder / "Other.ino.bin").write_bytes(b"x")
    return Wish((str(folder),), kind="arduino")


@specimen(Reason.InputMissing)
def sketch_without_its_bootloader(folder: Path) -> Wish:
    build_systems.write_arduino(folder, args=False)
    (folder / "Porch.ino.bootloader.bin").unlink()
    return Wish((str(folder),))


def arguments(name: str, reason: Reason, text: str) -> None:
    """A specimen of esptool's arguments."""

    def make(folder: Path) -> Wish:
        return Wish((f"@{build_systems.write_flash_args(folder, text) / 'flash_args'}",))

    SPECIMENS.append(Specimen(name, reason, make))


arguments("arguments_with_an_open_quote", Reason.InputMalformed, "0x20000 'app image.bin")
arguments("arguments_with_an_unknown_option", Reason.InputMalformed, "--erase-all 0x20000 'app image.bin'")
arguments("arguments_with_an_offset_alone", Reason.InputMalformed, "0x20000")
arguments("arguments_without_files", Reason.InputMalformed, "--flash-mode dio")
arguments("arguments_with_an_option_without_value", Reason.InputMalformed, "0x20000 'app image.bin' --flash-mode")
arguments("arguments_that_lead_out", Reason.InputEscapes, "0x20000 ../app.bin")
arguments("arguments_for_another_chip", Reason.InputDisagrees, "--chip esp32 0x20000 'app image.bin'")
arguments("arguments_with_another_flash_mode", Reason.InputDisagrees, "--flash-mode=qio 0x20000 'app image.bin'")


# ---- Zephyr and MCUboot -------------------------------------------------------------------------------------

SIGNED = "porch/zephyr/zephyr.signed.bin"


def zephyr(folder: Path, name: str = SIGNED, data: bytes | None = None) -> Wish:
    build_systems.write_zephyr_sysbuild(folder, CHIP)
    if data is not None:
        (folder / name).write_bytes(data)
    return Wish((str(folder),))


@specimen(Reason.NotAnImage)
def mcuboot_application_that_is_a_text(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, b"not signed")


@specimen(Reason.ImageHashMismatch)
def mcuboot_image_with_a_flipped_bit(folder: Path) -> Wish:
    good = build_systems.mcuboot_app(CHIP)
    return zephyr(folder, SIGNED, patched(good, 2000, bytes([good[2000] ^ 1])))


@specimen(Reason.ImageHashMissing)
def mcuboot_image_without_hash(folder: Path) -> Wish:
    good = build_systems.mcuboot_app(CHIP)
    return zephyr(folder, SIGNED, patched(good, len(good) - 36, b"\x01\0"))


@specimen(Reason.ImageTruncated)
def mcuboot_image_cut_in_its_tlvs(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, build_systems.mcuboot_app(CHIP)[:-1])


@specimen(Reason.ImageTruncated)
def mcuboot_image_cut_in_its_header(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, build_systems.mcuboot_app(CHIP)[:20])


@specimen(Reason.ImageMalformed)
def mcuboot_image_that_is_encrypted(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, patched(build_systems.mcuboot_app(CHIP), 16, b"\x04"))


@specimen(Reason.ImageMalformed)
def mcuboot_image_without_load_header(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, patched(build_systems.mcuboot_app(CHIP), HEADER_SIZE, b"\0\0"))


@specimen(Reason.ImageMalformed)
def mcuboot_image_with_wrong_protected_length(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, patched(build_systems.mcuboot_app(CHIP), 10, b"\x08"))


@specimen(Reason.InputDisagrees)
def mcuboot_image_for_other_ram(folder: Path) -> Wish:
    return zephyr(folder, SIGNED, build_systems.mcuboot_app("esp32"))


@specimen(Reason.ImageTooLarge)
def mcuboot_image_larger_than_its_slot(folder: Path) -> Wish:
    config = build_systems.zephyr_config(CHIP, BOOTLOADER_MCUBOOT="y", FLASH_LOAD_SIZE="0x1000")
    return zephyr(folder, "porch/zephyr/.config", config.encode())


@specimen(Reason.InputMissing)
def zephyr_build_that_says_no_offset(folder: Path) -> Wish:
    return zephyr(folder, "porch/zephyr/runners.yaml", b"flash-runner: esp32\n")


@specimen(Reason.InputMalformed)
def zephyr_build_of_no_chip(folder: Path) -> Wish:
    return zephyr(folder, "porch/zephyr/.config", b"# CONFIG_SOC_SERIES is not set\n")


@specimen(Reason.UnknownChip)
def zephyr_build_for_a_foreign_chip(folder: Path) -> Wish:
    return zephyr(folder, "porch/zephyr/.config", build_systems.zephyr_config("nrf52").encode())


@specimen(Reason.InputMalformed)
def domain_that_leads_out(folder: Path) -> Wish:
    return zephyr(folder, "domains.yaml", b"default: ../porch\ndomains:\n  - name: ../porch\n")


@specimen(Reason.InputMalformed)
def domains_that_are_no_yaml(folder: Path) -> Wish:
    return zephyr(folder, "domains.yaml", b"default: [")


@specimen(Reason.AppAmbiguous)
def domains_of_two_applications(folder: Path) -> Wish:
    return zephyr(folder, "domains.yaml", b"default: porch\ndomains:\n  - name: porch\n  - name: radio\n")


@specimen(Reason.InputDisagrees)
def domains_of_two_chips(folder: Path) -> Wish:
    return zephyr(folder, "mcuboot/zephyr/.config", build_systems.zephyr_config("esp32").encode())


@specimen(Reason.AppNameMissing)
def zephyr_application_that_nobody_named(folder: Path) -> Wish:
    return Wish((str(build_systems.write_zephyr_simple(folder)),))


@specimen(Reason.UnknownChip)
def mcuboot_image_alone_for_no_chip(folder: Path) -> Wish:
    (folder / "app.bin").write_bytes(build_systems.mcuboot_app(CHIP))
    return Wish((f"0x20000={folder / 'app.bin'}",))
