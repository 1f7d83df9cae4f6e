# SPDX-License-Identifier: Apache-2.0
"""Finds the input that knows a build (a folder, or one file), and loads it."""

from pathlib import Path
from typing import Protocol

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.arduino import ArduinoInput
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.inputs.espidf import EspIdfInput
from firmware_pipeline.inputs.esptool_args import EsptoolArgsInput
from firmware_pipeline.inputs.merged import MergedInput
from firmware_pipeline.inputs.platformio import PlatformIoInput
from firmware_pipeline.inputs.zephyr import ZephyrInput
from firmware_pipeline.plan import BuildPlan


class Input(Protocol):
    """One kind of build."""

    @property
    def name(self) -> str:
        """Word for `--from`."""

    def detect(self, path: Path) -> bool:
        """Whether what is at `path` is of this kind; reads no more than needed."""

    def load(self, path: Path, overrides: Overrides | None = None) -> BuildPlan:
        """Read, check and reduce it.

        Raises:
            PipelineError.
        """


INPUTS: tuple[Input, ...] = (
    EspIdfInput(),
    PlatformIoInput(),
    ArduinoInput(),
    ZephyrInput(),
    EsptoolArgsInput(),
    MergedInput(),
)


def load_build(path: Path, *, overrides: Overrides | None = None, kind: str | None = None) -> BuildPlan:
    """Load a build.

    Args:
        path: the build folder, or the one file.
        overrides: name, version and provenance given by the user.
        kind: name of the input to use; None = the one that recognises it.

    Raises:
        PipelineError: InputNotRecognised, InputAmbiguous, and whatever the input refuses.
    """
    chosen = [i for i in INPUTS if (i.name == kind if kind else i.detect(path))]
    if not chosen:
        known = ", ".join(i.name for i in INPUTS)
        raise PipelineError(
            Reason.InputNotRecognised,
            f"{path} is not a build that FlashJob knows" + (f" as {kind!r}." if kind else "."),
            f"Known kinds: {known}. Or name the files: 0x10000=app.bin.",
        )
    if len(chosen) > 1:
        raise PipelineError(
            Reason.InputAmbiguous,
            f"{path} looks like several kinds of build: {', '.join(i.name for i in chosen)}.",
            f"Say which one with --from {chosen[0].name}, or clean the folder and build again.",
        )
    return chosen[0].load(path, overrides)
