# SPDX-License-Identifier: Apache-2.0
"""The last look before byte one: does this image fit this very device? Pure; a refusal means 0 bytes were written.

Rules (tests name them):

1. The device is the one the task names: serial by its eFuse MAC, network by the id it claims (proven before and after
   by evidence). Otherwise WrongDevice, whatever else is true. (A chip in secure download mode tells no MAC; rule 3
   refuses it.)
2. The fetched image is the pinned one: it measures what the target says, its header names the target's chip. A right
   looking manifest around the wrong image is ArtifactInvalid, or WrongChip.
3. Every rule of firmware_pipeline.compatibility holds, with complete facts.
"""

from __future__ import annotations

from firmware_pipeline.compatibility import CheckOptions, check
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.errors import Reason as PipelineReason
from firmware_pipeline.esp.chips import by_target
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.mcuboot import is_mcuboot, parse_mcuboot
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.hardware import HardwareFacts
from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import problem
from flashjob.pipeline_reasons import HARDWARE_REASONS
from flashjob.wire.pod import Assignment, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

_UNREAD = (PipelineReason.HardwareUnknown, PipelineReason.SlotUnknown)


def check_identity(assignment: Assignment, *, mac: str | None = None, ueid: bytes | None = None) -> None:
    """Rule 1, for what is known so far. Raises FlashJobError WrongDevice."""
    if mac is not None and assignment.mac is not None and mac != assignment.mac:
        raise problem(Reason.WRONG_DEVICE, f"the chip's eFuse MAC is {mac}, the task is for {assignment.mac}")
    if ueid is not None and _attests(assignment) and ueid.hex() != assignment.device:
        raise problem(Reason.WRONG_DEVICE, f"device {ueid.hex()} answers, the task is for {assignment.device}")


def check_image(image: bytes, target: Target) -> None:
    """Rule 2. Raises FlashJobError ArtifactInvalid or WrongChip."""
    try:
        wanted = by_target(target.chip)
        if is_mcuboot(image):
            right = parse_mcuboot(image).runs_on(wanted)
        else:
            right = parse_image(image).chip == wanted
        found = {(m.scheme, m.alg, m.value.hex()) for m in measure(image)}
    except PipelineError as error:
        raise problem(Reason.ARTIFACT_INVALID, error.message) from error
    if not right:
        raise problem(Reason.WRONG_CHIP, f"the image's header is not of {target.chip}, which the artifact says")
    for expected in target.measurements:
        if (expected.scheme, expected.alg, expected.value) not in found:
            message = f"the image's {expected.scheme} measurement (alg {expected.alg}) is not the pinned one"
            raise problem(Reason.ARTIFACT_INVALID, message)


def check_hardware(assignment: Assignment, facts: HardwareFacts, config: FirmwareConfig) -> None:
    """Rules 1 and 3. Raises FlashJobError with the first mismatch's reason and all messages."""
    serial = assignment.transport is TransportKind.SERIAL
    if serial and assignment.mac is not None and facts.mac is None and not facts.secure_download:
        raise problem(Reason.WRONG_DEVICE, "the chip does not tell its eFuse MAC, so it may be any chip")
    check_identity(assignment, mac=facts.mac)
    options = CheckOptions(
        transport="serial" if serial else "network",
        allow_downgrade=assignment.safety.allow_downgrade,
        allow_security_version_burn=assignment.safety.allow_security_version_burn,
        sequence=assignment.target.sequence or None,
    )
    mismatches = check(facts, config, options=options)
    if mismatches:
        # What is known to be wrong says more than what could not be read because of it.
        mismatches.sort(key=lambda mismatch: mismatch.reason in _UNREAD)
        first = mismatches[0]
        reason = HARDWARE_REASONS.get(first.reason, Reason.PREFLIGHT_FAILED)
        message = " ".join(mismatch.message for mismatch in mismatches)
        raise FlashJobError(reason.value, message[:1000], first.next_step)


def _attests(assignment: Assignment) -> bool:
    """Whether the device id is a UEID of ours (01 and a SHA-256) rather than an owner-given id."""
    return len(assignment.device) == 66 and assignment.device.startswith("01")
