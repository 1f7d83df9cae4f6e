# SPDX-License-Identifier: Apache-2.0
"""Whether a selected device may be worked on at all: a chain of checks; the first refusal is the device's.

1. IdentityConflict: another Device, in any namespace, has the same id, or its Lease was made for another Device.
2. Suspended.
3. Quarantined, or found to share its identity with another device, unless released (api/quarantine.py).
4. PolicyMissing: the policy that judges it does not exist.
5. SignersNotConfigured, Unsigned, SignatureMissing: the policy's demands on the artifact are not met.
6. TransportUnsupported; WipeNeedsSerial for a network device whose data is to be wiped.
7. NoMatchingPlatform: no image for its chip. A chip that nobody has read yet is left to preflight where the artifact has
   one image only; with several it is refused, since nobody could say which.
8. ArtifactInvalid and the like: the image of its chip cannot be used.
9. ImageTooLarge, SecurityVersionRollback, Downgrade: as far as slot size and floors tell.
10. Every rule of firmware_pipeline.compatibility, as far as the recorded hardware tells: revision, flash size, slot, secure
   boot, features. What nobody has recorded is left to preflight, which checks all of it again.

Rules 2 and 3 are asked again before each attempt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from firmware_pipeline.compatibility import CheckOptions, check
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.hardware import HardwareFacts
from flashjob.api import quarantine
from flashjob.pipeline_reasons import HARDWARE_REASONS
from flashjob.wire.pod import TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

from . import connection
from .messages import refuse
from .state import Admission, Device, Job, Key, Lease, Refusal


@dataclass(frozen=True, slots=True)
class Admitted:
    """The device may be worked on: how it is reached and what it is to become."""

    transport: TransportKind
    target: Target


def withheld(device: Device, now: float) -> Refusal | None:
    """Rules 2 and 3: whether the device is withheld from every job now, in Unix seconds."""
    if device.suspended:
        return refuse(Reason.SUSPENDED, f"Device {device.name} is suspended")
    why = quarantine.withheld(quarantine.causes(device.status), device.released_at, now)
    return refuse(Reason.QUARANTINED, f"Device {device.name} is withheld, {why}") if why else None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """All Devices of all namespaces, indexed."""

    by_id: Mapping[str, Sequence[Device]]
    keys: frozenset[Key]

    @classmethod
    def of(cls, devices: Iterable[Device]) -> "Enrolment":
        """Index them."""
        by_id: dict[str, list[Device]] = {}
        for device in devices:
            by_id.setdefault(device.id, []).append(device)
        return cls(by_id, frozenset((d.namespace, d.name) for same in by_id.values() for d in same))


def conflict(device: Device, enrolment: Enrolment, leases: Mapping[str, Lease]) -> Refusal | None:
    """Rule 1."""
    same = enrolment.by_id.get(device.id, ())
    others = [d for d in same if (d.namespace, d.name) != (device.namespace, device.name)]
    if others:
        named = ", ".join(sorted(f"{d.namespace}/{d.name}" for d in others)[:4])
        return refuse(Reason.IDENTITY_CONFLICT, f"{named} has the same id as Device {device.namespace}/{device.name}")
    lease = leases.get(device.id)
    owner = (device.namespace, device.name)
    if lease is not None and lease.owner != owner and lease.owner in enrolment.keys:
        return refuse(
            Reason.IDENTITY_CONFLICT, f"Lease {lease.name} of this id was made for Device {'/'.join(lease.owner)}"
        )
    return None


def _image(device: Device, admission: Admission) -> Target | Refusal:
    chip = device.facts.chip if device.facts else ""
    chips = sorted({*admission.targets, *admission.refused_chips})
    if not chip and len(chips) == 1:
        chip = chips[0]
    if chip in admission.refused_chips:
        return admission.refused_chips[chip]
    if chip not in admission.targets:
        what = f"chip {chip}" if chip else "its chip, which nobody has read yet (enrol it again)"
        return refuse(
            Reason.NO_MATCHING_PLATFORM,
            f"the index has images for {', '.join(chips) or 'no chip'}, but Device {device.name} needs {what}",
        )
    return admission.targets[chip]


def _floors(job: Job, device: Device, target: Target) -> Refusal | None:
    facts, floors = device.facts, device.status.floors
    if facts is not None and facts.slot_size is not None and target.image_size > facts.slot_size:
        return refuse(
            Reason.IMAGE_TOO_LARGE,
            f"the image has {target.image_size} bytes, the slot of Device {device.name} {facts.slot_size}",
        )
    if floors is None:
        return None
    if target.secure_version < floors.security_version:
        return refuse(
            Reason.SECURITY_VERSION_ROLLBACK,
            f"secure_version {target.secure_version} is below the {floors.security_version} that "
            f"Device {device.name} has confirmed",
        )
    if target.sequence < floors.sequence and not job.spec.safety.allow_downgrade:
        return refuse(
            Reason.DOWNGRADE,
            f"release sequence {target.sequence} is below the {floors.sequence} that Device {device.name} has confirmed",
        )
    return None


def _hardware(job: Job, device: Device, target: Target, config: FirmwareConfig, kind: TransportKind) -> Refusal | None:
    """Rule 10."""
    known = device.facts
    if known is None:
        return None
    facts = HardwareFacts(
        target=known.chip,
        revision=known.revision,
        flash_size=known.flash_size or None,
        secure_boot=known.secure_boot,
        flash_encryption="off" if known.flash_encryption is False else None,  # "on" may be either mode
        target_slot_size=known.slot_size or None,
    )
    options = CheckOptions(
        complete=False,
        transport="serial" if kind is TransportKind.SERIAL else "network",
        allow_downgrade=job.spec.safety.allow_downgrade,
        allow_security_version_burn=job.spec.safety.allow_security_version_burn,
        sequence=target.sequence or None,
    )
    found = check(facts, config, options=options)
    if not found:
        return None
    reason = HARDWARE_REASONS.get(found[0].reason, Reason.PREFLIGHT_FAILED)
    return refuse(reason, f"Device {device.name}: {' '.join(mismatch.message for mismatch in found)}"[:800])


def admit(
    job: Job, device: Device, enrolment: Enrolment, leases: Mapping[str, Lease], admission: Admission, now: float
) -> Admitted | Refusal:
    """Rules 1 to 10, in this order; now in Unix seconds."""
    refusal = conflict(device, enrolment, leases) or withheld(device, now)
    if refusal is not None:
        return refusal
    policy = admission.policies.get(device.policy)
    if policy is None:
        return refuse(
            Reason.POLICY_MISSING, f"AttestationPolicy {device.policy} of Device {device.name} cannot be read"
        )
    if policy.refusal is not None:
        return policy.refusal
    transport = connection.kind(job.spec.transport, device)
    if isinstance(transport, Refusal):
        return transport
    if job.spec.safety.wipe_impossible(transport):
        return refuse(Reason.WIPE_NEEDS_SERIAL, f"Device {device.name} is reached over the network")
    target = _image(device, admission)
    if isinstance(target, Refusal):
        return target
    config = admission.configs.get(target.chip)
    refusal = _floors(job, device, target)
    if refusal is None and config is not None:
        refusal = _hardware(job, device, target, config, transport)
    return refusal or Admitted(transport, target)
