# SPDX-License-Identifier: Apache-2.0
"""The builds named on a command line: folders, `@FILE` with esptool's arguments, and groups of OFFSET=FILE.

`CHIP:OFFSET=FILE` belongs to the group of that chip; `OFFSET=FILE` without one to a group of its own.
"""

from collections.abc import Sequence
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.inputs.detect import load_build
from firmware_pipeline.inputs.esptool_args import EsptoolArgsInput
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.plan import BuildPlan

ESPTOOL_ARGS = EsptoolArgsInput()


def load_builds(
    arguments: Sequence[str],
    *,
    chip: str | None = None,
    kind: str | None = None,
    overrides: Overrides | None = None,
) -> list[BuildPlan]:
    """Load every build, in the order given, folders first.

    Args:
        arguments: folders, merged images, @FILE, OFFSET=FILE, CHIP:OFFSET=FILE.
        chip: for the OFFSET=FILE without chip; None reads it from the image.
        kind: what the folders are; None detects it.
        overrides: name, version and provenance given by the user.

    Raises:
        PipelineError: Input*, App*, UnknownChip, and whatever the images' parsers refuse.
    """
    groups: dict[str, list[str]] = {}
    builds: list[tuple[Path, str | None]] = []
    for argument in arguments:
        head, equals, _ = argument.partition("=")
        if argument.startswith("@"):
            builds.append((Path(argument[1:]), ESPTOOL_ARGS.name))
            continue
        if not equals or Path(argument).exists():
            builds.append((Path(argument), kind))
            continue
        name, colon, _ = head.partition(":")
        target = by_target(name).target if colon else ""
        groups.setdefault(target, []).append(argument.split(":", 1)[1] if colon else argument)
    for path, _ in builds:
        if not path.exists():
            raise PipelineError(
                Reason.InputNotRecognised,
                f"{path} is neither a build folder or image that exists, nor OFFSET=FILE.",
                "Name a build folder, or files as 0x10000=build/app.bin.",
            )
    plans = [load_build(path, overrides=overrides, kind=each) for path, each in builds]
    return plans + [load_files(files, chip=target or chip, overrides=overrides) for target, files in groups.items()]
