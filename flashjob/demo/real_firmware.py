# SPDX-License-Identifier: Apache-2.0
"""Real application images for the demo's version 2.0: which chip gets which file, and what the file calls itself.

Rules:

1. Every `*-app.bin` of the directory must be an application image; for a chip with several, the first by name is taken.
2. A chip without one keeps the image of the project's own builder; a directory that serves no chip at all is refused.
3. Artifact and release carry the name and version given at the push; a device certifies what its image says of itself.
   An image without a name is certified as `unnamed`. Neither is bent to fit the other: the measurement is compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.image import parse_image
from flashjob.errors import FlashJobError
from flashjob.virtual.bootloader import UNNAMED

PATTERN: Final = "*-app.bin"


@dataclass(frozen=True, slots=True)
class RealImage:
    """One real image: its file, its chip, and the name under which a device certifies it."""

    path: Path
    chip: str
    name: str


def real_images(directory: Path, chips: Iterable[str]) -> dict[str, RealImage]:
    """The real images of a directory by chip, for these chips.

    Raises:
        FlashJobError: `FirmwareNotFound` or `FirmwareUnusable`, with the file.
    """
    if not directory.is_dir():
        raise FlashJobError(
            "FirmwareNotFound",
            f"--firmware {directory} is not a directory",
            f"name a directory with application images ({PATTERN}), or leave --firmware and FLASHJOB_FIRMWARE_DIR out",
        )
    wanted, found = sorted(set(chips)), dict[str, RealImage]()
    for path in sorted(directory.glob(PATTERN)):
        try:
            info = parse_image(path.read_bytes())
        except (OSError, PipelineError) as error:
            raise FlashJobError("FirmwareUnusable", f"{path}: {error}", "remove the file, or replace it") from error
        if info.app is None:
            raise FlashJobError("FirmwareUnusable", f"{path} holds no application descriptor", "give an application")
        if info.chip.target in wanted and info.chip.target not in found:
            found[info.chip.target] = RealImage(path, info.chip.target, info.app.project_name or UNNAMED)
    if not found:
        raise FlashJobError(
            "FirmwareNotFound",
            f"{directory} has no application image ({PATTERN}) for any of {', '.join(wanted)}",
            "the application is the file that `idf.py build` names after the project; rename a copy to NAME-app.bin",
        )
    return found
