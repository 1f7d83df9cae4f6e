# SPDX-License-Identifier: Apache-2.0
"""Makes a BuildPlan of files and of what a build system claims about them. Pure; claims and bytes must agree.

Rules:
 1. Each file is what its bytes are: ESP image with descriptor or MCUboot image = application, ESP image without =
    bootloader (or, where the build says that it has none, the application that the ROM starts), partition table by its
    magic; other data by the type of the partition it begins. A role claimed otherwise is InputDisagrees.
 2. Exactly one application (AppMissing, AppAmbiguous), at most one partition table; offsets are unique (InputDisagrees).
 3. Every image is for one chip, which is also the chip claimed (InputDisagrees). An MCUboot image names none: bootloader
    or claim must (UnknownChip), and its load addresses lie in that chip's RAM.
 4. With a partition table, every file but bootloader and table begins a partition, an application one of type app
    (InputDisagrees), and fits it; with a slot size claimed the application fits that (ImageTooLarge).
 5. Flash mode, frequency and size claimed are those of the image headers: nothing rewrites headers later
    (InputDisagrees). "detect" and "keep" claim nothing.
 6. Name, version (first 31 bytes: the descriptor holds no more), secure version and revision limits claimed are those of
    the application (InputDisagrees).
 7. Empty names are refused unless the user gives one (AppNameMissing, AppVersionMissing).
 8. The layout rules L1 to L6 of `compatibility` hold.
 9. OTA data is two sectors (OtadataMalformed).
`application` holds rules 6 and 7, and warns: of an application that does not end on an MMU page (what follows it is mapped
but unmeasured), of bytes behind it that are no signature, of a user's name in place of another in the descriptor.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from firmware_pipeline.compatibility import check_layout
from firmware_pipeline.config import from_plan
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import FLASH_MODES, FLASH_SIZES, Chip, by_target
from firmware_pipeline.esp.image import IMAGE_MAGIC, ImageInfo, parse_image
from firmware_pipeline.esp.mcuboot import is_mcuboot, parse_mcuboot
from firmware_pipeline.esp.otadata import parse_otadata
from firmware_pipeline.esp.partitions import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    Partition,
    PartitionTable,
    parse_table,
    table_sha256,
)
from firmware_pipeline.features import normalise_features
from firmware_pipeline.inputs.application import esp_application, mcuboot_application
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile, compare, disagrees
from firmware_pipeline.plan import (
    BuildInfo,
    BuildPlan,
    FlashSettings,
    MeasurementEntry,
    PartitionEntry,
    PlannedFile,
    Role,
)

_BY_SUBTYPE = {
    "ota": Role.OTADATA, "nvs": Role.NVS, "spiffs": Role.SPIFFS, "littlefs": Role.LITTLEFS, "fat": Role.FATFS,
}  # fmt: skip
__all__ = ["Claims", "Overrides", "RawFile", "reconcile"]


def reconcile(files: Sequence[RawFile], claims: Claims, overrides: Overrides) -> BuildPlan:
    """Apply the rules and return the plan.

    Raises:
        PipelineError: InputDisagrees, App*, and whatever the parsers of `esp` and the layout rules refuse.
    """
    _unique_offsets(files)
    images = {file.offset: parse_image(file.data) for file in files if file.data[0] == IMAGE_MAGIC}
    app_file = _one_app(files, images, claims)
    chip = _same_chip(files, images, claims)
    _flash_settings(images.values(), claims)
    image = images.get(app_file.offset)
    bootloader = next((other for offset, other in images.items() if offset != app_file.offset), None)
    if image is not None:
        app = esp_application(app_file, image, claims, overrides)
    else:
        app = mcuboot_application(app_file, parse_mcuboot(app_file.data), chip, bootloader, claims, overrides)
    flash = _flash(image or bootloader, claims)
    table_file, table = _partition_table(files, flash.size_bytes)
    planned = [_place(file, images.get(file.offset), table, app_file) for file in sorted(files, key=lambda f: f.offset)]
    plan = BuildPlan(
        target=chip.target,
        chip_id=chip.chip_id,
        min_rev=app.min_rev,
        max_rev=app.max_rev,
        flash=flash,
        files=tuple(_distinct_names(planned)),
        app=app.info,
        measurements=tuple(MeasurementEntry.of(m) for m in app.measurements),
        partitions=tuple(PartitionEntry.of(row) for row in table.partitions) if table else (),
        partition_table_sha256=table_sha256(table_file.data).hex() if table_file else None,
        partition_table_offset=table_file.offset if table_file else None,
        secure_boot=app.secure_boot,
        build=BuildInfo(
            framework=claims.framework or "espidf",
            framework_version=claims.framework_version or app.info.idf_version,
            source=overrides.source,
            revision=overrides.revision or claims.revision,
        ),
        features=normalise_features(overrides.features),
        warnings=app.warnings,
    )
    if claims.slot_size is not None and len(app_file.data) > claims.slot_size:
        raise PipelineError(
            Reason.ImageTooLarge,
            f"{app_file.name} has {len(app_file.data)} bytes, the slot it is built for {claims.slot_size}.",
            "Make the application smaller, or the slot larger.",
        )
    for mismatch in check_layout(from_plan(plan)):
        raise mismatch.to_error()
    return plan


def _unique_offsets(files: Sequence[RawFile]) -> None:
    for offset, count in Counter(file.offset for file in files).items():
        if count > 1:
            raise disagrees(f"{count} files are to be written at 0x{offset:x}.", "Name each offset once.")


def _one_app(files: Sequence[RawFile], images: dict[int, ImageInfo], claims: Claims) -> RawFile:
    """Rule 2, and that what is called an application is one, not a whole flash."""
    mcuboot = [file for file in files if is_mcuboot(file.data)]
    for file in files:
        if file.role in (Role.APP, Role.BOOTLOADER) and file.offset not in images and file not in mcuboot:
            parse_image(file.data)  # says what is wrong with it
        if file.offset in images and _is_merged(file, images[file.offset]):
            raise disagrees(
                f"{file.name} at 0x{file.offset:x} is a merged image of a whole flash; writing it would wipe OTA data and "
                "settings.",
                "Give the file alone, without offset, to have it cut into its parts; or name the parts with their offsets.",
            )
    apps = [file for file in files if file.offset in images and images[file.offset].app is not None] + mcuboot
    if claims.bare_application and not apps:
        apps = [file for file in files if file.role is Role.APP]
    if len(apps) > 1:
        names = ", ".join(f"{file.name} at 0x{file.offset:x}" for file in apps)
        raise PipelineError(
            Reason.AppAmbiguous,
            f"There are several application images ({names}); one artifact updates one application.",
            "Push them as separate artifacts.",
        )
    if not apps:
        claimed = next((file for file in files if file.role is Role.APP), None)
        reason = Reason.AppMissing if claimed is None else Reason.AppDescriptorMissing
        what = f"{claimed.name} at 0x{claimed.offset:x} has no" if claimed else "No file has an"
        raise PipelineError(
            reason,
            f"{what} application descriptor (esp_app_desc_t), so there is nothing to update and to measure.",
            "Add the application image, for example 0x10000=app.bin.",
        )
    return apps[0]


def _same_chip(files: Sequence[RawFile], images: dict[int, ImageInfo], claims: Claims) -> Chip:
    """Rule 3."""
    claimed = by_target(claims.chip) if claims.chip is not None else None
    chips = {images[file.offset].chip.target: file.name for file in files if file.offset in images}
    if len(chips) > 1:
        pairs = ", ".join(f"{name} for {target}" for target, name in sorted(chips.items()))
        raise disagrees(f"The images are for different chips: {pairs}.")
    chip = next((image.chip for image in images.values()), claimed)
    if chip is None:
        raise PipelineError(
            Reason.UnknownChip, "No file says which chip the firmware is for.", "Name the chip with --chip."
        )
    if claimed is not None and claimed != chip:
        raise disagrees(f"{claims.source} says chip {claimed.target}, the image's bytes say {chip.target}.")
    return chip


def _flash(image: ImageInfo | None, claims: Claims) -> FlashSettings:
    """The settings of the header that the chip follows; without one, those claimed."""
    if image is not None:
        mode, freq, size = image.flash_mode, image.flash_freq, image.flash_size
    else:
        mode, freq, size = claims.flash_mode or "", claims.flash_freq, claims.flash_size or ""
    if mode not in FLASH_MODES or size not in FLASH_SIZES:
        raise PipelineError(
            Reason.InputMissing,
            "No file says the flash mode and size that the firmware is for.",
            "Add the bootloader to the build; its header says them.",
        )
    return FlashSettings.model_validate({"mode": mode, "freq": freq, "size": size})


def _flash_settings(images: Iterable[ImageInfo], claims: Claims) -> None:
    """Rule 5."""

    def said(value: str | None) -> str | None:
        return None if value in (None, "keep", "detect") else value

    for info in images:
        compare("flash mode", said(claims.flash_mode), info.flash_mode, claims.source)
        compare("flash size", said(claims.flash_size), info.flash_size, claims.source)
        freq = said(claims.flash_freq)
        if freq and info.chip.flash_freq.get(freq) != info.chip.flash_freq.get(info.flash_freq or ""):
            compare("flash frequency", freq, info.flash_freq, claims.source)


def _partition_table(files: Sequence[RawFile], flash_size: int) -> tuple[RawFile, PartitionTable] | tuple[None, None]:
    found = [
        file
        for file in files
        if file.role is Role.PARTITION_TABLE or (file.data[:2] == b"\xaa\x50" and len(file.data) <= 0x1000)
    ]
    if not found:
        return None, None
    if len(found) > 1:
        raise disagrees(f"{len(found)} files are partition tables; a device has one.")
    return found[0], parse_table(found[0].data, table_offset=found[0].offset, flash_size=flash_size)


def _place(file: RawFile, info: ImageInfo | None, table: PartitionTable | None, app: RawFile) -> PlannedFile:
    """Rules 1, 4 and 9: role and partition of one file."""
    where = f"{file.name} at 0x{file.offset:x}"
    row = table.starting_at(file.offset) if table else None
    role = Role.APP if file is app else _role(file, info, row)
    if file.role is not None and role is not file.role:
        raise disagrees(f"{where} is called {file.role}, but its bytes and its partition say {role}.")
    if role is Role.OTADATA:
        parse_otadata(file.data)
    if table is not None and role not in (Role.BOOTLOADER, Role.PARTITION_TABLE):
        if row is None:
            raise disagrees(f"{where} begins no partition of the partition table.")
        if row.is_app is not (role is Role.APP):
            raise disagrees(f"{where} is {role}, but partition {row.name!r} there is of type {row.type_name}.")
    return PlannedFile(
        role=role,
        offset=file.offset,
        name=_safe_name(file.name),
        data=file.data,
        partition=row.name if row else None,
        encrypt=file.encrypt,
    )


def _role(file: RawFile, info: ImageInfo | None, row: Partition | None) -> Role:
    if info is not None:
        return Role.BOOTLOADER if info.app is None else Role.APP
    if file.data[:2] == b"\xaa\x50" and len(file.data) <= 0x1000:
        return Role.PARTITION_TABLE
    if row is None:
        # Without a table the claim is all there is; claims of images and tables were settled by the bytes above.
        return file.role or Role.DATA
    if row.is_app:
        parse_image(file.data)  # refuses: the bytes are no image
    return _BY_SUBTYPE.get(row.subtype_name, Role.DATA)


def _is_merged(file: RawFile, info: ImageInfo) -> bool:
    table_at = DEFAULT_TABLE_OFFSET - info.chip.bootloader_offset
    return file.data[table_at : table_at + 2] == b"\xaa\x50" and len(file.data) > table_at + TABLE_SIZE


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".+-")[:100] or "file.bin"


def _distinct_names(files: Iterable[PlannedFile]) -> list[PlannedFile]:
    """Two files of one name would fall together when an artifact is pulled into a folder."""
    listed = list(files)
    counts = Counter(file.name for file in listed)
    return [f.model_copy(update={"name": f"{f.offset:x}-{f.name}"}) if counts[f.name] > 1 else f for f in listed]
