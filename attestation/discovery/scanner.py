# SPDX-License-Identifier: Apache-2.0
"""The one scanner of a handler: looks at every place again and again, and keeps what may be listed.

Who is attested and listed is decided in `rules`, what counts of several places in `sightings`; this is the I/O around
it. Rules (tests name them):

1. Each place has one look at a time, each with a deadline; at most `looks` places that answer are looked at at once,
   and apart from them at most `probes` that may not.
2. On the network a look is `info`, and evidence when due. A serial port is opened only when evidence is due, never while
   a task is at work on its device; all ports are found anew every `ports_seconds`. What is unreadable is logged, once.
3. A change of a device's enrolment, policy or tasks takes effect at once: evidence is judged again, a device in hand is
   withdrawn, one that was given back is looked at without delay.
4. Evidence that says that two devices share one identity (`boots`) withdraws the device and is what is reported of it.
5. A new token is made only when it would say something new; a device that comes back as it was is listed as it was.
6. Announced addresses (`mdns`) are places while a Configuration wants them.
7. When Configurations come or go, the interval that is then the shortest holds for pauses that have begun, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from attestation.device_http import NotBound
from attestation.device_protocol import DeviceError, Info
from attestation.dice_chain import ChainCache
from attestation.discovery import mdns, rules
from attestation.discovery.addresses import Address, parse_address
from attestation.discovery.boots import Boots
from attestation.discovery.details import DEFAULT_INTERVAL_SECONDS, Details, Transport
from attestation.discovery.enrolled import EnrolledDevice, Enrolment, Look, Reports
from attestation.discovery.entries import Shown
from attestation.discovery.listing import Listing, encode_token, mint_listing
from attestation.discovery.places import Contact, NetworkPlace, Place, PortPlace
from attestation.discovery.ports import Found, find_ports
from attestation.discovery.sightings import Pace, Sighting, behind, by_weight, hands_off, network_endpoint
from attestation.discovery.subscription import Subscription
from attestation.errors import Reject
from attestation.keys import PrivateKey
from attestation.verdict import Context, ExactNonce
from attestation.verifier import verify

_log = logging.getLogger(__name__)
_CHAINS: Final = 2048


class Scanner:
    """Run `run()` as a task; subscribe from the same event loop.

    Args:
        transport: which places.
        enrolment: knows the devices.
        reports: is told what was found.
        key: signs listing tokens, P-256.
        pace: how often.
        find: finds serial ports.
        browse: listens for announced addresses until cancelled.
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
        find: Callable[[Iterable[str]], Found] = find_ports,
        browse: Callable[[mdns.Found], Awaitable[None]] = mdns.browse,
        steady: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.transport = transport
        self.pace = pace or Pace()
        self.shown: dict[str, Shown] = {}
        self._minted: dict[str, Shown] = {}
        self._enrolment, self._reports, self._key = enrolment, reports, key
        self._find, self._browse = find, browse
        self._steady, self._unix, self._random = steady, unix, random
        self._slots, self._probes = asyncio.Semaphore(self.pace.looks), asyncio.Semaphore(self.pace.probes)
        self._chains, self._boots = ChainCache(_CHAINS), Boots()
        self._announced: frozenset[Address] = frozenset()
        self._browsing: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._sightings: dict[str, Sighting] = {}
        self._of: dict[str, set[Sighting]] = {}
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
        self._subscriptions_changed()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listing for it."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._subscriptions_changed()

    def _subscriptions_changed(self) -> None:
        """Rule 7."""
        self._survey_wanted.set()
        for sighting in self._sightings.values():
            if sighting.rest is not None and not sighting.rest.expired():
                pause = self._pause(sighting)
                sighting.rest.reschedule(None if pause is None else asyncio.get_running_loop().time() + pause)

    def settled(self, subscription: Subscription) -> bool:
        """Whether every place was looked at once."""
        if not subscription.surveyed:
            return False
        return subscription.details.list == "Ports" or all(sighting.looked for sighting in self._sightings.values())

    @property
    def asked(self) -> frozenset[Details]:
        """What is listed for whom listens now."""
        return frozenset(subscription.details for subscription in self._subscriptions)

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
                await asyncio.sleep(min(self.pace.survey_seconds, pause or self.pace.survey_seconds))
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._survey_wanted.wait()
        finally:
            tasks = [one.watch for one in self._sightings.values() if one.watch]
            tasks += [self._browsing] if self._browsing else []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _survey(self) -> None:
        """Find all places, begin to watch new ones and give up those that are gone."""
        wanted: dict[str, tuple[Place, str]] = {}
        enrolled = tuple(self._enrolment.devices())
        subscriptions = tuple(self._subscriptions)
        if self.transport is Transport.NETWORK:
            self._listen(any(subscription.details.mdns for subscription in subscriptions))
            for subscription in subscriptions:
                wanted.update((place.key, (place, "")) for place in subscription.places)
            wanted.update((place.key, (place, "")) for place in map(NetworkPlace, self._announced))
            for device in enrolled:
                for text in {device.address, device.endpoint} - {""}:
                    with suppress(ValueError):  # a Device's address is its owner's; a wrong one is never reached
                        place = NetworkPlace(parse_address(text))
                        wanted[place.key] = (place, device.id)
        else:
            for subscription in subscriptions:
                found = await asyncio.to_thread(self._find, subscription.details.globs)
                ports = subscription.found(found, now=self._steady())
                if subscription.details.list == "Devices":
                    for port in ports:
                        place_at = PortPlace(port)
                        wanted[place_at.key] = (place_at, behind(port, enrolled))
        for subscription in subscriptions:
            subscription.surveyed = True
        self._watch(wanted)

    def _listen(self, wanted: bool) -> None:
        """Rule 6."""
        if wanted and self._browsing is None:
            self._browsing = asyncio.create_task(_forever(self._browse(self._announce)))
            self._browsing.add_done_callback(self._ended)
        elif not wanted and self._browsing is not None:
            self._browsing.cancel()
            self._browsing, self._announced = None, frozenset()

    def _announce(self, addresses: frozenset[Address]) -> None:
        if self._browsing is None:
            return  # a last word of somebody who is not listened to any more
        for address in addresses - self._announced:
            if (known := self._sightings.get(str(address))) is not None and known.silent:
                known.failures = 0
                known.wake.set()
        self._announced = addresses
        self._survey_wanted.set()

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
            sighting = self._sightings.setdefault(key, Sighting(place))
            if expected not in ("", sighting.expected, sighting.device_id):
                sighting.failures = 0
                sighting.wake.set()  # somebody is said to be here now
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

    async def _keep_looking(self, sighting: Sighting) -> None:
        while True:
            sighting.wake.clear()
            before = sighting.device_id
            try:
                async with self._probes if sighting.doubtful else self._slots:
                    conclusive = await self._look(sighting)
                sighting.silent = False
                sighting.failures = 0 if conclusive else sighting.failures + 1
            except DeviceError as error:
                self._silent(sighting, error)
            except Reject as error:
                sighting.forget()
                sighting.silent = False
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
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause(sighting)) as sighting.rest:
                        await sighting.wake.wait()
            finally:
                sighting.rest = None

    def _pause(self, sighting: Sighting) -> float | None:
        return sighting.pause(self.pace, interval=self.interval, now=self._steady())

    async def _look(self, sighting: Sighting) -> bool:
        """One look; returns False where there is reason to look again soon. Raises DeviceError or Reject."""
        owner = self._device(sighting.device_id or sighting.expected)
        sighting.in_hand = hands_off(owner, sighting.place)
        if isinstance(sighting.place, PortPlace) and sighting.in_hand:
            return True
        async with sighting.place.reach() as contact:
            info = await contact.client.info()
            device = self._device(info.ueid.hex())
            sighting.device_id, sighting.endpoint = info.ueid.hex(), contact.endpoint
            self._file(sighting, sighting.device_id)
            sighting.enrolled = device is not None
            sighting.in_hand = hands_off(device, sighting.place)
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
            if sighting.judged is not None:
                asked_at, seen_at = int(attestation.at * 1000), int(self._steady() * 1000)
                self._boots.saw(attestation.device_id, sighting.judged, asked_at=asked_at, seen_at=seen_at)
                self._boots.enrolled(attestation.device_id, self._device(attestation.device_id))
                self._ask_others_again(sighting, attestation.device_id)
        return True

    async def _attest(self, contact: Contact, info: Info) -> rules.Attestation:
        nonce, at, unix = self._random(32), self._steady(), int(self._unix())
        bound = True
        try:
            evidence = await contact.client.attest(nonce)
        except NotBound as error:  # judged as well: whose it is, and that it came by another's hands
            evidence, bound = error.evidence, False
        return rules.Attestation(
            device_id=info.ueid.hex(),
            endpoint=contact.endpoint,
            reached=contact.reached,
            nonce=nonce,
            evidence=evidence,
            boot_seed=info.bootseed,
            slot_state=info.slot_state,
            at=at,
            unix=unix,
            bound=bound,
        )

    def _ask_others_again(self, sighting: Sighting, device_id: str) -> None:
        """Where the device answered in another boot: has it booted since, or are there two of them?

        Only boots that its own key signed count: else whoever claims to be the device could have it asked without end.
        """
        seed = sighting.boot_seed
        if seed is None or self._boots.alarm(device_id) is not None:  # else that is answered
            return
        for other in self._claiming(device_id):
            if other.attestation is not None and other.boot_seed not in (None, seed):
                other.attestation = replace(other.attestation, at=-math.inf)
                other.wake.set()

    def _context(self, attestation: rules.Attestation) -> Context:
        context = self._enrolment.context(attestation.device_id, ExactNonce(attestation.nonce), attestation.unix)
        return replace(context, slot_states=rules.LISTABLE)

    def _judge(self, sighting: Sighting, attestation: rules.Attestation, context: Context) -> None:
        before = sighting.judged
        sighting.context = context
        sighting.judged, sighting.listing = rules.judge(
            attestation, verify(attestation.evidence, context, chains=self._chains)
        )
        if before is None or (before.code, before.message) != (sighting.judged.code, sighting.judged.message):
            _log.info("%s at %s: %s", attestation.device_id, attestation.endpoint, sighting.judged.message)

    def _silent(self, sighting: Sighting, error: DeviceError) -> None:
        sighting.silent = True
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
        released = self._boots.enrolled(device_id, device)
        for sighting in self._claiming(device_id):
            in_hand = hands_off(device, sighting.place)
            look_now = device is not None and not in_hand and (sighting.in_hand or not sighting.enrolled)
            sighting.in_hand, sighting.enrolled = in_hand, device is not None
            if device is None or device.in_hand:
                sighting.forget()
            elif released:
                sighting.forget()
                look_now = not in_hand
            elif sighting.attestation is not None:
                look_now |= self._judge_again(sighting, sighting.attestation)
            if look_now:
                sighting.failures = 0
                sighting.wake.set()
        self._publish(device_id)
        where = ({device.address, device.endpoint}, device.port) if device else ()
        if self._where.get(device_id) != where:
            self._where[device_id] = where
            self._survey_wanted.set()

    def _judge_again(self, sighting: Sighting, attestation: rules.Attestation) -> bool:
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
        """Bring what is shown and reported of one device up to date."""
        if not device_id:
            return
        device, alarm = self._device(device_id), self._boots.alarm(device_id)
        claims = by_weight(self._claiming(device_id), device_id)
        best = claims[0] if claims else None
        before, listing = self.shown.get(device_id), best.listing if best else None
        if device is None or listing is None or device.in_hand or device.withheld or alarm is not None:
            listing = None
            self.shown.pop(device_id, None)
            if device is None:
                self._minted.pop(device_id, None)
        else:
            self.shown[device_id] = self._minted[device_id] = self._mint(device, listing)
        if before is not self.shown.get(device_id):
            self._notify()
        if device is not None and self._has_seen(device_id):
            judged = alarm or (best.judged if best else None)
            look = Look(device_id, network_endpoint(device, claims), judged, listing)
            if self._looks.get(device_id) != look:
                self._looks[device_id] = look
                self._reports.saw(look)

    def _mint(self, device: EnrolledDevice, listing: Listing) -> Shown:
        """Rule 5."""
        last = self._minted.get(device.id)
        if last is not None and last.chip == device.chip and last.listing.same_but_for_evidence(listing):
            return last
        return Shown(listing, encode_token(mint_listing(listing, self._key)), device.chip)

    def _has_seen(self, device_id: str) -> bool:
        """Whether there is anything to say: other handlers report what they see, and nothing is said before a look."""
        return device_id in self._looks or any(one.looked for one in self._claiming(device_id))

    def _file(self, sighting: Sighting, device_id: str) -> None:
        if device_id and device_id not in sighting.filed:
            sighting.filed.add(device_id)
            self._of.setdefault(device_id, set()).add(sighting)

    def _claiming(self, device_id: str) -> list[Sighting]:
        """All places where the device says it is, or is enrolled to be."""
        return [one for one in self._of.get(device_id, ()) if device_id in (one.device_id, one.expected)]

    def _notify(self) -> None:
        for subscription in self._subscriptions:
            subscription.changed.set()


async def _forever(work: Awaitable[None]) -> None:
    await work
    raise RuntimeError("listening for announced addresses ended by itself")
