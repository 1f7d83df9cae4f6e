# SPDX-License-Identifier: Apache-2.0
"""One virtual device: flash, loader, bootloader, application, and a serial or network line, put together.

Rules (tests name them):

1. The chip is in one of three modes: in its loader, running an application, or dead (nothing bootable, or silent by
   fault or lie). A reset always goes through the bootloader, which decides.
2. On a line without reset lines a SYNC frame seen outside the loader is a reset into the loader; nothing else
   but the reset lines, where there are some, brings it there (reset_lines.py). A loader told to leave is a reset into
   the application.
3. What flash, NVS and eFuses hold survives every reset; a nonce, an upload and a grant in RAM do not.
4. An installation that is not confirmed by its deadline rolls back by itself.
5. `boots` counts every start of the bootloader, the flash counts every byte: they are the proof of what really
   happened, whatever the device itself says.
6. A power cut ends everything at once, in loader, bootloader and application alike, and leaves the flash as it is then;
   the device starts again when the power is back.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path

from firmware_pipeline.esp import builder, chips, partitions
from firmware_pipeline.esp.partitions import PartitionTable
from flashjob.virtual import bootloader, slip
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.application import Application
from flashjob.virtual.bootloader import BootError
from flashjob.virtual.chip_registers import TARGETS, ChipFuses
from flashjob.virtual.faults import (
    BrownOut,
    CablePulled,
    Crash,
    Effect,
    Fault,
    NoisyLine,
    PowerCut,
    SilentPort,
    Slow,
    WrongChip,
)
from flashjob.virtual.flash import FactoryContent, Flash, FlashIOError, Operation, factory_content
from flashjob.virtual.network import DeviceServer
from flashjob.virtual.nvs import Nvs
from flashjob.virtual.port import SerialLine, SerialPort
from flashjob.virtual.profile import DEFAULT_CONFIRM_SECONDS, DeviceIdentity, Hardware, Owner
from flashjob.virtual.reset_lines import Pull, ResetLines, UartBridge
from flashjob.virtual.rom import SYNC, RomLoader
from flashjob.virtual.serial_application import SerialApplication
from flashjob.virtual.tcp_port import Protocol, TcpPort
from flashjob.virtual.timing import Timing

BOOT_SECONDS = 0.05
"""How long a chip takes from reset to its application."""


class Mode(Enum):
    """Where the chip is (rule 1)."""

    LOADER = "Loader"
    BOOTING = "Booting"
    RUNNING = "Running"
    DEAD = "Dead"


class CableGone(ConnectionError):
    """Raised through whatever is at work when cable or power go, or the chip hangs."""


class VirtualDevice:
    """A device on a serial line (`link` given) or on the network.

    Args:
        name: for people.
        identity: chip and secret.
        owner: provisioned public keys.
        link: where the serial port shall be found as a node; None: a network device, unless `tcp` is given.
        tcp: a serial device whose line is carried over TCP, see `tcp_port`.
        behaviour: how honest the firmware is.
        faults: what goes wrong below the firmware.
        timing: what takes its time.
        locked_loader: let the loader show and enforce the security eFuses, as hardware would: then nothing can be
            written over serial to a chip whose download mode is locked. False: the line ends in a loader of the
            owner's own, which is open.
        confirm_seconds: deadline of installations that came over serial.
        port: TCP port on 127.0.0.1; 0: any, and for a network device another after each reset with `moves`.
        moves: come back at another port after each reset.
        tls: a network device that speaks TLS, under a key of each boot that its evidence names.
    """

    def __init__(
        self,
        name: str,
        identity: DeviceIdentity,
        owner: Owner,
        *,
        link: Path | None = None,
        tcp: Protocol | None = None,
        behaviour: Behaviour | None = None,
        faults: Sequence[Fault] = (),
        timing: Timing | None = None,
        locked_loader: bool = False,
        confirm_seconds: int = DEFAULT_CONFIRM_SECONDS,
        port: int = 0,
        moves: bool = False,
        tls: bool = False,
    ) -> None:
        self.name, self.identity = name, identity
        self.behaviour = behaviour or Behaviour()
        self.faults = list(faults)
        self.flash = Flash(identity.hardware.flash_size, hook=self._flash_hook)
        self.nvs = Nvs()
        self.mode = Mode.DEAD
        self.boots = 0
        self.boot_failure = ""
        self.application: Application | None = None
        self.server = DeviceServer(self._asked_to_reset, self._image_bytes, self._late, tls=tls)
        self.timing = timing or Timing()
        self.port = self._make_port(link, tcp, port)
        self.owner, self._confirm_seconds = owner, confirm_seconds
        self._host_port, self._moves = port, moves
        self._area = bytearray(bootloader.HANDOVER_SIZE)
        self._locked_loader = locked_loader
        self._rom = self._loader_of() if self.port is not None else None
        self._has_lines = tcp == "rfc2217"
        self.wiring: ResetLines = UartBridge()
        self._loader_free = 0.0
        self._slip = slip.SlipDecoder()
        self._corrupt_next = self._fail_next = False
        self._lines: SerialApplication | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ----------------------------------------------------------------------------------------------------

    def factory_flash(self, app: bytes, *, extra: Iterable[tuple[int, bytes]] = ()) -> None:
        """Program bootloader, partition table and `app` into ota_0, as a factory does; counters start at zero."""
        hardware = self.identity.hardware
        table = _default_table(hardware.table_offset, hardware.flash_size)
        self.flash.manufacture(
            _factory(hardware.chip.target, hardware.table_offset, hardware.flash_size, app, tuple(extra))
        )
        self.nvs = Nvs()
        for row in table.partitions:
            self.flash.watch(row.name, row.offset, row.size)
        self.flash.reset_counters()

    async def start(self) -> None:
        """Plug it in, power it up; returns when it runs, or is dead."""
        if self.port is not None:
            self.port.plug()
        await self._boot()

    async def stop(self) -> None:
        """Power it down and take it away."""
        self._halt()
        self.mode = Mode.DEAD
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.stop()
        if self.port is not None:
            self.port.unplug()

    def _make_port(self, link: Path | None, tcp: Protocol | None, port: int) -> SerialLine | None:
        rate, speed = self.timing.line_rate, self.timing.speed
        if tcp is not None:
            return TcpPort(tcp, self._received, self._line_changed, port=port, simulate_rate=rate, speed=speed)
        return SerialPort(link, self._received, simulate_rate=rate, speed=speed) if link is not None else None

    def reset(self) -> None:
        """Press the reset button: the application starts anew."""
        self._halt()
        self.mode = Mode.BOOTING
        self._spawn(self._restart())

    def cut_power(self, back_seconds: float | None) -> None:
        """Everything stops at once (rule 6); it starts again after `back_seconds` (None: never)."""
        self._halt()
        self.mode = Mode.DEAD
        self._spawn(self.server.stop())
        if back_seconds is not None:
            self._later(back_seconds, self.reset)

    def unplug(self) -> None:
        """Pull the cable of a serial device; the chip loses its power."""
        self._halt()
        self.mode = Mode.DEAD
        if self.port is not None:
            self.port.unplug()

    def replug(self) -> None:
        """Plug the cable in again: a new node under the same name, and the application starts."""
        if self.port is not None:
            self.port.plug()
        self.reset()

    def behave(self, behaviour: Behaviour) -> None:
        """From the next reset on be as honest as `behaviour`; the reset follows at once."""
        self.behaviour = behaviour
        self.reset()

    def counters(self) -> dict[str, object]:
        """What really happened: boots, flash bytes, and per partition bytes erased, programmed, images begun."""
        return {
            "mode": self.mode.value,
            "boots": self.boots,
            "bytesErased": self.flash.bytes_erased,
            "bytesProgrammed": self.flash.bytes_programmed,
            "partitions": {
                name: {"erased": r.erased, "programmed": r.programmed, "installs": r.installs}
                for name, r in self.flash.regions.items()
            },
            "installs": sum(r.installs for name, r in self.flash.regions.items() if name.startswith("ota_")),
            "fence": self.nvs.fence,
            "sequence": self.nvs.sequence,
            "bootFailure": self.boot_failure,
        }

    def _halt(self) -> None:
        """Everything in RAM is gone (rule 3)."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.application = self._lines = None
        self._slip.reset()

    async def _restart(self) -> None:
        await self.server.stop()
        await asyncio.sleep(BOOT_SECONDS)
        if self.mode is Mode.BOOTING:
            await self._boot()

    async def _boot(self) -> None:
        hardware = self.identity.hardware
        self.boots += 1
        self.mode, self.boot_failure = Mode.DEAD, ""
        try:
            result = bootloader.boot(
                self.flash,
                self.identity,
                nvs=self.nvs,
                area=self._area,
                random=secrets.token_bytes,
                behaviour=self.behaviour,
            )
        except CableGone:
            return
        except (BootError, FlashIOError) as error:
            self.boot_failure = str(error)
            self._log(f"E (20) boot: {error}")
            return
        if not self.behaviour.comes_back(unconfirmed=result.unconfirmed) or self._silent:
            return
        crash = self._first_boot_fault() if result.unconfirmed else None
        if crash is not None and not isinstance(crash, Crash):
            self.reset()
            return
        application = Application(
            result,
            flash=self.flash,
            hardware=hardware,
            owner=self.owner,
            nvs=self.nvs,
            clock=time.monotonic,
            random=secrets.token_bytes,
            behaviour=self.behaviour,
            takes_image=self.port is None,
            confirm_seconds=self._confirm_seconds,
        )
        self.mode, self.application = Mode.RUNNING, application
        if isinstance(crash, Crash):
            self._later(crash.seconds, self.reset)
        if application.deadline is not None:
            self._later(application.deadline - time.monotonic(), self._deadline)
        if self.port is None:
            self._host_port = 0 if self._moves else self._host_port
            await self.server.start(application, port=self._host_port)
            self._host_port = self.server.port
        else:
            self.port.baud = 115_200
            self._lines = SerialApplication(application, time.monotonic)
            for line in result.log:
                self._log(line)
            self.port.log(self._lines.beacon())

    def _deadline(self) -> None:
        """Rule 4."""
        application = self.application
        if application is None or application.deadline is None:
            return
        if not application.overdue():
            self._later(application.deadline - time.monotonic(), self._deadline)
        elif application.roll_back():
            self.reset()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.add(asyncio.get_running_loop().call_later(max(0.0, seconds) + 0.001, action))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- serial line ---------------------------------------------------------------------------------------------

    def _line_changed(self, dtr: bool, rts: bool) -> None:
        """Rule 2, with reset lines."""
        match self.wiring.change(dtr, rts) if self._has_lines else None:
            case Pull.HOLD:
                self._halt()
                self.mode = Mode.DEAD
            case Pull.LOADER:
                self._enter_loader()
            case Pull.RUN:
                self.reset()

    def _received(self, data: bytes) -> None:
        try:
            self._take(data)
        except CableGone:
            return

    def _take(self, data: bytes) -> None:
        frames, rest = self._slip.feed(data)
        if self._garbled:
            frames, rest = [frame for frame in frames if frame[8:] == SYNC and not self._has_lines], b""
            if frames:  # on a line without reset lines a SYNC is a reset
                self._enter_loader()
        for frame in frames:
            if self.mode is not Mode.LOADER and frame[8:] == SYNC and not self._has_lines:
                self._enter_loader()
            if self.mode is Mode.LOADER:
                self._loader(frame)
        if self.mode is Mode.RUNNING and self._lines is not None and rest:
            output = self._lines.feed(rest)
            self._send(output.data, then=self._asked_to_reset if output.reboot else None)

    def _enter_loader(self) -> None:
        if self._silent or self.port is None:
            return
        self._halt()
        self.mode = Mode.LOADER
        self.port.baud = 115_200
        self._rom = self._loader_of()

    def _loader_of(self) -> RomLoader:
        other = next((fault.chip for fault in self.faults if isinstance(fault, WrongChip)), "")
        return RomLoader(_fuses(self.identity.hardware, self._locked_loader, other), self.flash, self._block)

    def _loader(self, frame: bytes) -> None:
        if self._rom is None or self.port is None:
            return
        erased = self.flash.bytes_erased
        reply = self._rom.handle(frame)
        busy = self.timing.erasing(self.flash.bytes_erased - erased)
        frames = b"".join(map(slip.encode, reply.frames))
        self._send(frames, busy, then=self._asked_to_reset if reply.boot else None)
        if reply.baud:
            self.port.baud = reply.baud

    def _send(self, data: bytes, seconds: float = 0.0, then: Callable[[], None] | None = None) -> None:
        """Answer, after the time that the work took and that a slow device takes; answers keep their order.

        `then` follows the answer: a reset that came before it would swallow it.
        """

        def answer() -> None:
            if self.port is not None and data:
                self.port.send(data)
            if then is not None:
                then()

        now = time.monotonic()
        due = max(self._loader_free, now + seconds + self._late())
        if due <= now or not data:
            answer()
            return
        self._loader_free = due
        self._later(due - now, answer)

    def _asked_to_reset(self) -> None:
        """The device said that it resets."""
        if self.behaviour.reboots():
            self.reset()

    def _log(self, line: str) -> None:
        if self.port is not None:
            self.port.log(line.encode() + b"\r\n")

    # --- faults --------------------------------------------------------------------------------------------------

    @property
    def _silent(self) -> bool:
        return any(isinstance(fault, SilentPort) for fault in self.faults)

    @property
    def _garbled(self) -> bool:
        return self.port is not None and any(isinstance(f, NoisyLine) and self.port.baud > f.baud for f in self.faults)

    def _first_boot_fault(self) -> BrownOut | None:
        return next((fault for fault in self.faults if isinstance(fault, BrownOut) and fault.first_boot()), None)

    def _late(self, size: int = 0) -> float:
        """Seconds by which an answer, or the next `size` bytes of an image, come late."""
        slow = sum(fault.seconds for fault in self.faults if isinstance(fault, Slow))
        return slow + self.timing.receiving(size)

    def _strike(self, done: int, total: int) -> Fault | None:
        return next((fault for fault in self.faults if fault.strikes(done, total)), None)

    def _block(self, offset: int, done: int, total: int) -> None:
        """Before a block of a serial write."""
        fault = self._strike(done, total)
        if fault is None:
            return
        if fault.effect is Effect.FAIL:
            raise FlashIOError(f"programming failed at {offset + done:#x}")
        if fault.effect is Effect.CORRUPT:
            self._corrupt_next = True
            return
        if isinstance(fault, CablePulled):
            self.unplug()
            if fault.replug_seconds is not None:
                self._later(fault.replug_seconds, self.replug)
        else:
            self._halt()
            self.mode = Mode.DEAD
        raise CableGone

    def _image_bytes(self, done: int, total: int) -> None:
        """After a chunk of a network upload: what befalls the flash strikes the next one."""
        fault = self._strike(done, total)
        if fault is None:
            return
        if fault.effect in (Effect.FAIL, Effect.CORRUPT):
            self._fail_next, self._corrupt_next = fault.effect is Effect.FAIL, fault.effect is Effect.CORRUPT
            return
        if fault.effect is Effect.HANG:
            self.cut_power(None)
        raise CableGone("the line broke")

    def _flash_hook(self, operation: Operation, offset: int, length: int) -> None:
        """A flipped bit is a bit that was programmed to 0 before its byte was; a power cut is rule 6."""
        for fault in self.faults:
            if isinstance(fault, PowerCut) and fault.cuts(operation):
                self.cut_power(fault.back_seconds)
                raise CableGone("the power failed")
        if operation == "program" and self._fail_next:
            self._fail_next = False
            raise FlashIOError(f"programming failed at {offset:#x}")
        if operation == "program" and self._corrupt_next and length:
            self._corrupt_next = False
            self.flash.load(offset, b"\0")


