# SPDX-License-Identifier: Apache-2.0
"""Finds the input that knows a build (a folder, or one file), and loads it."""

from pathlib import Path
from typing import Protocol

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.inputs.espidf import EspIdfInput
from firmware_pipeline.inputs.merged import MergedInput
from firmware_pipeline.inputs.reconcile import Overrides
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


INPUTS: tuple[Input, ...] = (EspIdfInput(), MergedInput())


def load_build(path: Path, *, overrides: Overrides | None = None, kind: str | None = None) -> BuildPlan:
    """Load a build.

    Args:
        path: the build folder, or the one file.
        overrides: name, version and provenance given by the user.
        kind: name of the input to use; None = the first that recognises it.

    Raises:
        PipelineError: InputNotRecognised, and whatever the input refuses.
    """
    chosen = next((i for i in INPUTS if (i.name == kind if kind else i.detect(path))), None)
    if chosen is None:
        known = ", ".join(i.name for i in INPUTS)
        raise PipelineError(
            Reason.InputNotRecognised,
            f"{path} is not a build that FlashJob knows" + (f" as {kind!r}." if kind else "."),
            f"Known kinds: {known}. Or name the files: 0x10000=app.bin.",
        )
    return chosen.load(path, overrides)
