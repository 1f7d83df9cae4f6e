# SPDX-License-Identifier: Apache-2.0
"""Input: the export folder of an Arduino sketch (core 3 for ESP32), with or without `flash_args`.

Newer cores leave `flash_args`; older ones only `<sketch>.ino.bin`, `.bootloader.bin` and `.partitions.bin`. Then the
offsets follow from the bytes: the bootloader where the chip's ROM looks, the partition table at 0x8000, the application in
the table's first application partition, OTA data (`boot_app0.bin`) in its partition.
"""

from dataclasses import replace
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.partitions import DEFAULT_TABLE_OFFSET, PartitionTable, parse_table
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile
from firmware_pipeline.inputs.esptool_args import FLASH_ARGS, read_args
from firmware_pipeline.inputs.files import read_inside
from firmware_pipeline.inputs.otadata_default import first_slot
from firmware_pipeline.inputs.reconcile import reconcile
from firmware_pipeline.plan import BuildPlan, Role

_STOCK_NAME = "arduino-lib-builder"
BOOT_APP0 = "boot_app0.bin"


class ArduinoInput:
    """Recognises and loads an exported sketch."""

    name = "arduino"

    def detect(self, path: Path) -> bool:
        """Whether `path` is a folder with one `<sketch>.ino.bin`."""
        return path.is_dir() and len(list(path.glob("*.ino.bin"))) == 1

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Reduce the export to a plan.

        Raises:
            PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
        """
        sketches = sorted(file.name for file in path.glob("*.ino.bin"))
        if len(sketches) != 1:
            raise PipelineError(
                Reason.InputAmbiguous if sketches else Reason.InputMissing,
                f"{path} holds {len(sketches)} sketches (<sketch>.ino.bin); one is needed.",
                "Export one sketch into a folder of its own, or name the files with their offsets.",
            )
        if (path / FLASH_ARGS).exists():
            files, claims = read_args(path / FLASH_ARGS)
            claims = replace(claims, framework="arduino")
        else:
            files, claims = files_by_table(path, sketches[0]), Claims(source="the export", framework="arduino")
        plan = reconcile(files, claims, overrides or Overrides())
        if plan.app.project_name != _STOCK_NAME:
            return plan
        note = f"The application calls itself {_STOCK_NAME}, as every sketch does: give the artifact a --name."
        return plan.model_copy(update={"warnings": (*plan.warnings, note)})


def files_by_table(folder: Path, application: str, stem: str | None = None) -> list[RawFile]:
    """The files of a build whose offsets follow from chip and partition table (Arduino, PlatformIO).

    Args:
        folder: holds them all.
        application: its file name.
        stem: what bootloader and table are called after, "" for `bootloader.bin`; None = as the application.

    Raises:
        PipelineError: Input*, PartitionTable*, AppMissing, and what `parse_image` refuses.
    """
    prefix = application.removesuffix("bin") if stem is None else stem
    app = read_inside(folder, application)
    table_bytes = read_inside(folder, f"{prefix}partitions.bin")
    table = parse_table(table_bytes, table_offset=DEFAULT_TABLE_OFFSET)
    if not table.app_slots:
        raise PipelineError(
            Reason.AppMissing, "The partition table has no application partition.", "Choose another partition scheme."
        )
    at = parse_image(app).chip.bootloader_offset
    return [
        RawFile(at, f"{prefix}bootloader.bin", read_inside(folder, f"{prefix}bootloader.bin"), Role.BOOTLOADER),
        RawFile(DEFAULT_TABLE_OFFSET, f"{prefix}partitions.bin", table_bytes, Role.PARTITION_TABLE),
        *otadata_file(folder, table),
        RawFile(table.app_slots[0].offset, application, app, Role.APP),
    ]


def otadata_file(folder: Path, table: PartitionTable) -> list[RawFile]:
    """`boot_app0.bin`: from the build where it was copied there, else the same made here; none without OTA data."""
    row = table.otadata
    if row is None:
        return []
    data = read_inside(folder, BOOT_APP0) if (folder / BOOT_APP0).exists() else first_slot()
    return [RawFile(row.offset, BOOT_APP0, data, Role.OTADATA)]
