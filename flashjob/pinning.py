# SPDX-License-Identifier: Apache-2.0
"""One chip's firmware, pinned: from what was read of a verified artifact to the Target that everything else relies on."""

from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.signing.release import read_sequence
from flashjob.wire.target import Measurement, Target


def pin(repository: str, index_digest: str, chip: ChipArtifact, *, plain_http: bool = False) -> Target:
    """The Target of one chip.

    Args:
        repository: registry and repository, without tag; or a layout.
        index_digest: the verified index.
        chip: as read through that index.
        plain_http: the registry is spoken to without TLS.

    Raises:
        PipelineError: ReleaseInvalid, the release statement does not fit the config.
    """
    config, app = chip.config, chip.config.app_image
    statement = chip.release_statement
    return Target(
        repository=repository,
        index_digest=index_digest,
        manifest_digest=chip.manifest_digest,
        config_digest=chip.config_digest,
        release_digest=chip.release_digest,
        chip=config.chip.target,
        chip_id=config.chip.chip_id,
        application=config.app.project_name,
        version=config.app.version,
        secure_version=config.app.secure_version,
        sequence=read_sequence(statement, config) if statement is not None else 0,
        image_size=app.size,
        image_digest=app.digest,
        measurements=tuple(Measurement(scheme=m.scheme, alg=m.alg, value=m.value) for m in config.measurements),
        plain_http=plain_http,
    )
