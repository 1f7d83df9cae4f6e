# SPDX-License-Identifier: Apache-2.0
"""A device that receives its image over HTTP and checks grant and image itself.

Rules (tests name them):

1. A lost connection is resumed where the device says it is, as long as it says so within `_RESUME_SECONDS`.
2. A device that has forgotten the grant, or its nonce (it reset), needs a new permit: `PermitSpent`.
3. After the last byte the device reboots by itself; it has come back when `info` shows another boot seed. Its address
   may have changed: `locate` is asked each time it is not where it was.
4. An address that begins with https:// is spoken to over TLS, bound to the device by its evidence; the boot that the
   evidence was of ends the bond.
5. A device that says where to go on again and again without taking a byte is not followed: TransportLost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceError, ErrorCode, Flag, Info, Verb
from attestation.discovery.addresses import Address, parse_address
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import chips
from firmware_pipeline.esp.otadata import SlotState
from firmware_pipeline.esp.partitions import SUBTYPE_OTA_0
from firmware_pipeline.hardware import HardwareFacts
from flashjob.flasher.content import Content
from flashjob.flasher.transports.base import Locate, PermitSpent, Progress, failure, problem
from flashjob.wire.gateway import PermitReply
from flashjob.wire.reasons import Reason

log = logging.getLogger(__name__)

_RESUME_SECONDS = 20.0
_POLL_SECONDS = 0.2
_STANDSTILLS = 3
_FORGOTTEN = (ErrorCode.STATE, ErrorCode.NONCE)
_JUST_INSTALLED = (SlotState.NEW, SlotState.PENDING_VERIFY)
_T = TypeVar("_T")


class NetworkTransport:
    """One device at `address`: "host:port", "https://" before it for TLS. Raises FlashJobError: TransportUnsupported."""

    kind: Literal["serial", "network"] = "network"

    def __init__(self, address: str) -> None:
        self._device = _device(read_address(address))
        self._info: Info | None = None
        self._sent = 0

    @property
    def bytes_written(self) -> int:
        """Image bytes handed to the device."""
        return self._sent

    async def info(self, seconds: float, locate: Locate | None = None) -> Info:
        """What the device says of itself, asking until it answers."""
        self._info = await self._until(seconds, lambda _: True, locate=locate)
        return self._info

    async def evidence(self, nonce: bytes) -> bytes:
        """Evidence over a 32-byte nonce."""
        return await _told(self._device.attest(nonce), Reason.DEVICE_UNREACHABLE)

    async def device_nonce(self, verb: Verb) -> bytes:
        """The device's own nonce for a grant."""
        return (await _told(self._device.nonce(verb), Reason.DEVICE_UNREACHABLE)).value

    async def install_nonce(self) -> bytes | None:
        """The device nonce that the install grant must carry."""
        return await self.device_nonce(Verb.INSTALL)

    async def confirm(self, grant: bytes) -> bytes:
        """Hand over a confirm grant; evidence over its second nonce."""
        return await _told(self._device.grant(grant), Reason.CONFIRM_TIMEOUT)

    async def revert(self, grant: bytes, seconds: float, locate: Locate) -> Info:
        """Hand over a revert grant, and wait for the boot after it (rule 3)."""
        await _told(self._device.grant(grant), Reason.DEVICE_UNREACHABLE)
        return await self.reboot(seconds, locate)

    async def probe(self, partition_table_offset: int, content: Content | None = None) -> HardwareFacts:
        """What the device said of its hardware, when it was asked last: enough to refuse; it checks again by itself."""
        if self._info is None:
            self._info = await _told(self._device.info(), Reason.DEVICE_UNREACHABLE)
        info = self._info
        try:
            target = chips.by_id(info.chip_id).target
        except PipelineError as error:
            raise problem(Reason.WRONG_CHIP, error.message) from error
        encryption: Literal["off", "development", "release"] = "off"
        if Flag.FLASH_ENCRYPTION in info.flags:
            encryption = "release" if Flag.ENCRYPTION_RELEASE in info.flags else "development"
        return HardwareFacts(
            target=target,
            chip_id=info.chip_id,
            revision=info.chip_revision,
            flash_size=info.flash_size or None,
            secure_boot=Flag.SECURE_BOOT in info.flags,
            flash_encryption=encryption,
            jtag_disabled=Flag.JTAG_OFF in info.flags,
            anti_rollback=Flag.ANTI_ROLLBACK in info.flags,
            efuse_secure_version=info.efuse_secure_version,
            partition_table_sha256=info.partition_table.hex(),
            running_slot=info.running_slot - SUBTYPE_OTA_0 if 0 <= info.running_slot - SUBTYPE_OTA_0 < 16 else None,
            target_slot_size=info.target_slot_size or None,
            app_name=info.name or None,
            app_version=info.version or None,
            app_secure_version=info.secure_version,
        )

    async def write(self, image: bytes, permit: PermitReply, progress: Progress) -> None:
        """Install grant, then the image, resumed as often as the line breaks (rules 1 and 2)."""
        if permit.install_grant is None:
            raise problem(Reason.INTERNAL_ERROR, "the permit carries no install grant")

        def sent(done: int) -> None:
            self._sent = max(self._sent, done)
            progress(done, len(image))

        try:
            async with asyncio.timeout(permit.write_seconds):
                await self._grant(permit.install_grant)
                await self._upload(image, bytes.fromhex(permit.grant_id or ""), sent)
        except TimeoutError as error:
            raise problem(Reason.WRITE_TIMEOUT, f"not written after {permit.write_seconds} s") from error

    async def _grant(self, grant: bytes) -> None:
        try:
            await self._device.grant(grant)
        except DeviceError as error:
            if error.code is ErrorCode.NONCE:
                raise PermitSpent(Reason.TRANSPORT_LOST.value, error.message) from error
            raise failure(error, Reason.TRANSPORT_LOST) from error

    async def _upload(self, image: bytes, grant_id: bytes, sent: Callable[[int], None]) -> None:
        offset = furthest = standstills = 0
        while True:
            standstills = 0 if offset > furthest else standstills + 1
            if standstills > _STANDSTILLS:
                raise problem(Reason.TRANSPORT_LOST, f"the device stands still at byte {offset} of {len(image)}")
            furthest = max(furthest, offset)
            try:
                await self._device.image(image, offset, sent)
                return
            except DeviceError as error:
                if error.code is ErrorCode.OFFSET and error.next_offset is not None:
                    offset = _within(error.next_offset, image)
                    continue
                if error.code in _FORGOTTEN:
                    raise PermitSpent(Reason.TRANSPORT_LOST.value, error.message) from error
                if error.reason not in ("ConnectionLost", "Timeout", "Unreachable"):
                    raise failure(error, Reason.TRANSPORT_LOST) from error
                log.warning("upload interrupted: %s", error.message)
            info = await self._until(_RESUME_SECONDS, lambda _: True, Reason.TRANSPORT_LOST)
            if info.active_grant != grant_id or info.next_offset is None:
                if self._rebooted(info) and info.slot_state in _JUST_INSTALLED:
                    return  # only the answer to the last byte was lost
                raise PermitSpent(Reason.TRANSPORT_LOST.value, "the device reset in the middle of the upload")
            offset = _within(info.next_offset, image)
            log.info("upload goes on at byte %d of %d", offset, len(image))

    async def reboot(self, seconds: float, locate: Locate) -> Info:
        """Wait for the device to come back (rule 3)."""
        await self._device.rebooted()
        info = await self._until(seconds, self._rebooted, Reason.SILENT_AFTER_WRITE, locate)
        self._info = info
        return info

    async def abandon(self) -> None:
        """Nothing was stopped, so nothing is started."""

    async def close(self) -> None:
        """Close the connection."""
        await self._device.close()

    def _rebooted(self, info: Info) -> bool:
        return self._info is None or info.bootseed != self._info.bootseed

    async def _until(
        self,
        seconds: float,
        good: Callable[[Info], bool],
        silent: Reason = Reason.DEVICE_UNREACHABLE,
        locate: Locate | None = None,
    ) -> Info:
        last = "it still shows the boot before the write"
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        info = await self._device.info()
                        if good(info):
                            return info
                        await self._device.close()  # a question on this connection would be lost with the reset to come
                    except DeviceError as error:
                        last = error.message
                        address = await locate() if locate is not None else None
                        found = read_address(address) if address is not None else None
                        if found is not None and found[:2] != (self._device.host, self._device.port):
                            await self._device.close()
                            self._device = _device(found._replace(tls=found.tls or self._device.tls))
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            message = f"{self._device.host}:{self._device.port} within {seconds:g} s: {last}"
            raise problem(silent, message) from error


def _within(offset: int, image: bytes) -> int:
    """A place to go on at that the image has (its end: only the answer is missing)."""
    if not 0 <= offset <= len(image):
        raise problem(Reason.TRANSPORT_LOST, f"the device wants byte {offset} of an image of {len(image)} bytes")
    return offset


async def _told(answer: Awaitable[_T], silent: Reason) -> _T:
    try:
        return await answer
    except DeviceError as error:
        raise failure(error, silent) from error


def _device(address: Address) -> HttpDevice:
    return HttpDevice(address.host, address.port, tls=address.tls)


def read_address(text: str) -> Address:
    """Where a device is, by the one reader of addresses. Raises FlashJobError: TransportUnsupported."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise problem(Reason.TRANSPORT_UNSUPPORTED, str(error)) from error
