# SPDX-License-Identifier: Apache-2.0
"""Documents that options name: SBOMs, provenance, other files."""

import os
from pathlib import Path

from typer import BadParameter

from firmware_pipeline.attaching import ALL_CHIPS, attaching
from firmware_pipeline.attachments import MAX_FILE_BYTES, Document
from firmware_pipeline.cli.options import Attachments
from firmware_pipeline.cli.running import err
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.chips import normalise_target
from firmware_pipeline.provenance import make_provenance
from firmware_pipeline.pushing import Attach
from firmware_pipeline.sbom import read_sbom
from firmware_pipeline.signing.keys import Signer


def attach_callback(attachments: Attachments, signer: Signer | None) -> Attach:
    """What `push`, `pack` and `index` attach. All files are read and checked here, before anything is
    stored.

    Raises:
        PipelineError: SbomMalformed, ProvenanceMalformed.
    """
    if attachments.provenance != (attachments.builder is not None):
        raise BadParameter("--provenance and --builder URI belong together")
    if attachments.builder is not None:
        make_provenance([], attachments.builder, {})
    sboms = [_sbom(text) for text in attachments.sbom or ()]
    if signer is None:
        err("warning: what is attached is not signed (--sign): no policy will count it.")
    return attaching(sboms, attachments.builder, os.environ, signer)


def read_document(path: Path) -> bytes:
    """The whole content of a file that an option names; wrong usage if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadParameter(f"{path}: {error.strerror or error}") from None


def _sbom(text: str) -> tuple[str, Document]:
    """FILE, or CHIP=FILE when what stands before the sign is a chip."""
    chip, equals, name = text.partition("=")
    try:
        target = normalise_target(chip) if equals else ALL_CHIPS
    except PipelineError:
        target = ALL_CHIPS
    path = Path(name if target else text)
    return target, read_sbom(read_document(path), path)
