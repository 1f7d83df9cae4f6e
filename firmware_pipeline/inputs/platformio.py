# SPDX-License-Identifier: Apache-2.0
"""Input: PlatformIO, a project or one environment's build folder (`.pio/build/<env>`).

`idedata.json` (left by `pio run -t idedata`) lists bootloader, partition table and further images with offsets in
`extra.flash_images`, the application's offset in `extra.application_offset`. Its paths are those of the machine that
built: the files are looked up by name in the build folder. `boot_app0.bin` lies in PlatformIO's packages and is made here.
Without it, `firmware.bin`, `bootloader.bin` and `partitions.bin` are placed by chip and partition table.
"""

from pathlib import Path, PureWindowsPath
from typing import Annotated

from pydantic import Field

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.arduino import BOOT_APP0, files_by_table
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile
from firmware_pipeline.inputs.files import read_inside
from firmware_pipeline.inputs.foreign import Foreign, flash_offset, malformed, read_json, validate
from firmware_pipeline.inputs.otadata_default import first_slot
from firmware_pipeline.inputs.reconcile import reconcile
from firmware_pipeline.plan import BuildPlan, Role

IDEDATA = "idedata.json"
APPLICATION = "firmware.bin"


class _FlashImage(Foreign):
    offset: str
    path: str


class _Extra(Foreign):
    flash_images: Annotated[tuple[_FlashImage, ...], Field(max_length=64, strict=False)] = ()
    application_offset: str | None = None


class _IdeData(Foreign):
    extra: _Extra
    env_name: str | None = None


class PlatformIoInput:
    """Recognises and loads a PlatformIO build."""

    name = "platformio"

    def detect(self, path: Path) -> bool:
        """Whether `path` is a build folder of PlatformIO, or a project with one."""
        return any(_environments(path))

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Reduce the build to a plan.

        Raises:
            PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
        """
        found = _environments(path)
        if len(found) != 1:
            raise PipelineError(
                Reason.InputAmbiguous if found else Reason.InputMissing,
                f"{path} has {len(found)} built environments ({', '.join(folder.name for folder in found)}).",
                "Build with `pio run`, then name one environment's folder: .pio/build/<env>.",
            )
        folder = found[0]
        described = (folder / IDEDATA).exists()
        files = _described(folder) if described else files_by_table(folder, APPLICATION, stem="")
        claims = Claims(source=IDEDATA if described else "the PlatformIO build", framework="platformio")
        return reconcile(files, claims, overrides or Overrides())


def _environments(path: Path) -> list[Path]:
    def built(folder: Path) -> bool:
        beside = (folder / IDEDATA, folder / "partitions.bin")
        return (folder / APPLICATION).is_file() and any(file.is_file() for file in beside)

    if not path.is_dir():
        return []
    return [path] if built(path) else sorted(folder for folder in path.glob(".pio/build/*") if built(folder))


def _described(folder: Path) -> list[RawFile]:
    path = folder / IDEDATA
    extra = validate(_IdeData, read_json(path), path).extra
    if extra.application_offset is None:
        raise malformed(path, "extra.application_offset is missing")
    at = flash_offset(extra.application_offset, path)
    files = [RawFile(at, APPLICATION, read_inside(folder, APPLICATION), Role.APP)]
    for image in extra.flash_images:
        name = PureWindowsPath(image.path).name  # takes both kinds of slashes
        made = name == BOOT_APP0 and not (folder / name).exists()
        data = first_slot() if made else read_inside(folder, name)
        files.append(RawFile(flash_offset(image.offset, path), name, data))
    return files
