# SPDX-License-Identifier: Apache-2.0
"""The one scanner of a handler: looks at every place again and again, and keeps what may be listed.

Who is attested and listed is decided in `rules`; this is the I/O around it. Rules (tests name them):

1. Each place has one look at a time; at most `looks` places are looked at at once, each with a deadline.
2. On the network a look is `info`, and evidence when due; places are looked at every `scan_seconds`. A serial port is
   opened only when evidence is due, never while a task is at work on its device, and found anew every `ports_seconds`.
3. A change of a device's enrolment, policy or tasks takes effect at once: evidence is judged again, a device in hand is
   withdrawn, one that was given back is looked at without delay.
4. Who does not answer is asked again after 0.5 s, 1 s, 2 s and so on, on a serial port up to the attest interval.
5. Several places may claim one device: the one that proves it counts; of several the configured one, then the first.
6. A new token is made only when it would say something new.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from attestation.device_protocol import DeviceError, Info
from attestation.discovery import entries, rules
from attestation.discovery.addresses import parse_address
from attestation.discovery.details import DEFAULT_INTERVAL_SECONDS, Details, Transport
from attestation.discovery.enrolled import EnrolledDevice, Enrolment, Judged, Look, Reports
from attestation.discovery.entries import Entry, Shown
from attestation.discovery.listing import Listing, encode_token, mint_listing
from attestation.discovery.places import Contact, NetworkPlace, Place, PortPlace
from attestation.discovery.ports import SerialPort, find_ports
from attestation.errors import Reject
from attestation.keys import PrivateKey
from attestation.verdict import Context, ExactNonce
from attestation.verifier import verify

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how much at once."""

    scan_seconds: float = 5.0
    ports_seconds: float = 1.0
    settle_seconds: float = 10.0
    """How long the first list waits for first looks."""
    looks: int = 64


