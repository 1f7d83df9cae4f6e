# SPDX-License-Identifier: Apache-2.0
"""What firmware_pipeline refuses, in the product's own reasons: the same at a bench, in the operator and in a pod.

One table for artifacts, one for what does not fit a device: preflight and planning ask the same rules.
"""

from typing import Final

from firmware_pipeline.errors import PipelineError
from firmware_pipeline.errors import Reason as Pipeline
from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

ARTIFACT_REASONS: Final = {
    Pipeline.ReferenceNotFound: Reason.IMAGE_NOT_FOUND,
    Pipeline.ReferenceMalformed: Reason.IMAGE_NOT_FOUND,
    Pipeline.RegistryUnreachable: Reason.REGISTRY_UNAVAILABLE,
    Pipeline.RegistryTimeout: Reason.REGISTRY_UNAVAILABLE,
    Pipeline.RegistryBusy: Reason.REGISTRY_UNAVAILABLE,
    Pipeline.RegistryUnauthorized: Reason.REGISTRY_UNAUTHORIZED,
    Pipeline.RegistryForbidden: Reason.REGISTRY_UNAUTHORIZED,
    Pipeline.CredentialsMalformed: Reason.REGISTRY_UNAUTHORIZED,
    Pipeline.ForeignRealm: Reason.REGISTRY_UNAUTHORIZED,
    Pipeline.UnsignedArtifact: Reason.UNSIGNED,
    Pipeline.SignatureInvalid: Reason.SIGNATURE_MISSING,
    Pipeline.SignatureThreshold: Reason.SIGNATURE_MISSING,
    Pipeline.AnnotationMissing: Reason.ANNOTATION_MISSING,
    Pipeline.SbomMissing: Reason.SBOM_MISSING,
    Pipeline.ProvenanceMissing: Reason.PROVENANCE_MISSING,
    Pipeline.BuilderNotTrusted: Reason.BUILDER_NOT_TRUSTED,
    Pipeline.SignersNotConfigured: Reason.SIGNERS_NOT_CONFIGURED,
    Pipeline.KeyMalformed: Reason.KEY_UNREADABLE,
    Pipeline.PlatformMissing: Reason.NO_MATCHING_PLATFORM,
    Pipeline.PlatformAmbiguous: Reason.NO_MATCHING_PLATFORM,
    Pipeline.WrongChip: Reason.WRONG_CHIP,
    Pipeline.DigestMismatch: Reason.DIGEST_MISMATCH,
    Pipeline.SizeMismatch: Reason.DIGEST_MISMATCH,
    Pipeline.ReleaseMissing: Reason.RELEASE_INVALID,
    Pipeline.ReleaseInvalid: Reason.RELEASE_INVALID,
    Pipeline.StorageFailed: Reason.INTERNAL_ERROR,
}
"""All others are ArtifactInvalid."""

HARDWARE_REASONS: Final = {
    Pipeline.WrongChip: Reason.WRONG_CHIP,
    Pipeline.ChipRevisionTooLow: Reason.CHIP_REVISION,
    Pipeline.ChipRevisionTooHigh: Reason.CHIP_REVISION,
    Pipeline.FeatureMissing: Reason.NO_MATCHING_PLATFORM,
    Pipeline.FlashTooSmall: Reason.FLASH_TOO_SMALL,
    Pipeline.ImageBeyondFlash: Reason.FLASH_TOO_SMALL,
    Pipeline.ImageTooLarge: Reason.IMAGE_TOO_LARGE,
    Pipeline.PartitionTableMismatch: Reason.PARTITION_MISMATCH,
    Pipeline.SlotUnknown: Reason.NO_UPDATE_SLOT,
    Pipeline.SecureBootUnsigned: Reason.SECURE_BOOT_MISMATCH,
    Pipeline.EncryptionMismatch: Reason.SECURE_BOOT_MISMATCH,
    Pipeline.SecureDownloadMode: Reason.SECURE_BOOT_MISMATCH,
    Pipeline.SecurityVersionTooLow: Reason.SECURITY_VERSION_ROLLBACK,
    Pipeline.SecurityVersionBurnNotAllowed: Reason.SECURITY_VERSION_BURN,
    Pipeline.DowngradeNotAllowed: Reason.DOWNGRADE,
}
"""How a rule of `compatibility` is called in a task's status; all others are PreflightFailed."""


def artifact_error(error: PipelineError) -> FlashJobError:
    """The pipeline's refusal of an artifact; its own code stays in the message where it says more."""
    reason = ARTIFACT_REASONS.get(error.reason, Reason.ARTIFACT_INVALID)
    detail = "" if error.reason.value == reason.value else f" ({error.reason.value})"
    return FlashJobError(reason.value, f"{error.message}{detail}", error.next_step or reason.next_step)
