# SPDX-License-Identifier: Apache-2.0
"""The one error type of firmware_pipeline and its stable reason codes.

A reason is an API: it reaches FlashTask statuses, CLIs and scripts, so a value is never renamed or reused.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why firmware was refused; one line each."""

    # --- images and flash structures (esp/) -------------------------------------------------------------
    NotAnImage = "NotAnImage"  # the bytes do not begin like an ESP image
    ImageTruncated = "ImageTruncated"  # header or segments promise more bytes than there are
    ImageMalformed = "ImageMalformed"  # a header or segment field has a value no tool writes
    ImageChecksumMismatch = "ImageChecksumMismatch"  # XOR checksum over the segments is wrong
    ImageHashMismatch = "ImageHashMismatch"  # the hash that an image carries is not that of its bytes
    ImageHashMissing = "ImageHashMissing"  # an MCUboot image without the hash that measures it, or with several
    UnknownChip = "UnknownChip"  # chip name or chip id is not in the chip table
    AppDescriptorMissing = "AppDescriptorMissing"  # an application image without esp_app_desc_t
    AppDescriptorMalformed = "AppDescriptorMalformed"  # its texts or fields cannot be right
    PartitionTableMalformed = "PartitionTableMalformed"  # partition table does not parse or contradicts itself
    PartitionTableHashMismatch = "PartitionTableHashMismatch"  # its MD5 row is wrong
    OtadataMalformed = "OtadataMalformed"  # OTA data of a wrong size, or its sequence is exhausted
    SecureBootSignatureMalformed = "SecureBootSignatureMalformed"  # signature sector does not fit the image

    # --- build inputs (inputs/, plan) -------------------------------------------------------------------
    InputNotRecognised = "InputNotRecognised"  # no input adapter knows this folder or argument
    InputAmbiguous = "InputAmbiguous"  # several input adapters know this folder
    InputMalformed = "InputMalformed"  # a build file is not what its format demands
    InputMissing = "InputMissing"  # a file named by the build does not exist
    InputEscapes = "InputEscapes"  # a path or symlink leads out of the build folder
    InputTooLarge = "InputTooLarge"  # a file larger than any flash chip
    InputDisagrees = "InputDisagrees"  # what a build file says and what the bytes say differ
    AppMissing = "AppMissing"  # a build without an application image
    AppAmbiguous = "AppAmbiguous"  # a build with several application images
    AppNameMissing = "AppNameMissing"  # the application descriptor holds no project name
    AppVersionMissing = "AppVersionMissing"  # the application descriptor holds no version
    FeatureMalformed = "FeatureMalformed"  # a platform feature that is not of the known vocabulary
    ConfigMalformed = "ConfigMalformed"  # the signed config is not valid JSON of its schema

    # --- compatibility of firmware and hardware (compatibility.py) --------------------------------------
    WrongChip = "WrongChip"  # built for another chip
    ChipRevisionTooLow = "ChipRevisionTooLow"  # chip is older than the image's minimum
    ChipRevisionTooHigh = "ChipRevisionTooHigh"  # chip is newer than the image's maximum
    FeatureMissing = "FeatureMissing"  # the device lacks a hardware feature that the image demands
    FlashTooSmall = "FlashTooSmall"  # the image was built for a larger flash chip than the device has
    ImageBeyondFlash = "ImageBeyondFlash"  # an image ends behind the end of the flash chip
    ImageTooLarge = "ImageTooLarge"  # an image is larger than its partition or slot
    OffsetMisaligned = "OffsetMisaligned"  # an offset is not on the boundary that its role demands
    ImagesOverlap = "ImagesOverlap"  # two images, or an image and the partition table, share a flash sector
    BootloaderOffsetWrong = "BootloaderOffsetWrong"  # a bootloader where this chip's ROM does not look
    RoleNotAllowed = "RoleNotAllowed"  # writing this role needs a permission that was not given
    SecureBootUnsigned = "SecureBootUnsigned"  # the device enforces secure boot, the image is not signed
    EncryptionMismatch = "EncryptionMismatch"  # flash encryption of device and artifact do not fit
    SecureDownloadMode = "SecureDownloadMode"  # secure download: what was written could not be verified
    SecurityVersionTooLow = "SecurityVersionTooLow"  # secure_version below the device's eFuse counter
    SecurityVersionUnrepresentable = "SecurityVersionUnrepresentable"  # more than this chip's eFuse can count
    SecurityVersionBurnNotAllowed = "SecurityVersionBurnNotAllowed"  # would burn eFuses for ever, unasked
    PartitionTableMismatch = "PartitionTableMismatch"  # the device's partition table is not the artifact's
    SlotUnknown = "SlotUnknown"  # no inactive application slot is known, so none can be written
    DowngradeNotAllowed = "DowngradeNotAllowed"  # release sequence below the device's
    HardwareUnknown = "HardwareUnknown"  # a fact that must be known before writing was not read

    # --- artifact, registry, signatures -----------------------------------------------------------------
    ReferenceMalformed = "ReferenceMalformed"  # not a registry reference
    ReferenceNotFound = "ReferenceNotFound"  # unknown repository, tag or digest
    RegistryUnauthorized = "RegistryUnauthorized"  # credentials are missing or refused
    RegistryForbidden = "RegistryForbidden"  # the credentials are good, but not for this repository or action
    RegistryUnreachable = "RegistryUnreachable"  # no connection, or the registry failed
    RegistryTimeout = "RegistryTimeout"  # the registry answered too slowly, or stopped in the middle
    RegistryBusy = "RegistryBusy"  # the registry asked to come back later than we are willing to wait
    ForeignRealm = "ForeignRealm"  # the token service is on a host that may not see our credentials
    ForeignUpload = "ForeignUpload"  # the registry wants the upload sent to another host
    RedirectRefused = "RedirectRefused"  # a redirect that is unsafe to follow
    CredentialsMalformed = "CredentialsMalformed"  # a credentials file that cannot be read
    StorageFailed = "StorageFailed"  # a local file or folder cannot be read or written
    RegistryProtocol = "RegistryProtocol"  # the registry answered something the specification forbids
    ArtifactMalformed = "ArtifactMalformed"  # index, manifest or layout is not a firmware artifact's
    MediaTypeUnsupported = "MediaTypeUnsupported"  # a media type this version does not read
    PlatformMissing = "PlatformMissing"  # the index has no image for the device's chip
    PlatformAmbiguous = "PlatformAmbiguous"  # several images fit the device equally well
    DigestMismatch = "DigestMismatch"  # content is not what its digest says
    SizeMismatch = "SizeMismatch"  # content is not as long as its descriptor says
    TooLarge = "TooLarge"  # content larger than the allowed maximum
    UnsignedArtifact = "UnsignedArtifact"  # no signature at all
    SignatureInvalid = "SignatureInvalid"  # signed, but by none of the trusted keys, or wrongly
    SignatureThreshold = "SignatureThreshold"  # fewer valid signatures than demanded
    SignersNotConfigured = "SignersNotConfigured"  # nobody said whose signature counts
    AnnotationMissing = "AnnotationMissing"  # signed by trusted keys, but without what the policy wants them to state
    IdentityMismatch = "IdentityMismatch"  # signed by trusted keys, but for another repository
    SbomMissing = "SbomMissing"  # no SBOM that a trusted key signed
    SbomMalformed = "SbomMalformed"  # a file that is no SBOM in a format that is known
    ProvenanceMissing = "ProvenanceMissing"  # no provenance that a trusted key signed
    ProvenanceMalformed = "ProvenanceMalformed"  # a file that is no SLSA provenance, or cannot be made one
    BuilderNotTrusted = "BuilderNotTrusted"  # provenance names a builder that the policy does not
    SignerFailed = "SignerFailed"  # the signing program or plug-in gave no usable signature
    KeyMalformed = "KeyMalformed"  # a key file that cannot be read
    ContentDisagrees = "ContentDisagrees"  # an image's bytes are not what the signed config says of them
    ReleaseMissing = "ReleaseMissing"  # no release statement for this chip
    ReleaseInvalid = "ReleaseInvalid"  # the release statement does not fit image, chip or key


class PipelineError(Exception):
    """Firmware was refused, or could not be read, for one stated reason.

    Args:
        reason: stable code.
        message: what is wrong, where, and why that matters.
        next_step: what the reader should do now.
    """

    def __init__(self, reason: Reason, message: str, next_step: str) -> None:
        super().__init__(reason, message, next_step)
        self.reason = reason
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.message} Next: {self.next_step}"