@dataclass(eq=False, slots=True)
class _Sighting:
    """What is known of one place."""

    place: Place
    expected: str = ""
    """The device that is enrolled there."""
    device_id: str = ""
    """The device that says it is there."""
    endpoint: str = ""
    attestation: rules.Attestation | None = None
    context: Context | None = None
    judged: Judged | None = None
    listing: Listing | None = None
    enrolled: bool = False
    in_hand: bool = False
    failures: int = 0
    looked: bool = False
    filed: set[str] = field(default_factory=set)
    """Devices that the scanner has this place on file for."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None

    def forget(self) -> None:
        """Nothing that was proven counts any longer."""
        self.attestation = self.context = self.judged = self.listing = None


class Subscription:
    """One Configuration's view of the scanner; end it with `close`."""

    def __init__(self, scanner: Scanner, details: Details) -> None:
        self.details = details
        self.changed = asyncio.Event()
        self.ports: tuple[SerialPort, ...] | None = None
        self._scanner = scanner

    def entries(self) -> tuple[Entry, ...]:
        """The whole list now."""
        if self.details.list == "Ports":
            return entries.ports(self.ports or ())
        return entries.devices(self._scanner.shown.values(), self.details)

    async def settled(self) -> None:
        """Wait until every place was looked at once, or the pace's `settle_seconds` are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._scanner.pace.settle_seconds):
                while not self._scanner.settled(self):
                    self.changed.clear()
                    await self.changed.wait()

    def close(self) -> None:
        """The Configuration no longer listens."""
        self._scanner.unsubscribe(self)


class Scanner:
    """Run `run()` as a task; subscribe from the same event loop.

    Args:
        transport: which places.
        enrolment: knows the devices.
        reports: is told what was found.
        key: signs listing tokens, P-256.
        pace: how often.
        find: finds serial ports.
        steady, unix: clocks, in seconds.
        random: source of nonces.
    """

    def __init__(
        self,
        transport: Transport,
        enrolment: Enrolment,
        reports: Reports,
        key: PrivateKey,
        *,
        pace: Pace | None = None,
        find: Callable[[Iterable[str]], tuple[SerialPort, ...]] = find_ports,
        steady: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.transport = transport
        self.pace = pace or Pace()
        self.shown: dict[str, Shown] = {}
        self._enrolment, self._reports, self._key = enrolment, reports, key
        self._find, self._steady, self._unix, self._random = find, steady, unix, random
        self._slots = asyncio.Semaphore(self.pace.looks)
        self._subscriptions: list[Subscription] = []
        self._sightings: dict[str, _Sighting] = {}
        self._of: dict[str, set[_Sighting]] = {}
        self._where: dict[str, tuple[object, ...]] = {}
        self._looks: dict[str, Look] = {}
        self._survey_wanted = asyncio.Event()
        self._broken: BaseException | None = None
        enrolment.subscribe(self._device_changed)

    # Configurations

    def subscribe(self, details: Details) -> Subscription:
        """List for one more Configuration."""
        subscription = Subscription(self, details)
        self._subscriptions.append(subscription)
        self._survey_wanted.set()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listing for it."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._survey_wanted.set()

    def settled(self, subscription: Subscription) -> bool:
        """Whether every place was looked at once."""
        if subscription.ports is None:
            return False
        return subscription.details.list == "Ports" or all(sighting.looked for sighting in self._sightings.values())

    @property
    def subscribed(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    @property
    def interval(self) -> float:
        """The shortest attest interval that anybody asked for, seconds."""
        asked = [one.details.attestIntervalSeconds for one in self._subscriptions if one.details.list == "Devices"]
        return float(min(asked, default=DEFAULT_INTERVAL_SECONDS))

    # Places

    async def run(self) -> None:
        """Scan until cancelled."""
        pause = self.pace.ports_seconds if self.transport is Transport.SERIAL else None
        try:
            while True:
                self._survey_wanted.clear()
                if self._broken is not None:
                    raise self._broken
                await self._survey()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._survey_wanted.wait()
        finally:
            watches = [sighting.watch for sighting in self._sightings.values() if sighting.watch]
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _survey(self) -> None:
        """Find all places, begin to watch new ones and give up those that are gone."""
        wanted: dict[str, tuple[Place, str]] = {}
        enrolled = tuple(self._enrolment.devices())
        if self.transport is Transport.NETWORK:
            for subscription in self._subscriptions:
                subscription.ports = ()
                for address in subscription.details.addresses:
                    wanted[str(address)] = (NetworkPlace(address), "")
            for device in enrolled:
                for text in {device.address, device.endpoint} - {""}:
                    with suppress(ValueError):  # a Device's address is its owner's; a wrong one is never reached
                        place = NetworkPlace(parse_address(text))
                        wanted[place.key] = (place, device.id)
        else:
            for subscription in tuple(self._subscriptions):
                globs = subscription.details.globs
                found = await asyncio.to_thread(self._find, globs)
                if subscription.ports != found:
                    subscription.ports = found
                    subscription.changed.set()
                if subscription.details.list == "Devices":
                    for port in found:
                        place_at = PortPlace(port)
                        wanted[place_at.key] = (place_at, _behind(port, enrolled))
        self._watch(wanted)

    def _watch(self, wanted: dict[str, tuple[Place, str]]) -> None:
        for key, sighting in tuple(self._sightings.items()):
            if key not in wanted or wanted[key][0] != sighting.place:
                del self._sightings[key]
                if sighting.watch:
                    sighting.watch.cancel()
                for device_id in sighting.filed:
                    self._of[device_id].discard(sighting)
                    self._publish(device_id)
                sighting.filed.clear()
        for key, (place, expected) in wanted.items():
            sighting = self._sightings.setdefault(key, _Sighting(place))
            sighting.expected = expected
            self._file(sighting, expected)
            if sighting.watch is None:
                sighting.watch = asyncio.create_task(self._keep_looking(sighting))
                sighting.watch.add_done_callback(self._ended)
        self._notify()

    def _ended(self, watch: asyncio.Task[None]) -> None:
        """A watch ends by being cancelled; anything else is our own fault, and must not pass as a silent device."""
        if not watch.cancelled() and (error := watch.exception()) is not None:
            self._broken = error
            self._survey_wanted.set()

    # Looks

    async def _keep_looking(self, sighting: _Sighting) -> None:
        while True:
            sighting.wake.clear()
            before = sighting.device_id
            try:
                async with self._slots:
                    conclusive = await self._look(sighting)
                sighting.failures = 0 if conclusive else sighting.failures + 1
            except DeviceError as error:
                self._silent(sighting, error)
            except Reject as error:
                sighting.forget()
                sighting.failures += 1
                _log.warning("%s: %s", sighting.place.key, error)
            first, sighting.looked = not sighting.looked, True
            for device_id in {before, sighting.device_id, sighting.expected}:
                self._publish(device_id)
            for device_id in sighting.filed - {sighting.device_id, sighting.expected}:
                sighting.filed.discard(device_id)  # whoever claims many names is on file under one
                self._of[device_id].discard(sighting)
                if not self._of[device_id]:
                    del self._of[device_id]
            if first:
                self._notify()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause(sighting)):
                    await sighting.wake.wait()

    def _pause(self, sighting: _Sighting) -> float | None:
        """Seconds until the next look (rules 2 and 4); None: until it is woken."""
        again = _FIRST_PAUSE_SECONDS * 2 ** min(sighting.failures - 1, 16) if sighting.failures else 0.0
        if isinstance(sighting.place, NetworkPlace):
            return min(again or self.pace.scan_seconds, self.pace.scan_seconds)
        if sighting.in_hand:
            return None
        if again:
            return min(again, self.interval)
        last = sighting.attestation
        return max(0.0, self.interval - (self._steady() - last.at)) if last else self.interval

    async def _look(self, sighting: _Sighting) -> bool:
        """One look; returns False where there is reason to look again soon. Raises DeviceError or Reject."""
        owner = self._device(sighting.device_id or sighting.expected)
        sighting.in_hand = _hands_off(owner, sighting.place)
        if isinstance(sighting.place, PortPlace) and sighting.in_hand:
            return True
        async with sighting.place.reach() as contact:
            info = await contact.client.info()
            device = self._device(info.ueid.hex())
            sighting.device_id, sighting.endpoint = info.ueid.hex(), contact.endpoint
            self._file(sighting, sighting.device_id)
            sighting.enrolled = device is not None
            sighting.in_hand = _hands_off(device, sighting.place)
            if device is None or not rules.may_attest(info, in_hand=sighting.in_hand):
                sighting.forget()
                return device is None or sighting.in_hand
            if not rules.due(sighting.attestation, info, now=self._steady(), interval=self.interval):
                return True
            if sighting.attestation is not None and sighting.attestation.contradicted_by(info):
                sighting.forget()
                self._publish(sighting.device_id)
            attestation = await self._attest(contact, info)
        if not sighting.in_hand:  # a task that took it meanwhile makes this answer void
            sighting.attestation = attestation
            self._judge(sighting, attestation, self._context(attestation))
        return True

    async def _attest(self, contact: Contact, info: Info) -> rules.Attestation:
        nonce = self._random(32)
        evidence = await contact.client.attest(nonce)
        return rules.Attestation(
            device_id=info.ueid.hex(),
            endpoint=contact.endpoint,
            reached=contact.reached,
            nonce=nonce,
            evidence=evidence,
            boot_seed=info.bootseed,
            slot_state=info.slot_state,
            at=self._steady(),
            unix=int(self._unix()),
        )

    def _context(self, attestation: rules.Attestation) -> Context:
        context = self._enrolment.context(attestation.device_id, ExactNonce(attestation.nonce), attestation.unix)
        return replace(context, slot_states=rules.LISTABLE)

    def _judge(self, sighting: _Sighting, attestation: rules.Attestation, context: Context) -> None:
        before = sighting.judged
        sighting.context = context
        sighting.judged, sighting.listing = rules.judge(attestation, verify(attestation.evidence, context))
        if before is None or (before.code, before.message) != (sighting.judged.code, sighting.judged.message):
            _log.info("%s at %s: %s", attestation.device_id, attestation.endpoint, sighting.judged.message)

    def _silent(self, sighting: _Sighting, error: DeviceError) -> None:
        sighting.failures += 1
        if sighting.failures == rules.MISSES:
            _log.info("%s: %s", sighting.place.key, error)
        if sighting.failures >= rules.MISSES:
            sighting.forget()
            sighting.endpoint = ""

    # Changes

    def _device_changed(self, device_id: str) -> None:
        """Rule 3."""
        device = self._device(device_id)
        for sighting in self._claiming(device_id):
            in_hand = _hands_off(device, sighting.place)
            look_now = device is not None and not in_hand and (sighting.in_hand or not sighting.enrolled)
            sighting.in_hand, sighting.enrolled = in_hand, device is not None
            if device is None or device.in_hand:
                sighting.forget()
            elif sighting.attestation is not None:
                look_now |= self._judge_again(sighting, sighting.attestation)
            if look_now:
                sighting.failures = 0
                sighting.wake.set()
        self._publish(device_id)
        where = (device.address, device.endpoint, device.port) if device else ()
        if self._where.get(device_id) != where:
            self._where[device_id] = where
            self._survey_wanted.set()

    def _judge_again(self, sighting: _Sighting, attestation: rules.Attestation) -> bool:
        """Evidence that holds no longer counts no longer. Returns True where new evidence is to be asked for."""
        try:
            context = self._context(attestation)
        except Reject as error:
            sighting.forget()
            _log.warning("%s: %s", attestation.endpoint, error)
            return False
        if context == sighting.context:
            return False
        listed = sighting.listing is not None
        self._judge(sighting, attestation, context)
        if sighting.listing is not None and not listed:
            sighting.forget()  # what is to be listed anew is proven anew
            return True
        return False

    def _device(self, device_id: str) -> EnrolledDevice | None:
        try:
            return self._enrolment.device(device_id) if device_id else None
        except Reject as error:
            _log.warning("%s: %s", device_id, error)
            return None

    # Lists

    def _publish(self, device_id: str) -> None:
        """Bring what is shown and reported of one device up to date (rules 5 and 6)."""
        if not device_id:
            return
        device = self._device(device_id)
        claims = [one for one in self._claiming(device_id) if one.device_id == device_id]
        claims.sort(key=lambda one: (one.listing is None, one.expected != device_id, one.place.key))
        best = claims[0] if claims else None
        before, listing = self.shown.get(device_id), best.listing if best else None
        if device is None or listing is None or device.in_hand or device.withheld:
            listing = None
            self.shown.pop(device_id, None)
        elif before is None or before.chip != device.chip or not before.listing.same_but_for_evidence(listing):
            token = encode_token(mint_listing(listing, self._key))
            self.shown[device_id] = Shown(listing, token, device.chip)
        if before is not self.shown.get(device_id):
            self._notify()
        if device is not None and self._has_seen(device_id):
            look = Look(device_id, _endpoint(device, claims), best.judged if best else None, listing)
            if self._looks.get(device_id) != look:
                self._looks[device_id] = look
                self._reports.saw(look)

    def _has_seen(self, device_id: str) -> bool:
        """Whether there is anything to say: other handlers report what they see, and nothing is said before a look."""
        return device_id in self._looks or any(one.looked for one in self._claiming(device_id))

    def _file(self, sighting: _Sighting, device_id: str) -> None:
        if device_id and device_id not in sighting.filed:
            sighting.filed.add(device_id)
            self._of.setdefault(device_id, set()).add(sighting)

    def _claiming(self, device_id: str) -> list[_Sighting]:
        """All places where the device says it is, or is enrolled to be."""
        return [one for one in self._of.get(device_id, ()) if device_id in (one.device_id, one.expected)]

    def _notify(self) -> None:
        for subscription in self._subscriptions:
            subscription.changed.set()


def _hands_off(device: EnrolledDevice | None, place: Place) -> bool:
    """Whether a task is not to be disturbed at this place (rule 2)."""
    return device is not None and (device.in_hand or (device.at_work and isinstance(place, PortPlace)))


def _behind(port: SerialPort, enrolled: Sequence[EnrolledDevice]) -> str:
    """The device that is enrolled behind a port; empty if there is none, or more than one."""
    found = [one.id for one in enrolled if one.port and one.port.items() <= port.properties.items()]
    return found[0] if len(found) == 1 else ""


def _endpoint(device: EnrolledDevice, claims: Sequence[_Sighting]) -> str:
    """Where the device is on the network: where it has proven to be, or, in a task's hands, where it alone says it is.

    Whoever it is counts, not what it runs: a device with unknown firmware must be found, to be updated away from it.
    """
    network = [one for one in claims if isinstance(one.place, NetworkPlace) and one.endpoint]
    accepted = [one.endpoint for one in network if one.judged is not None and not one.judged.code]
    itself = [one.endpoint for one in network if one.judged is not None and one.judged.is_itself]
    if accepted or itself or not device.in_hand:
        return next(iter([*accepted, *itself]), "")
    said = {one.endpoint for one in network if one.failures == 0}
    return said.pop() if len(said) == 1 else ""
