# SPDX-License-Identifier: Apache-2.0
"""What the discovery handler needs of the cluster: enrolled devices, a place for its findings, Configurations to wake.

Rules (tests name them):

1. A quarantined device is withheld; whose release is yet to come is told of again when its time has come. A device that
   a task has in hand is neither asked nor listed (records.py, rule 3); from the start of a task's pod to its verdict the
   device's serial port is left alone.
2. Of Device.status only `attestation`, `boots`, `endpoint` and `instance` are written, together, and only when they say
   something new: time and wording alone are nothing new.
   A look that contradicts the remembered boots (attestation.clones) says so with a clone code; that stands, whatever is
   found later, until the device is released by name; then boots are remembered anew.
3. `instance` is the Instance of the first Configuration, by name, that lists the device; its name is Akri's.
4. What cannot be written for now is written later; only the newest finding of a device counts.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from attestation import clones
from attestation.discovery.details import Details, DetailsError, Transport, check_properties, parse_details
from attestation.discovery.enrolled import EnrolledDevice, Judged, Look
from attestation.errors import Reject
from attestation.verdict import Context, ExactNonce, IssuedNonce
from flashjob.api.device import AttestationState, InstanceRef
from flashjob.api.flashtask import Phase
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.reflector import Key, Reflector
from flashjob.cluster.resources import CONFIGURATIONS, DEVICES, Obj
from flashjob.wire.target import Measurement

from .cluster_store import ClusterTrust
from .records import KnownDevice, KnownTask, read_device, write_boots

FIELD_MANAGER: Final = "flashjob-discovery-handler"
ANNOTATION_WOKEN: Final = "flashjob.dev/handler-registered"
_FIRST_PAUSE_SECONDS: Final = 0.5
_LAST_PAUSE_SECONDS: Final = 30.0
_MESSAGE: Final = 1024

_log = logging.getLogger(__name__)


class ClusterEnrolment:
    """attestation's `Enrolment` on top of the caches.

    Args:
        trust: what is known of devices.
        now: clock, Unix seconds.
    """

    def __init__(self, trust: ClusterTrust, now: Callable[[], float]) -> None:
        self._trust, self._now = trust, now

    def device(self, device_id: str) -> EnrolledDevice | None:
        """See Enrolment."""
        known = self._trust.device(device_id)
        return self._enrolled(known) if known else None

    def devices(self) -> Iterable[EnrolledDevice]:
        """See Enrolment; ids that several Devices claim are left out."""
        every = tuple(self._trust.devices.values())
        count = Counter(known.id for known in every)
        return tuple(self._enrolled(known) for known in every if count[known.id] == 1)

    def context(self, device_id: str, nonce: ExactNonce | IssuedNonce, now: int) -> Context:
        """See Enrolment."""
        return self._trust.context(device_id, nonce, now)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """See Enrolment; to be called in the event loop."""
        loop, waiting = asyncio.get_running_loop(), dict[str, asyncio.TimerHandle]()

        def heard(device_id: str) -> None:
            if (timer := waiting.pop(device_id, None)) is not None:
                timer.cancel()
            wait_for_release(device_id)
            changed(device_id)

        def wait_for_release(device_id: str) -> None:
            with suppress(Reject):  # an id that two Devices claim: it is told of when one of them goes
                known, now = self._trust.device(device_id), self._now()
                why = known.withheld(now) if known is not None else None
                if why is not None and why.release is not None:
                    waiting[device_id] = loop.call_later(why.release - now, heard, device_id)

        self._trust.subscribe(heard)
        for known in self._trust.devices.values():
            wait_for_release(known.id)

    def _enrolled(self, known: KnownDevice) -> EnrolledDevice:
        network, serial = known.connection.network, known.connection.serial
        why = known.withheld(self._now())
        tasks = self._trust.live_tasks(known.id)
        return EnrolledDevice(
            id=known.id,
            address=(network.address or "") if network else "",
            endpoint=known.endpoint if network else "",
            port=dict(serial.match) if serial else {},
            chip=known.hardware.chip if known.hardware else "",
            at_work=any(map(_at_work, tasks)),
            in_hand=any(task.in_hand for task in tasks),
            withheld=str(why or ""),
        )


def _at_work(task: KnownTask) -> bool:
    """Whether a pod of the task may be about to use the device's port; after a verdict it has no more use for it."""
    return task.live and task.phase not in (Phase.PENDING, Phase.REDISCOVERING) and task.verdict is None


