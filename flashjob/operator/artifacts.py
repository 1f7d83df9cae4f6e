# SPDX-License-Identifier: Apache-2.0
"""What the operator asks of artifacts: what a reference means, who signed it, what it makes of each chip.

Synchronous, so it runs in threads; every failure is a Refusal in the product's own reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from attestation.policy import RequiredSigners
from firmware_pipeline import api
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.credentials import Credentials, parse_docker_config
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.errors import Reason as Pipeline
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.signing.keys import load_trusted_key
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.store import ArtifactStore
from flashjob.pinning import pin, verification_policy
from flashjob.pipeline_reasons import artifact_error
from flashjob.planning.messages import with_next
from flashjob.planning.state import Refusal
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

VERSION_ANNOTATION: Final = "org.opencontainers.image.version"


class Refused(Exception):
    """An artifact, or a part of it, cannot be used."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason, refusal.message)
        self.refusal = refusal

    @property
    def passing(self) -> bool:
        """Whether the trouble may pass by itself."""
        return self.refusal.reason == Reason.REGISTRY_UNAVAILABLE


def refused(error: PipelineError) -> Refused:
    """The pipeline's error in the product's reasons. Trouble with the own disk may pass, as that of a registry."""
    found = artifact_error(error)
    passing = error.reason is Pipeline.StorageFailed
    reason = Reason.REGISTRY_UNAVAILABLE.value if passing else found.reason
    return Refused(Refusal(reason, f"{found.message} Next: {found.next_step}"[:1024]))


def job_policy(keys: Mapping[str, str], threshold: int) -> VerificationPolicy:
    """What a job demands: name -> PEM. Raises Refused for a key that cannot be read."""
    try:
        return VerificationPolicy([load_trusted_key(pem.encode(), name) for name, pem in keys.items()], threshold)
    except PipelineError as error:
        raise refused(error) from error


def device_policy(required: RequiredSigners) -> VerificationPolicy:
    """What an AttestationPolicy demands. Raises Refused for a key that cannot be read."""
    try:
        return verification_policy(required)
    except PipelineError as error:
        raise refused(error) from error


class Artifact(Protocol):
    """One repository's artifact. All methods raise Refused."""

    @property
    def repository(self) -> str:
        """Registry and repository, without tag or digest."""
        ...

    def resolve(self) -> str:
        """The digest that the reference means now."""
        ...

    def describe(self, digest: str) -> tuple[str, tuple[str, ...]]:
        """(version for people, chips that it has an image for)."""
        ...

    def verify(self, digest: str, policy: VerificationPolicy) -> tuple[str, ...]:
        """Names of those keys that signed the digest; Refused where not everything that the policy wants is proven."""
        ...

    def target(self, digest: str, chip: str) -> tuple[Target, FirmwareConfig]:
        """What a device of this chip is to become, and the signed config that says which devices it fits."""
        ...


class Artifacts(Protocol):
    """Where artifacts come from."""

    def open(self, image: str, *, plain_http: bool, docker_config: bytes | None) -> Artifact:
        """The artifact that a reference names; nothing is sent yet. Raises Refused for a malformed reference."""
        ...


class PipelineArtifact:
    """An Artifact in a registry, by firmware_pipeline."""

    def __init__(self, image: str, plain_http: bool, store: ArtifactStore) -> None:
        self._image, self._plain_http, self._store = image, plain_http, store

    @property
    def repository(self) -> str:
        """See Artifact."""
        return parse_reference(self._image).repository

    def resolve(self) -> str:
        """See Artifact."""
        try:
            return api.resolve(self._store, self._image)
        except PipelineError as error:
            raise refused(error) from error

    def describe(self, digest: str) -> tuple[str, tuple[str, ...]]:
        """See Artifact."""
        try:
            index = api.open_index(self._store, digest)
        except PipelineError as error:
            raise refused(error) from error
        chips = sorted({m.platform.variant for m in index.manifests if m.platform and m.platform.variant})
        return index.annotations.get(VERSION_ANNOTATION, "")[:128], tuple(chips)

    def verify(self, digest: str, policy: VerificationPolicy) -> tuple[str, ...]:
        """See Artifact."""
        try:
            return api.verify_policy(self._store, digest, policy).signers
        except PipelineError as error:
            raise refused(error) from error

    def target(self, digest: str, chip: str) -> tuple[Target, FirmwareConfig]:
        """See Artifact."""
        try:
            found = api.open_chip(self._store, digest, chip)
            return pin(self.repository, digest, found, plain_http=self._plain_http), found.config
        except PipelineError as error:
            raise refused(error) from error


@dataclass(frozen=True, slots=True)
class PipelineArtifacts:
    """Artifacts in registries.

    Args:
        ca_file: PEM certificates to trust instead of the system's.
    """

    ca_file: Path | None = None

    def open(self, image: str, *, plain_http: bool, docker_config: bytes | None) -> Artifact:
        """See Artifacts. A layout directory is refused: it would be one of the operator's own disk."""
        try:
            reference = parse_reference(image)
            if reference.is_layout:
                raise Refused(
                    Refusal(
                        Reason.IMAGE_NOT_FOUND.value,
                        with_next(Reason.IMAGE_NOT_FOUND, f"{image} is a directory; a FlashJob names a registry"),
                    )
                )
            credentials = Credentials()
            if docker_config is not None:
                credentials = Credentials(files=(parse_docker_config(docker_config, "the pull secret"),))
            options = ClientOptions(credentials=credentials, plain_http=plain_http, ca_file=self.ca_file)
            return PipelineArtifact(image, plain_http, api.open_store(reference, options))
        except PipelineError as error:
            raise refused(error) from error
