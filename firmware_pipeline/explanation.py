# SPDX-License-Identifier: Apache-2.0
"""Verify an artifact rule by rule, and keep what each rule said.

Order; the first of 1 and 2 that fails ends it, since nothing behind it could be believed:
    1. the policy: who signed, what is attached (`signing.policy`);
    2. the index, and each chip's manifest, config and release statement (`artifact`, `signing.release`);
       if owners are named, that each statement is there and signed by one of them;
    3. on request each image: its digest, and that its bytes are what the config says of them (`contents`);
    4. if the caller says what the device has: the downgrade rules (`downgrade`). Where neither sequence nor version can
       be compared this ends refused, not accepted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from firmware_pipeline import downgrade
from firmware_pipeline.artifact import ChipArtifact, chips, find_chip
from firmware_pipeline.contents import check_contents
from firmware_pipeline.downgrade import Installed, Offered, Outcome
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.chips import normalise_target
from firmware_pipeline.opening import open_manifest, read_layer, verify_policy
from firmware_pipeline.signing.keys import TrustedKey
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.signing.release import read_sequence, released_by
from firmware_pipeline.store import ArtifactStore


@dataclass(frozen=True, slots=True)
class Check:
    """What one rule said; `error` if it refused."""

    rule: str
    outcome: Outcome
    message: str
    error: PipelineError | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict and how it came about.

    Attributes:
        digest: what was judged.
        signers: names of the trusted keys that signed.
        chips: those that were looked at.
        checks: in order.
    """

    digest: str
    signers: tuple[str, ...]
    chips: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def refusal(self) -> PipelineError | None:
        """The first rule that refused, None = accepted."""
        return next((check.error for check in self.checks if check.error), None)


def explain(
    store: ArtifactStore,
    digest: str,
    policy: VerificationPolicy,
    *,
    chip: str | None = None,
    layers: bool = False,
    owners: Sequence[TrustedKey] = (),
    installed: Installed | None = None,
    allow_downgrade: bool = False,
) -> Explanation:
    """Apply the rules of the module.

    Args:
        store: where it is.
        digest: the pinned digest.
        policy: who must have signed, and what must be attached.
        chip: look at this one only.
        layers: fetch and check every image.
        owners: release keys that devices trust; several while one replaces another.
        installed: what the device has.
        allow_downgrade: lifts the downgrade rules that can be lifted.

    Raises:
        PipelineError: trouble on the way (Registry*, StorageFailed, ReferenceNotFound, SignersNotConfigured,
            PlatformMissing); refusals are in the result.
    """
    checks: list[Check] = []
    found: list[ChipArtifact] = []
    signers: tuple[str, ...] = ()
    rule = "signatures"
    try:
        verified = verify_policy(store, digest, policy)
        signers = verified.signers
        checks.append(Check(rule, Outcome.PASSED, f"signed by {', '.join(signers)}"))
        wanted = normalise_target(chip) if chip else None
        if wanted is not None and wanted not in chips(verified.index):
            find_chip(verified.index, wanted)  # says what is there instead
        for entry in verified.index.manifests:
            name = entry.platform.variant if entry.platform else None
            if name is None or wanted not in (None, name):
                continue
            rule = f"{name} manifest"
            found.append(open_manifest(store, entry.digest, name, size=entry.size))
            said = "with" if found[-1].release_statement else "without"
            checks.append(Check(rule, Outcome.PASSED, f"manifest and config agree, {said} release statement"))
    except PipelineError as error:
        if error.reason not in _REFUSALS:
            raise
        checks.append(Check(rule, Outcome.REFUSED, error.message, error))
    else:
        for artifact in found:
            checks += _owner(artifact, owners) if owners else ()
            checks += _images(store, artifact) if layers else ()
            checks += _downgrade(artifact, installed, allow_downgrade) if installed else ()
    return Explanation(digest, signers, tuple(artifact.target for artifact in found), tuple(checks))


_REFUSALS = frozenset(
    {
        Reason.AnnotationMissing,
        Reason.ArtifactMalformed,
        Reason.BuilderNotTrusted,
        Reason.ConfigMalformed,
        Reason.DigestMismatch,
        Reason.IdentityMismatch,
        Reason.MediaTypeUnsupported,
        Reason.ProvenanceMissing,
        Reason.ReleaseInvalid,
        Reason.SbomMissing,
        Reason.SignatureInvalid,
        Reason.SignatureThreshold,
        Reason.SizeMismatch,
        Reason.TooLarge,
        Reason.UnsignedArtifact,
        Reason.WrongChip,
    }
)


def _owner(chip: ChipArtifact, owners: Sequence[TrustedKey]) -> Iterator[Check]:
    rule = f"{chip.target} release"
    try:
        name, sequence = released_by(chip.release_statement, chip.config, owners)
    except PipelineError as error:
        yield Check(rule, Outcome.REFUSED, error.message, error)
    else:
        yield Check(rule, Outcome.PASSED, f"sequence {sequence}, released by {name}")


def _images(store: ArtifactStore, chip: ChipArtifact) -> Iterator[Check]:
    for layer in chip.layers:
        rule = f"{layer.title}"
        try:
            mismatches = check_contents(chip.config, layer.image, read_layer(store, layer))
        except PipelineError as error:
            if error.reason not in _REFUSALS:
                raise
            yield Check(rule, Outcome.REFUSED, error.message, error)
            continue
        for mismatch in mismatches:
            yield Check(rule, Outcome.REFUSED, mismatch.message, mismatch.to_error())
        if not mismatches:
            yield Check(rule, Outcome.PASSED, f"{layer.image.size} bytes are what the config says of them")


def _downgrade(chip: ChipArtifact, installed: Installed, allow_downgrade: bool) -> Iterator[Check]:
    app, statement = chip.config.app, chip.release_statement
    sequence = read_sequence(statement, chip.config) if statement else None
    offered = Offered(app.secure_version, sequence, app.version, app.project_name)
    verdict = downgrade.judge(offered, installed, allow_downgrade=allow_downgrade)
    for finding in verdict.findings:
        yield Check(f"{chip.target} {finding.name}", finding.outcome, finding.message, finding.to_error())
    asked = installed.sequence is not None or installed.version is not None
    if asked and not verdict.decided and not allow_downgrade:
        message = "neither release sequence nor version can be compared with the device's"
        step = "Name --device-sequence, or permit it with --allow-downgrade if it is known to be newer."
        error = PipelineError(Reason.DowngradeNotAllowed, f"{chip.target}: {message}.", step)
        yield Check(f"{chip.target} order", Outcome.REFUSED, message, error)
