# SPDX-License-Identifier: Apache-2.0
"""Input: the build folder of an ESP-IDF project.

`flasher_args.json` names the files, their offsets and the flash settings; `project_description.json` and
`config/sdkconfig.json`, where they exist, add name, version, target, revision limits and secure version. All are
claims: `reconcile` holds them against the bytes. Files are only read from inside the build folder.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.files import read_inside
from firmware_pipeline.inputs.foreign import Foreign, flash_offset, optional, read_json, validate
from firmware_pipeline.inputs.reconcile import Claims, Overrides, RawFile, reconcile
from firmware_pipeline.plan import BuildPlan, Role

FLASHER_ARGS = "flasher_args.json"
PROJECT_DESCRIPTION = "project_description.json"
SDKCONFIG = "config/sdkconfig.json"

_ROLES = {
    "bootloader": Role.BOOTLOADER,
    "app": Role.APP,
    "partition-table": Role.PARTITION_TABLE,
    "partition_table": Role.PARTITION_TABLE,
    "otadata": Role.OTADATA,
}


class _Part(Foreign):
    offset: str
    file: str
    encrypted: bool = False

    @field_validator("encrypted", mode="before")
    @classmethod
    def _as_bool(cls, value: object) -> object:
        return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


class _FlashSettings(Foreign):
    flash_mode: str | None = None
    flash_size: str | None = None
    flash_freq: str | None = None


class _EsptoolArgs(Foreign):
    chip: str | None = None


class _FlasherArgs(Foreign):
    flash_files: Annotated[dict[str, str], Field(min_length=1, max_length=64)]
    flash_settings: _FlashSettings = _FlashSettings()
    extra_esptool_args: _EsptoolArgs = _EsptoolArgs()


class _ProjectDescription(Foreign):
    project_name: str | None = None
    project_version: str | None = None
    target: str | None = None
    app_bin: str | None = None
    min_rev: str | int | None = None
    max_rev: str | int | None = None
    git_revision: str | None = None


class _SdkConfig(Foreign):
    BOOTLOADER_APP_SECURE_VERSION: int | None = None


class EspIdfInput:
    """Recognises and loads an ESP-IDF build folder."""

    name = "espidf"

    def detect(self, path: Path) -> bool:
        """Whether `path` is a folder with flasher_args.json."""
        return (path / FLASHER_ARGS).is_file()

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Reduce the build folder to a plan.

        Raises:
            PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
        """
        raw = read_json(path / FLASHER_ARGS)
        args = validate(_FlasherArgs, raw, path / FLASHER_ARGS)
        parts = _parts(raw, path / FLASHER_ARGS)
        project = optional(_ProjectDescription, path / PROJECT_DESCRIPTION)
        sdk = optional(_SdkConfig, path / SDKCONFIG)

        files: list[RawFile] = []
        for text, name in args.flash_files.items():
            offset = flash_offset(text, path / FLASHER_ARGS)
            claim = next(
                ((role, part) for role, part in parts if flash_offset(part.offset, path / FLASHER_ARGS) == offset), None
            )
            if claim is not None and claim[1].file != name:
                raise PipelineError(
                    Reason.InputDisagrees,
                    f"{FLASHER_ARGS} names both {name!r} and {claim[1].file!r} for offset 0x{offset:x}.",
                    "Build again from a clean folder.",
                )
            role, encrypt = (claim[0], claim[1].encrypted) if claim else (None, False)
            files.append(RawFile(offset, Path(name).name, read_inside(path, name), role, encrypt))
        app = next((name for name in args.flash_files.values() if name == project.app_bin), None)
        if project.app_bin is not None and app is None:
            raise PipelineError(
                Reason.InputDisagrees,
                f"{PROJECT_DESCRIPTION} names the application {project.app_bin!r}, which {FLASHER_ARGS} does not flash.",
                "Build again from a clean folder.",
            )
        chips = [chip for chip in (args.extra_esptool_args.chip, project.target) if chip and chip != "auto"]
        if len({chip.lower().replace("-", "") for chip in chips}) > 1:
            raise PipelineError(
                Reason.InputDisagrees,
                f"{FLASHER_ARGS} says chip {chips[0]}, {PROJECT_DESCRIPTION} says {chips[1]}.",
                "Build again from a clean folder.",
            )
        claims = Claims(
            source="the ESP-IDF build",
            chip=chips[0] if chips else None,
            flash_mode=args.flash_settings.flash_mode,
            flash_freq=args.flash_settings.flash_freq,
            flash_size=args.flash_settings.flash_size,
            project_name=project.project_name,
            version=project.project_version,
            secure_version=sdk.BOOTLOADER_APP_SECURE_VERSION,
            min_rev=_number(project.min_rev),
            max_rev=_number(project.max_rev),
            framework="espidf",
            framework_version=project.git_revision,
        )
        return reconcile(files, claims, overrides or Overrides())


def _number(value: str | int | None) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() and value.isascii() else None
    return value


def _parts(raw: dict[str, Any], path: Path) -> list[tuple[Role | None, _Part]]:
    """Every top-level object that describes one file: {offset, file, encrypted}."""
    return [
        (_ROLES.get(key), validate(_Part, value, path))
        for key, value in raw.items()
        if isinstance(value, dict) and {"offset", "file"} <= value.keys()
    ]
