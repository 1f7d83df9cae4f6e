# SPDX-License-Identifier: Apache-2.0
"""One chip of an artifact as JSON."""

import json
from typing import Any

from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.config import dumps
from firmware_pipeline.signing.release import read_sequence


def describe_chip(chip: ChipArtifact) -> dict[str, Any]:
    """The chip's part of `inspect --json`, and what `pull --json` adds."""
    statement = chip.release_statement
    return {
        "chip": chip.target,
        "manifest": chip.manifest_digest,
        "config": json.loads(dumps(chip.config)),
        "configDigest": chip.config_digest,
        "layers": [{"title": layer.title, "digest": layer.descriptor.digest} for layer in chip.layers],
        "releaseDigest": chip.release_digest,
        "releaseSequence": read_sequence(statement, chip.config) if statement else None,
    }
