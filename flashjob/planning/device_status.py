# SPDX-License-Identifier: Apache-2.0
"""What the end of a task says about its device: one write of Device.status, before the task's own last write.

1. Only a task that held the device's Lease, or that proved something, writes it.
2. Firmware and floors change only by a confirmed verdict: slot VALID, the target's measurement. Floors never fall.
3. Hardware is what preflight read, kept where it read nothing.
4. The last three outcomes are kept, newest first, one per task. They also tell locks that the task is over (lock.py).
5. A device that shows an older installation's evidence as its new one's is quarantined: BootIdMismatch. So is one whose
   boots contradict one another, in the verdict's code (attestation.clones): two devices seem to share its identity, and
   the boots that were seen are forgotten, so that after a release they are remembered anew. It stays so until it is
   released by name.
6. A device that was released and ends well is out of quarantine.
7. What is already written is not written again: None.
"""

from typing import Any, Final

from flashjob.api.device import FirmwareState, Floors, Hardware, OutcomeRecord, Quarantine
from flashjob.api.flashtask import Verdict
from flashjob.wire.clock import stamp
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.reasons import Reason

from .outcome import Ending
from .state import Device, Task

OUTCOMES: Final = 3
QUARANTINING: Final = frozenset({Reason.BOOT_ID_MISMATCH})


def after(
    device: Device, task: Task, ending: Ending, attempt: int, result: DeviceResult | None, now: float
) -> dict[str, Any] | None:
    """The merge patch of Device.status (rules 1 to 7), or None.

    Args:
        attempt: the last attempt; 0 where none was begun.
        result: what the pod read and did, where it said so.
    """
    if not (attempt or ending.confirmed) or any(o.task == task.name for o in device.status.outcomes):
        return None
    verdict = task.status.report.verdict if task.status.report else None
    outcome = OutcomeRecord(
        task=task.name,
        phase=ending.phase.value,
        reason=ending.reason,
        version=task.target.version if task.target else "",
        at=stamp(now),
    )
    patch: dict[str, Any] = {
        "outcomes": [o.dump() for o in (outcome, *device.status.outcomes)][:OUTCOMES],
    }
    if ending.confirmed and verdict is not None and task.target is not None:
        patch["firmware"] = _firmware(task, verdict)
        patch["floors"] = _floors(device, task, verdict)
        if device.status.quarantine is not None:
            patch["quarantine"] = None
    hardware = _hardware(device, result)
    if hardware is not None:
        patch["hardware"] = hardware.dump()
    shared = verdict is not None and verdict.is_clone_alarm
    if shared:
        patch["boots"] = None
    if shared or ending.reason in QUARANTINING:
        patch["quarantine"] = Quarantine(
            reason=ending.reason, message=ending.message, task=task.name, since=stamp(now)
        ).dump()
    return patch


def _firmware(task: Task, verdict: Verdict) -> dict[str, Any]:
    assert task.target is not None
    target = task.target
    return FirmwareState(
        repository=target.repository,
        digest=target.index_digest,
        application=target.application,
        version=target.version,
        sequence=target.sequence,
        measurements=target.measurements,
        boot_id=verdict.boot_id,
        confirmed_at=verdict.at,
    ).dump()


def _floors(device: Device, task: Task, verdict: Verdict) -> dict[str, Any]:
    old = device.status.floors or Floors()
    return Floors(
        security_version=max(old.security_version, verdict.secure_version or 0),
        sequence=max(old.sequence, task.target.sequence if task.target else 0),
        boot_count=max(old.boot_count, verdict.boot_count or 0),
    ).dump()


def _hardware(device: Device, result: DeviceResult | None) -> Hardware | None:
    if result is None or result.hardware is None or result.reason in (Reason.WRONG_DEVICE, Reason.WRONG_CHIP):
        return None
    old = device.facts
    known: dict[str, Any] = old.model_dump() if old else {}
    known.update({k: v for k, v in result.hardware.model_dump().items() if v is not None})
    new = Hardware.model_validate(known)
    return new if new != device.status.hardware else None
