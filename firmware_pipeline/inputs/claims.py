# SPDX-License-Identifier: Apache-2.0
"""What is known of a build before its bytes are read: the files found, what the build system claims, the user's word."""

from dataclasses import dataclass

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.plan import Role


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
    """What a build system says; None = says nothing. `source` names the file that says so.

    Attributes:
        slot_size: bytes of the slot that the application is built for.
        bare_application: the application has no descriptor and no bootloader: the ROM starts it.
    """

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
    slot_size: int | None = None
    bare_application: bool = False
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


def disagrees(message: str, next_step: str = "Build again from a clean folder.") -> PipelineError:
    """The error where two things that are said of a build cannot both be true."""
    return PipelineError(Reason.InputDisagrees, message, next_step)


def compare(what: str, claimed: object, found: object, source: str) -> None:
    """Refuse a claim that the bytes contradict.

    Raises:
        PipelineError: InputDisagrees.
    """
    if claimed is not None and claimed != found:
        raise disagrees(f"{source} says {what} {claimed!s:.80}, the image's bytes say {found!s:.80}.")
