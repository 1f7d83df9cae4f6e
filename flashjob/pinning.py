# SPDX-License-Identifier: Apache-2.0
"""Who must vouch for an artifact, and one chip's firmware of it, pinned as the Target that everything else relies on."""

from attestation.policy import RequiredSigners
from firmware_pipeline.artifact import ChipArtifact
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.data_partitions import takes_image
from firmware_pipeline.plan import DATA_ROLES
from firmware_pipeline.signing.keys import load_trusted_key
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.signing.release import read_sequence
from flashjob.wire.target import MOST_DATA_IMAGES, DataImage, Measurement, Target


def verification_policy(required: RequiredSigners) -> VerificationPolicy:
    """What an AttestationPolicy demands of artifacts.

    Raises:
        PipelineError: KeyMalformed.
    """
    return VerificationPolicy(
        keys=tuple(load_trusted_key(signer.public_key.encode(), signer.name) for signer in required.keys),
        threshold=required.threshold,
        annotations={annotation.key: annotation.value for annotation in required.required_annotations},
        sbom=required.require_sbom,
        provenance=required.require_provenance,
        builders=frozenset(required.builders),
    )


def pin(repository: str, index_digest: str, chip: ChipArtifact, *, plain_http: bool = False) -> Target:
    """The Target of one chip.

    Args:
        repository: registry and repository, without tag; or a layout.
        index_digest: the verified index.
        chip: as read through that index.
        plain_http: the registry is spoken to without TLS.

    Raises:
        PipelineError: ReleaseInvalid, the release statement does not fit the config; ConfigMalformed, too many images.
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
        data_images=_data_images(config),
        partition_table=config.partition_table_sha256,
        plain_http=plain_http,
    )


def _data_images(config: FirmwareConfig) -> tuple[DataImage, ...]:
    """What a wipe writes into data partitions; an artifact without a table tells only where they begin."""
    rows = {row.offset: row.to_partition() for row in config.partitions}
    images = ((rows.get(image.offset), image) for image in config.images if image.role in DATA_ROLES)
    found = tuple(
        DataImage(label=row.name if row else f"0x{image.offset:x}", digest=image.digest)
        for row, image in images
        if row is None or takes_image(row)
    )
    if len(found) > MOST_DATA_IMAGES:
        raise PipelineError(
            Reason.ConfigMalformed,
            f"The artifact holds images for {len(found)} data partitions; at most {MOST_DATA_IMAGES} can be pinned.",
            "Build fewer and larger data partitions.",
        )
    return found
