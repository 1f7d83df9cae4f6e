# SPDX-License-Identifier: Apache-2.0
"""The builds named on a command line: folders, and groups of OFFSET=FILE, each group one chip's build.

`CHIP:OFFSET=FILE` belongs to the group of that chip; `OFFSET=FILE` without one to a group of its own.
"""

from collections.abc import Sequence
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.inputs.detect import load_build
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.plan import BuildPlan


def load_builds(
    arguments: Sequence[str],
    *,
    chip: str | None = None,
    kind: str | None = None,
    overrides: Overrides | None = None,
) -> list[BuildPlan]:
    """Load every build, in the order given, folders first.

    Args:
        arguments: folders, OFFSET=FILE, CHIP:OFFSET=FILE.
        chip: for the OFFSET=FILE without chip; None reads it from the image.
        kind: what the folders are; None detects it.
        overrides: name, version and provenance given by the user.

    Raises:
        PipelineError: Input*, App*, UnknownChip, and whatever the images' parsers refuse.
    """
    groups: dict[str, list[str]] = {}
    folders = []
    for argument in arguments:
        head, equals, _ = argument.partition("=")
        if not equals or Path(argument).is_dir():
            folders.append(Path(argument))
            continue
        name, colon, _ = head.partition(":")
        target = by_target(name).target if colon else ""
        groups.setdefault(target, []).append(argument.split(":", 1)[1] if colon else argument)
    for folder in folders:
        if not folder.is_dir():
            raise PipelineError(
                Reason.InputNotRecognised,
                f"{folder} is neither a folder nor OFFSET=FILE.",
                "Name a build folder, or files as 0x10000=build/app.bin.",
            )
    plans = [load_build(folder, overrides=overrides, kind=kind) for folder in folders]
    return plans + [load_files(files, chip=target or chip, overrides=overrides) for target, files in groups.items()]