@dataclass(frozen=True, slots=True)
class KnownConfiguration:
    """The parts of a Configuration that matter here; `details` is None where they cannot be followed."""

    namespace: str
    name: str
    handler: str
    details: Details | None


def configuration_reader(transport: Transport) -> Callable[[Obj], KnownConfiguration]:
    """Projection of a Configuration for one handler."""

    def read(obj: Obj) -> KnownConfiguration:
        metadata = obj["metadata"]
        asked = (obj.get("spec") or {}).get("discoveryHandler") or {}
        details = None
        if asked.get("name") == transport.handler_name:
            try:
                check_properties([one["name"] for one in asked.get("discoveryProperties") or ()])
                details = parse_details(asked.get("discoveryDetails") or "", transport)
            except DetailsError as error:
                _log.warning("Configuration %s/%s: %s", metadata.get("namespace"), metadata["name"], error)
        return KnownConfiguration(metadata.get("namespace", ""), metadata["name"], str(asked.get("name", "")), details)

    return read


class Configurations:
    """The Configurations of one handler. Run `reflector.run()`.

    Args:
        api: the API server.
        transport: which handler.
        node: this node, part of Instance names where nodes do not share devices.
    """

    def __init__(self, api: KubeApi, transport: Transport, node: str) -> None:
        self._api, self._transport, self._node = api, transport, node
        self.reflector = Reflector(api, CONFIGURATIONS, project=configuration_reader(transport))

    async def wake(self) -> None:
        """Touch every Configuration of this handler: an agent that gave up on one looks at it again.

        A Configuration that cannot be touched is logged: it wakes by itself, later.
        """
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for known in tuple(self.reflector.values()):
            if known.handler != self._transport.handler_name:
                continue
            patch: Obj = {"metadata": {"annotations": {ANNOTATION_WOKEN: at}}}
            try:
                await self._api.patch(CONFIGURATIONS, known.namespace, known.name, patch, field_manager=FIELD_MANAGER)
            except ApiError as error:
                _log.warning("Configuration %s/%s not woken: %s", known.namespace, known.name, error)

    def wanted(self) -> frozenset[Details]:
        """What Configurations ask of this handler, where it can follow that."""
        return frozenset(known.details for known in self.reflector.values() if known.details is not None)

    def instance(self, device_id: str, application: str) -> InstanceRef | None:
        """Rule 3."""
        lists = sorted(
            known.name
            for known in self.reflector.values()
            if known.details is not None and known.details.list == "Devices" and known.details.wants(application)
        )
        if not lists:
            return None
        hashed = device_id + ("" if self._transport.shared else self._node)
        suffix = hashlib.blake2b(hashed.encode(), digest_size=3).hexdigest()
        return InstanceRef(name=f"{lists[0]}-{suffix}", configuration=lists[0])


