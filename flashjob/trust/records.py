# SPDX-License-Identifier: Apache-2.0
"""What a judge needs to know of Devices, policies and FlashTasks: slim, pure projections of the objects.

Rules (tests name them):

1. A Device whose anchor does not belong to its id is kept, without an anchor and with the reason: it is enrolled, but
   nothing it says can hold.
2. A task is live until its phase is final or it is being deleted; only a live task pins measurements.
3. A task has a device under its hands from an attempt's permit to that attempt's verdict.
4. A device is withheld while it is in quarantine, or while the discovery handler's last look says that two devices share
   its identity, until it is released by name (api/quarantine.py).
5. Boots are remembered until such an alarm, whatever is found between them: a look that proves nothing erases nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from attestation import keys
from attestation.anchors import DeviceAnchor, DeviceState, Floors
from attestation.clones import LEAST_SEED_BYTES, Sighting
from attestation.errors import Reject
from attestation.policy import AttestationPolicySpec, Measurement, RootOfTrust
from flashjob.api import quarantine
from flashjob.api.device import (
    MOST_BOOTS,
    AttestationState,
    BootHistory,
    Connection,
    Device,
    Hardware,
    InstanceRef,
)
from flashjob.api.flashtask import FlashTask, Phase, Verdict
from flashjob.cluster.resources import Obj
from flashjob.wire.clock import seconds
from flashjob.wire.target import Measurement as Pinned
from flashjob.wire.target import Target


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """One enrolled device.

    Args:
        namespace, name: of the Device.
        id: its identity, hex.
        anchor: what its chain must start from; None where it cannot attest.
        problem: why there is no anchor although one is given (rule 1); else "".
        policy: name of its AttestationPolicy, in the same namespace.
        tier: what its hardware can prove at best.
        causes: what withholds it until it is released by name.
        released_at: time of that release, Unix seconds; None where there is none.
        connection: how it is reached.
        hardware: as last read by a preflight, else as enrolled.
        floors: what may only rise.
        confirmed: its last confirmed measurement, in every algorithm.
        boots: the boots that the discovery handler saw, oldest first, as `attestation.clones` wants them.
        attestation, endpoint, instance: what the discovery handler last wrote.
    """

    namespace: str
    name: str
    id: str
    anchor: DeviceAnchor | None
    problem: str
    policy: str
    tier: RootOfTrust
    suspended: bool
    causes: tuple[quarantine.Cause, ...]
    released_at: float | None
    connection: Connection
    hardware: Hardware | None
    floors: Floors
    confirmed: frozenset[Measurement]
    boots: tuple[Sighting, ...]
    attestation: AttestationState | None
    endpoint: str
    instance: InstanceRef | None

    def withheld(self, now: float) -> quarantine.Withheld | None:
        """Rule 4: why it is withheld now, in Unix seconds; None if it is not."""
        return quarantine.withheld(self.causes, self.released_at, now)


@dataclass(frozen=True, slots=True)
class KnownTask:
    """One FlashTask, as far as it says what its device may run and whether it may be touched.

    Args:
        namespace, name, uid: of the FlashTask.
        job: name of its FlashJob.
        device_id: the device.
        live: rule 2.
        phase: as the operator sees it.
        target: what the device is to become; None where it was rejected before.
        permitted: the last attempt that has its permit; 0 if none has.
        grant_ids: of all permits, hex: boot ids of this task's installations.
        verdict: the last one.
    """

    namespace: str
    name: str
    uid: str
    job: str
    device_id: str
    live: bool
    phase: Phase
    target: Target | None
    permitted: int
    grant_ids: frozenset[str]
    verdict: Verdict | None

    @property
    def in_hand(self) -> bool:
        """Rule 3: writing, rebooting, attesting or confirming; nobody else should talk to the device."""
        judged = self.verdict.attempt if self.verdict else 0
        return self.live and self.permitted > judged

    @property
    def pinned(self) -> frozenset[Measurement]:
        """What it lets the device run while it is live."""
        return measurements(self.target.measurements) if self.live and self.target else frozenset()


def read_device(obj: Obj) -> KnownDevice:
    """Projection of a Device; ValueError where it does not follow the model."""
    device = Device.parse(obj)
    spec, status = device.spec, device.status
    release = spec.release_from_quarantine
    anchor, problem = None, ""
    if spec.trust_anchor is not None:
        try:
            anchor = DeviceAnchor(
                ueid=bytes.fromhex(spec.id),
                key=keys.from_cose(spec.trust_anchor.cose_key),
                tier=RootOfTrust(spec.root_of_trust),
                policy=policy_key(device.metadata.namespace, spec.policy_ref.name),
                state=DeviceState.SUSPENDED if spec.suspended else DeviceState.ACTIVE,
            )
        except Reject as reject:
            problem = str(reject)
    floors = status.floors
    return KnownDevice(
        namespace=device.metadata.namespace,
        name=device.metadata.name,
        id=spec.id,
        anchor=anchor,
        problem=problem,
        policy=spec.policy_ref.name,
        tier=RootOfTrust(spec.root_of_trust),
        suspended=spec.suspended,
        causes=quarantine.causes(status),
        released_at=seconds(release.at) if release else None,
        connection=spec.connection,
        hardware=status.hardware or spec.hardware,
        floors=Floors(floors.security_version, floors.sequence, floors.boot_count) if floors else Floors(),
        confirmed=measurements(status.firmware.measurements) if status.firmware else frozenset(),
        boots=read_boots(status.boots),
        attestation=status.attestation,
        endpoint=status.endpoint,
        instance=status.instance,
    )


def read_task(obj: Obj) -> KnownTask:
    """Projection of a FlashTask; ValueError where it does not follow the model."""
    task = FlashTask.parse(obj)
    report = task.status.report
    permits = report.permits if report else ()
    return KnownTask(
        namespace=task.metadata.namespace,
        name=task.metadata.name,
        uid=task.metadata.uid,
        job=task.spec.job.name,
        device_id=task.spec.device.id,
        live=not task.status.phase.final and task.metadata.deletion_timestamp is None,
        phase=task.status.phase,
        target=task.spec.target,
        permitted=max((permit.attempt for permit in permits), default=0),
        grant_ids=frozenset(permit.grant_id for permit in permits),
        verdict=report.verdict if report else None,
    )


def read_policy(obj: Obj) -> AttestationPolicySpec:
    """Projection of an AttestationPolicy; ValueError where it does not follow the model."""
    return AttestationPolicySpec.model_validate_json(json.dumps(obj.get("spec") or {}))


def read_boots(history: BootHistory | None) -> tuple[Sighting, ...]:
    """What Device.status remembers, for `attestation.clones`; only the newest one's time is kept, for all."""
    if history is None:
        return ()
    at = int(datetime.fromisoformat(history.at).timestamp())
    told = (one.split(":") for one in history.seen)
    return tuple(Sighting(int(count), bytes.fromhex(seed), at) for count, seed in told)


def write_boots(sightings: Sequence[Sighting]) -> BootHistory | None:
    """The newest of them as Device.status remembers them, each by as few bytes as will do; None where there are none."""
    if not sightings:
        return None
    seen = tuple(f"{one.boot_count}:{one.seed_sha256[:LEAST_SEED_BYTES].hex()}" for one in sightings[-MOST_BOOTS:])
    at = datetime.fromtimestamp(max(one.seen_at for one in sightings), UTC)
    return BootHistory(at=at.strftime("%Y-%m-%dT%H:%M:%SZ"), seen=seen)


def policy_key(namespace: str, name: str) -> str:
    """How an anchor names its policy: policies of different namespaces are different ones."""
    return f"{namespace}/{name}"


def measurements(pinned: tuple[Pinned, ...]) -> frozenset[Measurement]:
    """From the wire's hex to what the verifier compares."""
    return frozenset(Measurement(one.alg, bytes.fromhex(one.value)) for one in pinned)
