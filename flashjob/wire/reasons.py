# SPDX-License-Identifier: Apache-2.0
"""Every reason the product gives, each with what it means and what to do next. One enum, one line each.

Reasons are the contract with people and scripts: a name never changes its meaning. Whether a reason is retried is
decided in planning/retries.py alone.
"""

from enum import StrEnum


class Reason(StrEnum):
    """A reason: `.meaning` says what is the case, `.next_step` what a person can do about it."""

    meaning: str
    next_step: str

    def __new__(cls, value: str, meaning: str, next_step: str) -> "Reason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.next_step = next_step
        return member

    # Waiting
    WAITING_FOR_TURN = (
        "WaitingForTurn",
        "the rollout has not opened for this device yet",
        "nothing: it starts when its turn comes",
    )
    DEVICE_BUSY = "DeviceBusy", "another task holds this device", "wait for that task, or delete its job"
    DEVICE_IN_USE = (
        "DeviceInUse",
        "a pod that is not ours uses the device",
        "stop the pod that the message names, or set strategy.onBusy: Wait",
    )
    PAUSED = "Paused", "the job is paused", "set spec.paused to false"
    BACKING_OFF = (
        "BackingOff",
        "the last attempt failed; the next one waits",
        "nothing: the message says when it starts",
    )
    POD_PENDING = (
        "PodPending",
        "the flashing pod is not running yet",
        "see the pod's events: kubectl describe pod",
    )
    GATEWAY_UNREADY = (
        "GatewayUnready",
        "no write starts while the gateway is not ready",
        "see the gateway's Deployment and log",
    )
    POD_LOST = (
        "PodLost",
        "the pod vanished unseen; it may still write",
        "wait: the device is free when its write deadline has passed",
    )

    REDISCOVERING = (
        "Rediscovering",
        "confirmed; its Instance does not show it yet",
        "nothing: the discovery handler lists it when it has attested it",
    )
    TASK_MISSING = (
        "TaskMissing",
        "FlashTasks of this job were deleted, so nobody knows what became of their devices",
        "apply a new job for these devices",
    )

    # Artifact
    IMAGE_NOT_FOUND = (
        "ImageNotFound",
        "the registry does not know this tag or digest",
        "check spec.firmware.image, or push it",
    )
    REGISTRY_UNAVAILABLE = (
        "RegistryUnavailable",
        "the registry does not answer",
        "nothing if it comes back: the job waits and resumes",
    )
    REGISTRY_UNAUTHORIZED = (
        "RegistryUnauthorized",
        "the registry refuses these credentials",
        "check spec.firmware.pullSecrets",
    )
    UNSIGNED = "Unsigned", "the artifact carries no signature", "sign it: firmware-pipeline push --sign KEY"
    SIGNATURE_MISSING = (
        "SignatureMissing",
        "no required signer has signed this digest",
        "sign it with a required key, or correct the key list",
    )
    ANNOTATION_MISSING = (
        "AnnotationMissing",
        "the required signers signed it, but not with the annotations that the policy demands",
        "sign it again with these annotations, or correct requiredSigners.requiredAnnotations",
    )
    SBOM_MISSING = (
        "SbomMissing",
        "the policy demands an SBOM, and none that a required signer signed is attached",
        "attach one: firmware-pipeline attach REF --sbom FILE --sign KEY",
    )
    PROVENANCE_MISSING = (
        "ProvenanceMissing",
        "the policy demands provenance, and none that a required signer signed is attached",
        "push with --provenance --builder URI, or attach it: firmware-pipeline attach REF --provenance FILE --sign KEY",
    )
    BUILDER_NOT_TRUSTED = (
        "BuilderNotTrusted",
        "the provenance names a builder that the policy does not",
        "build where the policy trusts, or correct requiredSigners.builders",
    )
    SIGNERS_NOT_CONFIGURED = (
        "SignersNotConfigured",
        "the device's policy names no signer: whoever starts a job does not choose its judge",
        "name requiredSigners in the device's AttestationPolicy",
    )
    ARTIFACT_INVALID = (
        "ArtifactInvalid",
        "the artifact is not what its signed description says",
        "build and push it again",
    )
    NO_MATCHING_PLATFORM = (
        "NoMatchingPlatform",
        "the index has no image for this chip",
        "push an index that contains this chip",
    )
    DIGEST_MISMATCH = (
        "DigestMismatch",
        "bytes do not have the digest they were asked by",
        "distrust the registry; push again from a clean build",
    )
    RELEASE_INVALID = (
        "ReleaseInvalid",
        "the release statement is missing or does not fit the image",
        "push with --release-key",
    )
    KEY_UNREADABLE = (
        "KeyUnreadable",
        "a signer's key cannot be read",
        "check the Secret that spec.firmware.verify.keys names",
    )

    # Selection and enrolment
    NO_DEVICES = (
        "NoDevices",
        "the selection matches no device",
        "kubectl get devices --show-labels; correct spec.devices",
    )
    DEVICE_NOT_ENROLLED = (
        "DeviceNotEnrolled",
        "an Instance was found that belongs to no enrolled Device",
        "flashjob device enroll",
    )
    ALREADY_ENROLLED = (
        "AlreadyEnrolled",
        "what is to be enrolled is there already; it was left as it is",
        "change what is there, or enroll under another name",
    )
    TRUST_UNUSABLE = (
        "TrustUnusable",
        "a trust directory, or a file in it, cannot be used",
        "name the right one with --trust; a new one: flashjob device enroll --trust DIR (docs/bench.md)",
    )
    IDENTITY_CONFLICT = "IdentityConflict", "two Devices claim the same identity", "delete the wrong Device"
    NAME_CONFLICT = "NameConflict", "a task of this name belongs to something else", "delete that task"
    POLICY_MISSING = (
        "PolicyMissing",
        "the Device's policy does not exist or cannot be read",
        "create the AttestationPolicy that spec.policyRef names",
    )
    SUSPENDED = "Suspended", "the device is suspended", "set the Device's spec.suspended to false"
    QUARANTINED = (
        "Quarantined",
        "the device is in quarantine",
        "find out why, then release it by name: spec.releaseFromQuarantine",
    )
    GRANT_KEY_UNKNOWN = (
        "GrantKeyUnknown",
        "the device does not know the gateway's key",
        "put the gateway's public key into one of the device's two owner slots (docs/device-protocol.md)",
    )
    TRANSPORT_UNSUPPORTED = (
        "TransportUnsupported",
        "the device has no connection of the wanted kind",
        "set spec.connection, or spec.transport: Auto",
    )

    # Port and transport
    PORT_NOT_FOUND = (
        "PortNotFound",
        "no port Instance matches spec.connection.serial.match",
        "plug the device in, or correct the port; in a cluster: kubectl get instances",
    )
    PORT_AMBIGUOUS = (
        "PortAmbiguous",
        "several port Instances match",
        "make spec.connection.serial.match narrower",
    )
    PORT_BUSY = "PortBusy", "another program holds the serial port", "end that program"
    PORT_SILENT = "PortSilent", "nothing answers on the serial port", "check cable, power and boot straps"
    PORT_VANISHED = (
        "PortVanished",
        "the serial port disappeared during the work",
        "plug the device in again; it is retried: docs/runbooks/port-vanished.md",
    )
    TRANSPORT_LOST = (
        "TransportLost",
        "the connection broke during the work",
        "check cable or network; it is retried",
    )
    DEVICE_UNREACHABLE = (
        "DeviceUnreachable",
        "the device does not answer on the network",
        "check its power and address; one that speaks TLS begins with https://",
    )
    DEVICE_REFUSED = (
        "DeviceRefused",
        "the device itself refused the request",
        "see the code in the message (docs/device-protocol.md)",
    )
    WRITE_FAILED = "WriteFailed", "the flash write failed", "see the message; it is retried"
    VERIFY_FAILED = (
        "VerifyFailed",
        "the flash does not hold what was written",
        "the flash may be worn out: replace the device",
    )

    # Preflight refusals: nothing was written
    WRONG_DEVICE = (
        "WrongDevice",
        "another device is connected than the task names",
        "correct cabling or spec.connection",
    )
    HARDWARE_CONTRADICTION = (
        "HardwareContradiction",
        "what the application says of its device is not what the chip shows",
        "examine the device: its firmware or its cabling is not what it seems",
    )
    NO_ROLLBACK = (
        "NoRollback",
        "the device's bootloader does not go back from an image that fails",
        "build its bootloader with rollback, or set safety.allowWithoutRollback",
    )
    FROM_VERSION = (
        "FromVersion",
        "the device does not run a version that this update may start from",
        "bring it to one of safety.fromVersions first",
    )
    WRONG_CHIP = "WrongChip", "the image is for another chip", "push the right image for this chip"
    CHIP_REVISION = "ChipRevision", "the image does not run on this chip revision", "build for this revision"
    FLASH_TOO_SMALL = (
        "FlashTooSmall",
        "the device's flash is smaller than the image expects",
        "build for this flash size",
    )
    IMAGE_TOO_LARGE = (
        "ImageTooLarge",
        "the image does not fit the slot",
        "make it smaller, or repartition by hand",
    )
    PARTITION_MISMATCH = (
        "PartitionMismatch",
        "the device's partition table is not the image's",
        "build for the device's table; if that was right before the write, examine the device",
    )
    DATA_WOULD_BE_LOST = (
        "DataWouldBeLost",
        "under the new partition table a data partition would move, shrink or vanish",
        "build a table that leaves it in place, or set safety.data: Wipe where its data may go",
    )
    WIPE_NEEDS_SERIAL = (
        "WipeNeedsSerial",
        "data partitions are erased over a serial line only: the device protocol has no verb for it",
        "flash the device over its port, or set safety.data: Keep: sealed data opens to no other application anyway",
    )
    NO_UPDATE_SLOT = (
        "NoUpdateSlot",
        "the device has no inactive slot to write",
        "provision two application slots",
    )
    SECURE_BOOT_MISMATCH = (
        "SecureBootMismatch",
        "image and device disagree on secure boot or encryption",
        "sign the image as the device demands",
    )
    SECURITY_VERSION_ROLLBACK = (
        "SecurityVersionRollback",
        "the image's security version is below the device's",
        "build with a higher secure_version",
    )
    SECURITY_VERSION_BURN = (
        "SecurityVersionBurn",
        "confirming would raise the device's eFuse counter for ever",
        "set safety.allowSecurityVersionBurn",
    )
    DOWNGRADE = (
        "Downgrade",
        "the release is older than what the device has confirmed",
        "set safety.allowDowngrade if it is meant",
    )
    PREFLIGHT_FAILED = "PreflightFailed", "the image does not fit the device", "see the message"

    # Attestation
    BEFORE_ATTESTATION_FAILED = (
        "BeforeAttestationFailed",
        "the device could not prove its identity before the write",
        "see the code in the message; attest explain",
    )
    MEASUREMENT_MISMATCH = (
        "MeasurementMismatch",
        "the device proves other firmware than the artifact's",
        "the device is not updated: examine it",
    )
    BOOT_ID_MISMATCH = (
        "BootIdMismatch",
        "the evidence is from another installation",
        "examine the device: it may replay",
    )
    EVIDENCE_INVALID = (
        "EvidenceInvalid",
        "the evidence does not hold",
        "see the code in the message; attest explain",
    )
    EVIDENCE_REPLAYED = (
        "EvidenceReplayed",
        "this evidence was used before",
        "examine device and network: somebody replays",
    )
    EVIDENCE_OF_ANOTHER_DEVICE = (
        "EvidenceOfAnotherDevice",
        "the evidence is another device's",
        "correct cabling; if it is right, suspect a relay",
    )
    POLICY_REJECTED = (
        "PolicyRejected",
        "the evidence is genuine but the policy forbids what it shows",
        "see the code in the message",
    )
    ROOT_OF_TRUST_TOO_LOW = (
        "RootOfTrustTooLow",
        "written and seen, but this device cannot prove it at the demanded root of trust",
        "lower minRootOfTrust knowingly, or use hardware that can prove",
    )
    ALREADY_RUNNING = "AlreadyRunning", "the device proves that it runs the target already", "nothing"
    PROVEN = "Proven", "fresh evidence of this installation, measured and confirmed", "nothing"
    CONFIRM_TIMEOUT = (
        "ConfirmTimeout",
        "no confirmation in time; the device went or goes back by itself",
        "it is retried; check the network",
    )
    RESET_BEFORE_CONFIRM = (
        "ResetBeforeConfirm",
        "the device reset before it was confirmed and went back",
        "it is retried",
    )
    WENT_BACK = (
        "WentBack",
        "after the write the device proves what it proved before it: its first boot of the new image failed",
        "it is retried; if it happens again, read its console: docs/runbooks/went-back.md",
    )
    NOTHING_TO_REVERT = (
        "NothingToRevert",
        "no installation of this attempt was refused by a verdict, so none is to be given up",
        "nothing: a device goes back by itself unless it is confirmed",
    )
    SILENT_AFTER_WRITE = (
        "SilentAfterWrite",
        "the device did not come back after the write",
        "wait for its own rollback; then examine it",
    )
    REDISCOVERY_TIMEOUT = (
        "RediscoveryTimeout",
        "confirmed, but no Instance shows the device again",
        "see the discovery handler's log; or rediscovery: Skip",
    )

    # Time and machinery
    START_TIMEOUT = "StartTimeout", "the pod did not get its permit in time", "see the pod's events and log"
    FETCH_TIMEOUT = (
        "FetchTimeout",
        "the layers did not arrive in time",
        "check the registry; raise timeouts.fetchSeconds",
    )
    WRITE_TIMEOUT = (
        "WriteTimeout",
        "the write did not end in time",
        "check the line; raise timeouts.writeSeconds",
    )
    ATTEST_TIMEOUT = "AttestTimeout", "no evidence in time", "check the device; raise timeouts.attestSeconds"
    GATEWAY_UNAVAILABLE = (
        "GatewayUnavailable",
        "the gateway did not answer",
        "see the gateway's Deployment and log",
    )
    PERMIT_REFUSED = "PermitRefused", "the gateway does not permit this write now", "see the message"
    NOT_ASSIGNED = (
        "NotAssigned",
        "this pod is not the one assigned to the task",
        "nothing: an outdated pod was turned away",
    )
    POD_FAILED = "PodFailed", "the flashing pod ended without a result", "kubectl logs POD"
    STOPPED = "Stopped", "the pod was told to stop", "nothing: the next attempt takes over"
    JOB_DELETED = "JobDeleted", "the job was deleted", "nothing"
    RETRIES_EXHAUSTED = (
        "RetriesExhausted",
        "every allowed attempt failed",
        "see the last reason; raise strategy.retries.limit",
    )
    INTERNAL_ERROR = "InternalError", "a defect of this program", "report it with the log"

    # Job ends
    ALL_PROVEN = "AllProven", "every device has proven the target", "nothing"
    SOME_FAILED = (
        "SomeFailed",
        "some devices did not get there",
        "kubectl get flashtasks -l flashjob.dev/job=NAME",
    )
    SOME_UNPROVEN = "SomeUnproven", "some devices cannot prove what they run", "see their root of trust"
    IN_PROGRESS = "InProgress", "the rollout runs", "kubectl flash watch"
    ACCEPTED = "Accepted", "the job is valid", "nothing"
    VERIFIED = "Verified", "digest pinned, signatures checked", "nothing"


def known(code: str) -> Reason | None:
    """The Reason of this code, or None for a code that another package coined."""
    try:
        return Reason(code)  # type: ignore[call-arg]
    except ValueError:
        return None
