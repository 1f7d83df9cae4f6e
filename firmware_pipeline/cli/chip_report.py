# SPDX-License-Identifier: Apache-2.0
"""One chip of an artifact as JSON."""

import json
from typing import Any

from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.config import dumps


def describe_chip(chip: ChipArtifact) -> dict[str, Any]:
    """The chip's part of `inspect --json`, and what `pull --json` adds."""
    sequence, statement = None, chip.release_statement
    if statement is not None:
        from firmware_pipeline.signing.release import read_sequence

        sequence = read_sequence(statement, chip.config)
    return {
        "chip": chip.target,
        "manifest": chip.manifest_digest,
        "config": json.loads(dumps(chip.config)),
        "configDigest": chip.config_digest,
        "layers": [{"title": layer.title, "digest": layer.descriptor.digest} for layer in chip.layers],
        "releaseDigest": chip.release_digest,
        "releaseSequence": sequence,
    }
