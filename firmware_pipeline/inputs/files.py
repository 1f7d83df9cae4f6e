# SPDX-License-Identifier: Apache-2.0
"""Input: files named with their flash offsets ("0x10000=app.bin"), and the safe reading of build files.

Nothing else says what the files are, so their bytes must: roles come from content and from the partition table given.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.reconcile import Claims, Overrides, RawFile, reconcile
from firmware_pipeline.plan import MAX_FILE_SIZE, BuildPlan

_ASSIGNMENT = re.compile(r"(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One OFFSET=FILE: flash offset in bytes, path as given."""

    offset: int
    path: Path

    @classmethod
    def parse(cls, text: str) -> "Assignment":
        """Read "0x10000=path" (hex with 0x, or decimal).

        Raises:
            PipelineError: InputMalformed.
        """
        match = _ASSIGNMENT.fullmatch(text)
        if match is None or int(match[1], 0) >= 1 << 32:
            raise PipelineError(
                Reason.InputMalformed,
                f"{text[:80]!r} is not OFFSET=FILE with a 32-bit flash offset.",
                "Write for example 0x10000=build/app.bin.",
            )
        return cls(int(match[1], 0), Path(match[2]))


def read_file(path: Path, *, limit: int = MAX_FILE_SIZE) -> bytes:
    """The bytes of a regular file of 1 to `limit` bytes.

    Raises:
        PipelineError: InputMissing (absent, unreadable, not a regular file), InputMalformed (empty), InputTooLarge.
    """
    try:
        # Not blocking, so that a FIFO in place of the file is refused instead of waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PipelineError(
                    Reason.InputMissing, f"{path} is not a regular file.", "Name the .bin file of the build."
                )
            data = stream.read(limit + 1)
    except OSError as error:
        raise PipelineError(
            Reason.InputMissing,
            f"{path} cannot be read ({error.strerror}).",
            "Build the project, then check path and permissions.",
        ) from error
    if not data:
        raise PipelineError(Reason.InputMalformed, f"{path} is empty.", "Build the project again.")
    if len(data) > limit:
        raise PipelineError(
            Reason.InputTooLarge, f"{path} has more than {limit} bytes.", "Name the right file; no such file fits here."
        )
    return data


def read_inside(root: Path, relative: str) -> bytes:
    """The bytes of a file that a build file names, which must lie in the build folder, symlinks followed.

    Raises:
        PipelineError: InputEscapes, and what `read_file` raises.
    """
    path = root / relative
    if "\0" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        inside = False
    else:
        inside = path.resolve().is_relative_to(root.resolve())
    if not inside:
        raise PipelineError(
            Reason.InputEscapes,
            f"{relative[:120]!r} leads out of the build folder {root}, so its content is not the build's.",
            "Copy the file into the build folder; do not link or point to the outside.",
        )
    return read_file(path.resolve())


def load_files(
    assignments: Sequence[str | Assignment], *, chip: str | None = None, overrides: Overrides | None = None
) -> BuildPlan:
    """Reduce OFFSET=FILE arguments to a plan.

    Args:
        assignments: texts or parsed assignments; at least the application.
        chip: target name; None = what the application's image header says.
        overrides: name, version and provenance given by the user.

    Raises:
        PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
    """
    parsed = [Assignment.parse(item) if isinstance(item, str) else item for item in assignments]
    files = [RawFile(item.offset, item.path.name, read_file(item.path)) for item in parsed]
    return reconcile(files, Claims(source="the command line", chip=chip), overrides or Overrides())
