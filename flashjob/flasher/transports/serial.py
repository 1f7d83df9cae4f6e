# SPDX-License-Identifier: Apache-2.0
"""A device on a serial port: esptool's program writes it, its own application answers between the lines of its log.

Rules (tests name them):

1. Port and lock are held by one of two at a time: the esptool program (from `probe` to `reboot` or `abandon`), or the
   application's client. Nothing else opens the port in between.
2. What is written is a `writing.WritePlan` and nothing else, step by step; the selecting record comes last.
3. A write that outlasts the permit ends with the program killed (WriteTimeout).
4. A reset takes native USB off its bus: after it the port may be missing for as long as the application may take to
   answer. Still missing then, it is PortVanished; before it, a missing port is PortNotFound at once.
5. Encrypted flash and a locked download mode are told and not read: what is on them would be guesswork.
6. What the chip says of itself is checked like any input: nonsense is PreflightFailed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from attestation.device_protocol import DeviceError, Info, Verb
from attestation.device_serial import SerialDevice
from attestation.serial_port import ByteStream, open_port
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp import chips, partitions
from firmware_pipeline.esp.otadata import OTADATA_SIZE, blank_otadata
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.plan import PartitionEntry
from flashjob.errors import FlashJobError
from flashjob.flasher import writing
from flashjob.flasher.content import Content
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.transports.base import Locate, Progress, failure, problem
from flashjob.wire.esptool_lines import ChipEvent, Region
from flashjob.wire.gateway import PermitReply
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import USUAL, SerialSettings

_WAKE_SECONDS = 0.5
"""How soon a request is repeated while an application starts."""
_REOPEN_SECONDS = 0.1
"""How soon a port that left its bus is looked for again."""


class SerialTransport:
    """One device on one port.

    Args:
        port: device node, a link to it, or a pyserial URL (`socket://`, `rfc2217://`).
        work_dir: an existing directory for the image while it is written.
        settings: how the line is driven while esptool has it.
    """

    kind: Literal["serial", "network"] = "serial"

    def __init__(
        self,
        port: str,
        work_dir: Path,
        settings: SerialSettings = USUAL,
    ) -> None:
        self._port, self._work_dir, self._settings = port, work_dir, settings
        self._tool: Esptool | None = None
        self._device: SerialDevice | None = None
        self._plan: writing.WritePlan | None = None
        self._info: Info | None = None
        self._written_before = 0

    @property
    def bytes_written(self) -> int:
        """Bytes of flash written in this attempt."""
        return self._written_before + (self._tool.bytes_written if self._tool else 0)

    async def info(self, seconds: float, locate: Locate | None = None) -> Info:
        """Ask the application, again and again until it answers. With `locate`, rule 4 holds as after a reset.

        Raises:
            FlashJobError: PortSilent, PortBusy, PortNotFound, TransportLost; with `locate` also PortVanished.
        """
        return await self._awake(seconds, returning=locate is not None)

    async def _awake(self, seconds: float, *, returning: bool) -> Info:
        missing: DeviceError | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        self._info = await self._wake()
                        return self._info
                    except DeviceError as error:
                        if not returning or error.reason not in ("Unreachable", "ConnectionLost"):
                            raise failure(error, Reason.PORT_NOT_FOUND) from error
                        missing = error
                    await asyncio.sleep(_REOPEN_SECONDS)
                    missing = None if _exists(self._port) else missing
        except TimeoutError as error:
            await self._stop_application_client()
            if missing is not None:
                raise problem(Reason.PORT_VANISHED, f"it did not come back: {missing.message}") from error
            message = f"the application on {self._port} did not answer within {seconds:g} s"
            raise problem(Reason.PORT_SILENT, message) from error

    async def _wake(self) -> Info:
        await self._stop_application_client()
        stream = await _open(self._port)
        waking = self._device = SerialDevice(stream, repeat_seconds=_WAKE_SECONDS)
        while True:
            try:
                info = await waking.info()
                break
            except DeviceError as error:
                if error.reason != "Timeout":
                    raise
        self._device = SerialDevice(stream)
        return info

    async def evidence(self, nonce: bytes) -> bytes:
        """Evidence of the running application over a 32-byte nonce."""
        device = await self._application()
        try:
            return await device.attest(nonce)
        except DeviceError as error:
            raise failure(error, Reason.PORT_SILENT) from error

    async def device_nonce(self, verb: Verb) -> bytes:
        """The device's own nonce for a grant."""
        device = await self._application()
        try:
            return (await device.nonce(verb)).value
        except DeviceError as error:
            raise failure(error, Reason.PORT_SILENT) from error

    async def confirm(self, grant: bytes) -> bytes:
        """Hand over a confirm grant; evidence over its second nonce."""
        device = await self._application()
        try:
            return await device.grant(grant)
        except DeviceError as error:
            raise failure(error, Reason.CONFIRM_TIMEOUT) from error

    async def revert(self, grant: bytes, seconds: float, locate: Locate) -> Info:
        """Hand over a revert grant, and wait for the boot after it (rule 4)."""
        device = await self._application()
        seed = self._info.bootseed if self._info is not None else None
        try:
            await device.grant(grant)
        except DeviceError as error:
            raise failure(error, Reason.PORT_SILENT) from error
        try:
            async with asyncio.timeout(seconds):
                while (info := await self._awake(seconds, returning=True)).bootseed == seed:
                    await asyncio.sleep(_REOPEN_SECONDS)
                return info
        except TimeoutError as error:
            raise problem(Reason.PORT_SILENT, f"no new boot answers on {self._port} within {seconds:g} s") from error

    async def install_nonce(self) -> bytes | None:
        """Over serial no install grant is sent."""
        return None

    async def probe(self, partition_table_offset: int, content: Content | None = None) -> HardwareFacts:
        """Chip, flash, security, partition table and otadata, through the loader; the port stays held.

        A chip that was found and cannot be written is let run again.

        Raises:
            FlashJobError: PortNotFound, PortBusy, PortSilent, PortVanished, TransportLost, WrongChip,
                PreflightFailed, and what `writing` refuses.
        """
        await self._stop_application_client()
        tool = Esptool(self._port, self._settings)
        self._tool = await tool.__aenter__()
        chip, _ = await tool.probe()
        try:
            return await self._facts(tool, chip, partition_table_offset, content or Content())
        except FlashJobError:
            with contextlib.suppress(FlashJobError):
                await self.abandon()
            raise

    async def _facts(self, tool: Esptool, chip: ChipEvent, table_offset: int, content: Content) -> HardwareFacts:
        try:
            facts = {"chip_id": chips.by_target(chip.chip).chip_id} | _told(chip)
            if self._info is not None:
                facts |= _claims(self._info)
            if not (chip.secure_download or chip.flash_encryption):
                # An artifact for another chip has no place here; that it is one, preflight says.
                fitting = content if content.chip in ("", chip.chip) else Content()
                facts |= await self._layout(tool, table_offset, fitting, chip.flash_size or None)
            return HardwareFacts.model_validate(facts)
        except PipelineError as error:
            raise problem(Reason.WRONG_CHIP, f"{self._port} holds an {chip.chip}: {error.message}") from error
        except ValidationError as error:
            first = error.errors()[0]
            message = f"{self._port}: the chip's {first['loc'][0]} makes no sense: {first['msg']}"
            raise problem(Reason.PREFLIGHT_FAILED, message) from error

    async def _layout(self, tool: Esptool, offset: int, content: Content, flash_size: int | None) -> dict[str, object]:
        raw = (await tool.read(Region(offset=offset, size=partitions.TABLE_SIZE)))[offset]
        place = writing.layout(raw, offset, content, answers=self._info is not None, flash_size=flash_size)
        record, data = place.new.otadata, blank_otadata()
        if record is not None:
            data = (await tool.read(Region(offset=record.offset, size=OTADATA_SIZE)))[record.offset]
        self._plan = writing.plan(place, data, self._info.running_slot if self._info else None, content)
        facts: dict[str, object] = {
            "partition_table_offset": offset,
            "target_slot": self._plan.target.index,
            "target_slot_size": self._plan.target.slot.size,
        }
        if place.old is None:
            return facts
        return facts | {
            "partition_table_sha256": partitions.table_sha256(raw).hex(),
            "partitions": tuple(PartitionEntry.of(row) for row in place.old.partitions),
        }

    async def write(self, image: bytes, permit: PermitReply, progress: Progress) -> None:
        """Write and verify one step after the other (rules 2 and 3)."""
        tool, plan = self._tool, self._plan
        if tool is None or plan is None or permit.grant_id is None:
            raise problem(Reason.INTERNAL_ERROR, "a write needs a probed chip and a permit with a grant id")
        steps = plan.steps(image, bytes.fromhex(permit.grant_id))
        total, before = sum(len(step.data) for step in steps), 0
        try:
            async with asyncio.timeout(permit.write_seconds):
                for step in steps:
                    erase = [Region(offset=offset, size=size) for offset, size in step.erase]
                    await tool.write(await self._regions(step), erase, _part(progress, before, total))
                    before += len(step.data)
        except TimeoutError as error:
            await self._end_tool(kill=True)
            raise problem(Reason.WRITE_TIMEOUT, f"not written after {permit.write_seconds} s") from error

    async def _regions(self, step: writing.Step) -> list[Region]:
        """What a step writes, in a file for the esptool program."""
        if not step.data:
            return []
        file = self._work_dir / f"{Path(self._port).name}-{step.name}.bin"
        await asyncio.to_thread(file.write_bytes, step.data)
        return [Region(offset=step.offset, file=str(file))]

    async def reboot(self, seconds: float, locate: Locate) -> Info:
        """Start the application; it must answer within `seconds`."""
        started = time.monotonic()
        await self.abandon()
        return await self._awake(max(0.1, seconds - (time.monotonic() - started)), returning=True)

    async def abandon(self) -> None:
        """Leave the loader, release the port."""
        if self._tool is not None:
            await self._tool.reset()
            await self._end_tool()

    async def close(self) -> None:
        """Kill a running write, release the port."""
        await self._end_tool(kill=True)
        await self._stop_application_client()

    async def _end_tool(self, *, kill: bool = False) -> None:
        tool, self._tool = self._tool, None
        if tool is not None:
            self._written_before += tool.bytes_written
            await tool.close(kill=kill)

    async def _application(self) -> SerialDevice:
        if self._device is None:
            await self.info(_WAKE_SECONDS * 8)
        if self._device is None:
            raise problem(Reason.INTERNAL_ERROR, "the port is not open")
        return self._device

    async def _stop_application_client(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            await device.close()


def _part(progress: Progress, before: int, total: int) -> Progress:
    """Progress of one of several parts, told as that of the whole."""
    return lambda done, _: progress(before + done, total)


async def _open(port: str) -> ByteStream:
    if "://" not in port:
        return await open_port(port)
    from flashjob.flasher.transports.url_port import open_url  # pyserial is an extra that network devices need not

    return await open_url(port)


def _exists(port: str) -> bool:
    """Whether the port is there; one behind a URL is asked by opening it."""
    return "://" not in port and Path(port).exists()


def _told(chip: ChipEvent) -> dict[str, object]:
    """What the loader shows."""
    return {
        "target": chip.chip,
        "revision": None if chip.secure_download else chip.revision,
        "flash_size": chip.flash_size or None,
        "mac": chip.mac or None,
        "secure_boot": chip.secure_boot,
        "flash_encryption": "release" if chip.flash_encryption else "off",
        "secure_download": chip.secure_download,
    }


def _claims(info: Info) -> dict[str, object]:
    """What the application said before it was stopped: facts that the loader does not show."""
    return {
        "efuse_secure_version": info.efuse_secure_version,
        "app_name": info.name or None,
        "app_version": info.version or None,
        "app_secure_version": info.secure_version,
    }