class DeviceReports:
    """attestation's `Reports`: writes Device.status. Run `run()`.

    Args:
        api: the API server.
        trust: what is known of devices.
        configurations: to say which Instance lists a device.
        now: clock, Unix seconds.
    """

    def __init__(
        self, api: KubeApi, trust: ClusterTrust, configurations: Configurations, now: Callable[[], float]
    ) -> None:
        self._api, self._trust, self._configurations, self._now = api, trust, configurations, now
        self._newest: dict[str, Look] = {}
        self._dirty: dict[str, None] = {}
        self._written: dict[str, KnownDevice] = {}
        self._wake = asyncio.Event()
        trust.subscribe(self._device_changed)
        configurations.reflector.subscribe(self._configurations_changed)

    def saw(self, look: Look) -> None:
        """See Reports."""
        self._newest[look.device_id] = look
        self._dirty[look.device_id] = None
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled (rule 4)."""
        pause = 0.0
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause)
            self._wake.clear()
            again: dict[str, None] = {}
            while self._dirty:
                device_id = next(iter(self._dirty))
                del self._dirty[device_id]
                try:
                    await self._write(self._newest[device_id])
                except Reject as error:
                    _log.warning("%s: %s", device_id, error)
                except ApiError as error:
                    _log.warning("Device %s: %s", device_id, error)
                    if error.transient:
                        again[device_id] = None
            pause = min(2 * pause or _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS) if again else 0.0
            if again:
                self._dirty.update(again)
                self._wake.set()

    async def _write(self, look: Look) -> None:
        known = self._written.get(look.device_id) or self._trust.device(look.device_id)
        if known is None:
            return
        listing = look.listing
        instance = self._configurations.instance(look.device_id, listing.application) if listing else None
        patch = status_patch(known, look, instance, self._now())
        if patch:
            written = await self._api.patch_status(
                DEVICES, known.namespace, known.name, patch, field_manager=FIELD_MANAGER
            )
            self._written[look.device_id] = read_device(written)

    def _device_changed(self, device_id: str) -> None:
        """The cache has caught up with what was written."""
        self._written.pop(device_id, None)

    def _configurations_changed(self, _: Key, old: KnownConfiguration | None, new: KnownConfiguration | None) -> None:
        if any(known is not None and known.details is not None for known in (old, new)):
            self._dirty.update(dict.fromkeys(self._newest))
            self._wake.set()


def status_patch(known: KnownDevice, look: Look, instance: InstanceRef | None, now: float) -> dict[str, Any]:
    """Rule 2: the merge patch of Device.status, empty where nothing is new.

    Args:
        known: what stands there.
        look: what was found.
        instance: what lists the device now.
        now: Unix seconds.
    """
    patch: dict[str, Any] = {}
    alarmed = known.attestation is not None and known.attestation.is_clone_alarm and known.withheld(now) is not None
    if look.judged is not None and not alarmed:
        finding = clones.observe(
            known.boots,
            look.judged.verdict,
            asked_at=look.judged.asked_at,
            seen_at=int(now),
            boot_count_floor=known.floors.boot_count,
        )
        state = attestation_state(look.judged, now, finding)
        if known.attestation is None or _matter(known.attestation) != _matter(state):
            # null first: a merge patch keeps what it does not name, and the last look's claims are not this one's
            names = [field.alias or name for name, field in AttestationState.model_fields.items()]
            patch["attestation"] = {**dict.fromkeys(names), **state.dump()}
        before, after = write_boots(known.boots), write_boots(() if state.is_clone_alarm else finding.sightings)
        if (before and before.seen) != (after and after.seen):
            patch["boots"] = after.dump() if after else None
    if look.endpoint and look.endpoint != known.endpoint:
        patch["endpoint"] = look.endpoint
    if patch.get("attestation", {}).get("code", "").startswith("clone."):
        instance = None  # the handler hears of it from here and withdraws the device
    if instance != known.instance:
        patch["instance"] = instance.dump() if instance else None
    return patch


def attestation_state(judged: Judged, now: float, clone: clones.Finding | None = None) -> AttestationState:
    """A finding as Device.status holds it; an alarm of `clone` is what it says before all else."""
    alarm = clone.alarm if clone else None
    verdict = judged.verdict
    claims = verdict.claims
    measurement = claims.measurement if claims else None
    return AttestationState(
        accepted=not judged.code and alarm is None,
        code=str(alarm or judged.code),
        message=(clone.message if clone and alarm else judged.message)[:_MESSAGE],
        application=claims.application[:32] if claims else "",
        version=claims.version if claims else "",
        measurement=(
            Measurement(scheme="esp-image", alg=measurement.alg, value=measurement.value.hex()) if measurement else None
        ),
        slot_state=claims.slot_state.name if claims else "",
        boot_count=claims.boot_count if claims else None,
        policy_hash=verdict.policy_hash.hex() if verdict.policy_hash else None,
        at=datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _matter(state: AttestationState) -> dict[str, Any]:
    return state.model_dump(exclude={"at", "message"})
