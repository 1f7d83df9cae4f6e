# SPDX-License-Identifier: Apache-2.0
"""Input: the arguments of `esptool write-flash` in a file (`flash_args`, or `@FILE`): options, then OFFSET FILE pairs.

Texts are split as a shell does; files lie beside the arguments' file or below. Options that change what is written are
claims or marks (`--flash-*`, `--chip`, `--encrypt`); those of the connection are read over; any other is refused.
"""

import shlex
from pathlib import Path

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.claims import Claims, Overrides, RawFile
from firmware_pipeline.inputs.files import read_inside
from firmware_pipeline.inputs.foreign import flash_offset, malformed, read_text
from firmware_pipeline.inputs.reconcile import reconcile
from firmware_pipeline.plan import BuildPlan

FLASH_ARGS = "flash_args"
_CLAIMS = {
    "--flash-mode": "flash_mode", "-fm": "flash_mode", "--flash-freq": "flash_freq", "-ff": "flash_freq",
    "--flash-size": "flash_size", "-fs": "flash_size", "--chip": "chip", "-c": "chip",
}  # fmt: skip
_WITH_VALUE = frozenset({"--port", "-p", "--baud", "-b", "--before", "--after"})
_FLAGS = frozenset({"--compress", "-z", "--no-compress", "-u", "--no-stub", "--verify", "--no-progress"})
_MOST_FILES = 64


def read_args(path: Path) -> tuple[list[RawFile], Claims]:
    """The files named, and what the options claim.

    Raises:
        PipelineError: InputMalformed, InputEscapes, InputMissing, InputTooLarge.
    """
    try:
        words = shlex.split(read_text(path), comments=False)
    except ValueError as error:
        raise malformed(path, str(error)) from error
    said: dict[str, str] = {}
    encrypt, pairs, rest = False, list[str](), iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if not word.startswith("-"):
            if word.replace("_", "-") != "write-flash":
                pairs.append(word)
        elif option in _CLAIMS or option in _WITH_VALUE:
            value = value if equals else next(rest, "")
            if not value:
                raise malformed(path, f"option {option} has no value")
            if option in _CLAIMS and value != "auto":
                said[_CLAIMS[option]] = value
        elif option == "--encrypt":
            encrypt = True
        elif option not in _FLAGS:
            raise malformed(path, f"option {option[:40]} is not one that we know")
    if not pairs or len(pairs) % 2 or len(pairs) > 2 * _MOST_FILES:
        raise malformed(path, f"{len(pairs)} words are not pairs of OFFSET FILE, 1 to {_MOST_FILES}")
    files = [
        RawFile(flash_offset(at, path), Path(name).name, read_inside(path.parent, name), encrypt=encrypt)
        for at, name in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return files, Claims(
        source=path.name,
        chip=said.get("chip"),
        flash_mode=said.get("flash_mode"),
        flash_freq=said.get("flash_freq"),
        flash_size=said.get("flash_size"),
    )


class EsptoolArgsInput:
    """Recognises and loads a folder with `flash_args`, or such a file."""

    name = "esptool-args"

    def detect(self, path: Path) -> bool:
        """Whether `path` has `flash_args` that no build system describes better (`--from esptool-args` forces it)."""
        better = (path / "flasher_args.json").exists() or any(path.glob("*.ino.bin"))
        return path.is_dir() and (path / FLASH_ARGS).is_file() and not better

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Reduce the arguments to a plan; `path` is the file, or a folder with `flash_args`.

        Raises:
            PipelineError: Input*, App*, and whatever the parsers of `esp` refuse.
        """
        file = path / FLASH_ARGS if path.is_dir() else path
        if not file.exists():
            raise PipelineError(
                Reason.InputMissing, f"There is no {file}.", "Name the file with esptool's arguments as @FILE."
            )
        return reconcile(*read_args(file), overrides or Overrides())