@lru_cache(maxsize=64)
def _default_table(table_offset: int, flash_size: int) -> PartitionTable:
    return builder.default_partitions(table_offset=table_offset, flash_size=flash_size)


@lru_cache(maxsize=64)
def _bootloader(target: str) -> bytes:
    return builder.build_bootloader(target)


@lru_cache(maxsize=16)
def _factory(
    target: str, table_offset: int, flash_size: int, app: bytes, extra: tuple[tuple[int, bytes], ...]
) -> FactoryContent:
    """Devices of one make that leave the factory with one application share their flash."""
    table = _default_table(table_offset, flash_size)
    return factory_content(
        (
            (chips.by_target(target).bootloader_offset, _bootloader(target)),
            (table_offset, partitions.build_table(table)),
            (table.ota_slots[0].offset, app),
            *extra,
        )
    )


def _fuses(hardware: Hardware, locked: bool, other: str = "") -> ChipFuses:
    """What the loader shows: the chip's own, or, by fault, those of another chip."""
    chip, fuses = chips.by_target(other) if other else hardware.chip, hardware.fuses
    if chip.target not in TARGETS:
        raise ValueError(f"no virtual loader for {chip.display}; use one of {', '.join(TARGETS)}")
    return ChipFuses(
        chip=chip.target,
        chip_id=chip.chip_id,
        mac=hardware.mac,
        revision=hardware.revision,
        secure_version=fuses.secure_version,
        secure_boot=locked and fuses.secure_boot,
        flash_encryption=locked and fuses.flash_encryption,
        secure_download=locked and fuses.download_locked,
        jtag_disabled=locked and fuses.jtag_off,
    )
