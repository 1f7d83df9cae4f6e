# SPDX-License-Identifier: Apache-2.0
"""Makes a BuildPlan of files and of what a build system claims about them. Pure; claims and bytes must agree.

Rules:
 1. Each file is what its bytes are: ESP image with descriptor = application, without = bootloader, partition table by
    its magic; other data by the type of the partition it begins. A role claimed otherwise is InputDisagrees.
 2. Exactly one application (AppMissing, AppAmbiguous), at most one partition table; offsets are unique (InputDisagrees).
 3. Every image is for one chip, which is also the chip claimed (InputDisagrees).
 4. With a partition table, every file but bootloader and table begins a partition, an application one of type app
    (InputDisagrees), and fits it.
 5. Flash mode, frequency and size claimed are those of the image headers: nothing rewrites headers later
    (InputDisagrees). "detect" and "keep" claim nothing.
 6. Name, version (first 31 bytes: the descriptor holds no more), secure version and revision limits claimed are those of
    the application (InputDisagrees).
 7. Empty names are refused unless the user gives one (AppNameMissing, AppVersionMissing).
 8. The layout rules L1 to L6 of `compatibility` hold.
 9. OTA data is two sectors (OtadataMalformed).
Warnings: an application that does not end on an MMU page (what follows it is mapped but unmeasured); bytes behind it that
are no signature; a user's name in place of another in the descriptor.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from firmware_pipeline.compatibility import check_layout
from firmware_pipeline.config import from_plan
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import Chip, by_target
from firmware_pipeline.esp.image import IMAGE_MAGIC, ImageInfo, parse_image
from firmware_pipeline.esp.measurement import measure_image
from firmware_pipeline.esp.otadata import parse_otadata
from firmware_pipeline.esp.partitions import (
    DEFAULT_TABLE_OFFSET,
    TABLE_SIZE,
    Partition,
    PartitionTable,
    parse_table,
    table_sha256,
)
from firmware_pipeline.esp.signature import find_signatures
from firmware_pipeline.features import normalise_features
from firmware_pipeline.plan import (
    AppInfo,
    BuildInfo,
    BuildPlan,
    FlashSettings,
    MeasurementEntry,
    PartitionEntry,
    PlannedFile,
    Role,
    SecureBoot,
)

_BY_SUBTYPE = {
    "ota": Role.OTADATA, "nvs": Role.NVS, "spiffs": Role.SPIFFS, "littlefs": Role.LITTLEFS, "fat": Role.FATFS,
}  # fmt: skip
_DESCRIPTOR_TEXT = 31


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file as found: flash offset in bytes, bare name, bytes; role and encryption as the build claims them."""

    offset: int
    name: str
    data: bytes
    role: Role | None = None
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class Claims:
    """What a build system says; None = says nothing. `source` names the file that says so."""

    source: str
    chip: str | None = None
    flash_mode: str | None = None
    flash_freq: str | None = None
    flash_size: str | None = None
    project_name: str | None = None
    version: str | None = None
    secure_version: int | None = None
    min_rev: int | None = None
    max_rev: int | None = None
    framework: str | None = None
    framework_version: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user says on the command line: name and version for the artifact, provenance, features (see `features`)."""

    name: str | None = None
    version: str | None = None
    source: str | None = None
    revision: str | None = None
    features: tuple[str, ...] = ()


def _disagrees(message: str, next_step: str = "Build again from a clean folder.") -> PipelineError:
    return PipelineError(Reason.InputDisagrees, message, next_step)


def _compare(what: str, claimed: object, found: object, source: str) -> None:
    if claimed is not None and claimed != found:
        raise _disagrees(f"{source} says {what} {claimed!s:.80}, the image's bytes say {found!s:.80}.")


def reconcile(files: Sequence[RawFile], claims: Claims, overrides: Overrides) -> BuildPlan:
    """Apply the rules and return the plan.

    Raises:
        PipelineError: InputDisagrees, App*, and whatever the parsers of `esp` and the layout rules refuse.
    """
    _unique_offsets(files)
    images = {file.offset: parse_image(file.data) for file in files if file.data[0] == IMAGE_MAGIC}
    app_file = _one_app(files, images)
    info = images[app_file.offset]
    _same_chip(files, images, claims)
    _flash_settings(images.values(), claims)
    flash = FlashSettings.model_validate({"mode": info.flash_mode, "freq": info.flash_freq, "size": info.flash_size})
    table_file, table = _partition_table(files, flash.size_bytes)
    planned = [_place(file, images.get(file.offset), table) for file in sorted(files, key=lambda f: f.offset)]
    signatures = find_signatures(app_file.data, info.image_length)
    app, warnings = _app_info(info, claims, overrides)
    plan = BuildPlan(
        target=info.chip.target,
        chip_id=info.chip.chip_id,
        min_rev=info.min_rev,
        max_rev=info.max_rev,
        flash=flash,
        files=tuple(_distinct_names(planned)),
        app=app,
        measurements=tuple(MeasurementEntry.of(m) for m in measure_image(app_file.data, info)),
        partitions=tuple(PartitionEntry.of(row) for row in table.partitions) if table else (),
        partition_table_sha256=table_sha256(table_file.data).hex() if table_file else None,
        partition_table_offset=table_file.offset if table_file else None,
        secure_boot=SecureBoot(key_digests=tuple(s.key_digest.hex() for s in signatures)) if signatures else None,
        build=BuildInfo(
            framework=claims.framework or "espidf",
            framework_version=claims.framework_version or (info.app.idf_version if info.app else None) or None,
            source=overrides.source,
            revision=overrides.revision or claims.revision,
        ),
        features=normalise_features(overrides.features),
        warnings=(*warnings, *_tail_warnings(app_file, info, signed=bool(signatures))),
    )
    for mismatch in check_layout(from_plan(plan)):
        raise mismatch.to_error()
    return plan


def _unique_offsets(files: Sequence[RawFile]) -> None:
    for offset, count in Counter(file.offset for file in files).items():
        if count > 1:
            raise _disagrees(f"{count} files are to be written at 0x{offset:x}.", "Name each offset once.")


def _one_app(files: Sequence[RawFile], images: dict[int, ImageInfo]) -> RawFile:
    """Rule 2, and that what is called an application is one, not a whole flash."""
    for file in files:
        if file.role in (Role.APP, Role.BOOTLOADER) and file.offset not in images:
            parse_image(file.data)  # says what is wrong with it
        if file.offset in images and _is_merged(file, images[file.offset]):
            raise _disagrees(
                f"{file.name} at 0x{file.offset:x} is a merged image of a whole flash; writing it would wipe OTA data and "
                "settings.",
                "Give the file alone, without offset, to have it cut into its parts; or name the parts with their offsets.",
            )
    apps = [file for file in files if file.offset in images and images[file.offset].app is not None]
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
        raise _disagrees(f"The images are for different chips: {pairs}.")
    chip = next(iter(images.values())).chip
    if claimed is not None and claimed != chip:
        raise _disagrees(f"{claims.source} says chip {claimed.target}, the image's bytes say {chip.target}.")
    return chip


def _flash_settings(images: Iterable[ImageInfo], claims: Claims) -> None:
    """Rule 5."""

    def said(value: str | None) -> str | None:
        return None if value in (None, "keep", "detect") else value

    for info in images:
        _compare("flash mode", said(claims.flash_mode), info.flash_mode, claims.source)
        _compare("flash size", said(claims.flash_size), info.flash_size, claims.source)
        freq = said(claims.flash_freq)
        if freq and info.chip.flash_freq.get(freq) != info.chip.flash_freq.get(info.flash_freq or ""):
            _compare("flash frequency", freq, info.flash_freq, claims.source)


def _partition_table(files: Sequence[RawFile], flash_size: int) -> tuple[RawFile, PartitionTable] | tuple[None, None]:
    found = [
        file
        for file in files
        if file.role is Role.PARTITION_TABLE or (file.data[:2] == b"\xaa\x50" and len(file.data) <= 0x1000)
    ]
    if not found:
        return None, None
    if len(found) > 1:
        raise _disagrees(f"{len(found)} files are partition tables; a device has one.")
    return found[0], parse_table(found[0].data, table_offset=found[0].offset, flash_size=flash_size)


def _place(file: RawFile, info: ImageInfo | None, table: PartitionTable | None) -> PlannedFile:
    """Rules 1, 4 and 9: role and partition of one file."""
    where = f"{file.name} at 0x{file.offset:x}"
    row = table.starting_at(file.offset) if table else None
    role = _role(file, info, row)
    if file.role is not None and role is not file.role:
        raise _disagrees(f"{where} is called {file.role}, but its bytes and its partition say {role}.")
    if role is Role.OTADATA:
        parse_otadata(file.data)
    if table is not None and role not in (Role.BOOTLOADER, Role.PARTITION_TABLE):
        if row is None:
            raise _disagrees(f"{where} begins no partition of the partition table.")
        if row.is_app is not (role is Role.APP):
            raise _disagrees(f"{where} is {role}, but partition {row.name!r} there is of type {row.type_name}.")
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


def _app_info(info: ImageInfo, claims: Claims, overrides: Overrides) -> tuple[AppInfo, list[str]]:
    """Rules 6 and 7."""
    app = info.app
    if app is None:
        raise PipelineError(Reason.AppDescriptorMissing, "The application has no descriptor.", "Build it with ESP-IDF.")
    warnings: list[str] = []
    values: dict[str, str] = {}
    for what, found, claimed, given, option, reason in (
        ("project name", app.project_name, claims.project_name, overrides.name, "--name", Reason.AppNameMissing),
        ("version", app.version, claims.version, overrides.version, "--app-version", Reason.AppVersionMissing),
    ):
        if claimed is not None and found:
            _compare(what, claimed.encode()[:_DESCRIPTOR_TEXT].decode(errors="ignore"), found, claims.source)
        if given and found and given != found:
            warnings.append(f"The artifact's {what} is {given!r}, but the device will report {found!r}.")
        if not (given or found):
            raise PipelineError(
                reason,
                f"The application descriptor holds no {what}; an artifact without one could not be told apart.",
                f"Set it in the build, or give it with {option}.",
            )
        values[what] = given or found
    _compare("secure version", claims.secure_version, app.secure_version, claims.source)
    _compare("minimum chip revision", claims.min_rev, info.min_rev, claims.source)
    if info.max_rev is not None:
        _compare("maximum chip revision", claims.max_rev, info.max_rev, claims.source)
    return (
        AppInfo(
            project_name=values["project name"],
            version=values["version"],
            secure_version=app.secure_version,
            idf_version=app.idf_version or None,
            elf_sha256=app.elf_sha256.hex() if any(app.elf_sha256) else None,
        ),
        warnings,
    )


def _tail_warnings(file: RawFile, info: ImageInfo, *, signed: bool) -> list[str]:
    warnings: list[str] = []
    if not info.fills_pages:
        rest = -info.image_length % info.mmu_page_size
        warnings.append(
            f"{file.name} leaves {rest} bytes of its last {info.mmu_page_size // 1024} KiB page mapped but unmeasured; "
            "build with padding to the MMU page to close the gap."
        )
    if not signed and file.data[info.image_length :].strip(b"\xff"):
        warnings.append(
            f"{file.name} has {len(file.data) - info.image_length} bytes behind the image that nothing measures."
        )
    return warnings
