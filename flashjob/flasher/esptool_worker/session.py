# SPDX-License-Identifier: GPL-2.0-or-later
"""One open port and the chip behind it: connecting, negotiating the line rate, probing, writing, leaving."""

from __future__ import annotations

import base64
import contextlib
import struct
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import esptool.loader
import serial
from esptool import cmds
from esptool.util import FatalError, flash_size_bytes

from .output import JobError, Output
from .port import has_modem_lines, open_port, vanished
from .writer import Writer

Job = dict[str, Any]

RECONNECTS: Final = 2
"""How often a job goes on after its line broke while the port stayed."""
SAFE_BAUD: Final = 115_200
_SLOWER: Final = {921_600: 460_800}
"""What comes after a rate that did not work; `SAFE_BAUD` where nothing is said."""
_CLASSIC: Final = "D0|R1|W0.1|D1|R0|W0.05|D0"
_RESETS: Final = {"auto": "default-reset", "usb-jtag": "usb-reset", "none": "no-reset"}
_SECTOR: Final = 0x1000
_CHECK_BYTES: Final = 1024
_NONSENSE = (struct.error, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError)
"""What esptool raises on answers that no chip gives."""


class Session:
    """Holds the port from the first job to `close`, or to the first error."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._port: Any = None
        self._esp: Any = None
        self._identity: tuple[str, str] | None = None
        self._flash_size = 0
        self._baud: int | None = None
        self._lines_lead = True
        self.written = 0

    def run(self, job: Job) -> None:
        """Carry out one job. Raises JobError; the port is then closed."""
        self.written = 0
        name = job["port"]
        try:
            if self._esp is None:
                self._connect(job)
            if job["verb"] == "probe":
                self._chip()
            if job["verb"] in ("probe", "read"):
                self._resiliently(job, lambda: self._read(job["regions"]))
            elif job["verb"] == "write":
                self._write(job)
            elif job["verb"] == "reset":
                self._reset()
        except JobError:
            self.close()
            raise
        except (FatalError, serial.SerialException, OSError, termios.error) as error:
            raise self._lost(name, error, writing=job["verb"] == "write") from error
        except _NONSENSE as error:
            self.close()
            message = f"{name}: the chip answers nonsense ({type(error).__name__}: {_first_line(error)})"
            raise JobError("TransportLost", message) from error

    def close(self) -> None:
        """Let go of the port."""
        if self._port is not None:
            with contextlib.suppress(OSError, termios.error):
                self._port.close()
        self._port = self._esp = self._identity = self._baud = None

    def _lost(self, name: str, error: Exception, *, writing: bool) -> JobError:
        if self._port is not None and self._port.is_open and vanished(self._port):
            kind, message = "PortVanished", f"{name} is gone from its bus: {_first_line(error)}"
        elif isinstance(error, FatalError) and writing and "result was" in str(error):
            kind, message = "WriteFailed", f"{name}: {_first_line(error)}"
        else:
            kind, message = "TransportLost", f"{name}: {_first_line(error)}"
        self.close()
        return JobError(kind, message)

    # --- connecting --------------------------------------------------------------------------------------------

    def _connect(self, job: Job) -> None:
        self._output.emit("stage", name="connect")
        if self._port is None:
            self._port = open_port(job["port"])
        self._baud = self._baud or job["baud"]
        while True:
            esp = self._loader(job)
            identity = (_target(esp), "" if esp.secure_download_mode else _mac(esp))
            if job["chip"] and identity[0] != job["chip"]:
                raise JobError("WrongChip", f"{job['port']} holds an {esp.CHIP_NAME}, expected {job['chip']}")
            if self._identity not in (None, identity):
                message = f"another chip came back on {job['port']}: {' '.join(identity)}"
                raise JobError("WrongDevice", message)
            if job["stub"] and not esp.secure_download_mode:
                esp = cmds.run_stub(esp)
            self._identity = identity
            if self._faster(esp):
                break
        cmds.attach_flash(esp)
        size = None if esp.secure_download_mode else cmds.detect_flash_size(esp)
        self._flash_size = flash_size_bytes(size) if size else 0
        if self._flash_size:
            esp.flash_set_parameters(self._flash_size)
        self._esp = esp

    def _loader(self, job: Job) -> Any:
        """The chip in its loader, found at the rate every chip speaks."""
        mode = job["reset"]
        self._lines_lead = mode != "none"
        sequence = _CLASSIC if mode == "classic" else mode if mode not in _RESETS else None
        if sequence is not None:
            esptool.loader.cfg["custom_reset_sequence"] = sequence
        try:
            connect_mode = _RESETS.get(mode, "default-reset")
            return cmds.detect_chip(self._port, connect_mode=connect_mode, connect_attempts=job["connectAttempts"])
        except FatalError as error:
            raise JobError("PortSilent", f"{job['port']}: {_first_line(error)}") from error

    def _faster(self, esp: Any) -> bool:
        """Go to the wished rate and see that it carries; if not, remember a slower one: the chip must be reset."""
        baud = self._baud
        if baud == esp.get_baud() or esp.secure_download_mode:
            return True
        try:
            esp.change_baud(baud)
            if esp.IS_STUB:
                esp.read_flash(0, _CHECK_BYTES)
            else:
                esp.read_reg(esp.CHIP_DETECT_MAGIC_REG_ADDR)
        except (FatalError, *_NONSENSE):
            self._slow_down()
            return False
        return True

    def _slow_down(self) -> None:
        if self._baud is not None and self._baud > SAFE_BAUD:
            self._baud = _SLOWER.get(self._baud, SAFE_BAUD)
        self._output.emit("stage", name=f"baud {self._baud}")

    def _resiliently(self, job: Job, step: Callable[[], None]) -> None:
        """Do `step`; if the line breaks while the port stays, connect again, slower, and do it again."""
        for left in reversed(range(RECONNECTS + 1)):
            try:
                step()
                return
            except (FatalError, serial.SerialException) as error:
                if not left or vanished(self._port):
                    raise
                self._output.emit("stage", name=f"reconnect: {_first_line(error)}"[:200])
                self._slow_down()
                self._connect(job)

    # --- jobs --------------------------------------------------------------------------------------------------

    def _chip(self) -> None:
        esp = self._esp
        locked = esp.secure_download_mode
        info = esp.get_security_info() if locked else None
        encrypted = info["flash_crypt_cnt"].bit_count() % 2 == 1 if info else esp.get_flash_encryption_enabled()
        signed = info["parsed_flags"]["SECURE_BOOT_EN"] if info else esp.get_secure_boot_enabled()
        self._output.emit(
            "chip",
            chip=_target(esp),
            revision=0 if locked else esp.get_chip_revision(),
            mac="" if locked else _mac(esp),
            flashSize=self._flash_size,
            secureBoot=bool(signed),
            flashEncryption=bool(encrypted),
            secureDownload=bool(locked),
        )

    def _read(self, regions: list[Job]) -> None:
        for region in regions:
            data = bytes(self._esp.read_flash(region["offset"], region["size"]))
            if len(data) != region["size"]:
                raise FatalError(f"{len(data)} bytes came back instead of {region['size']}")
            text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
            self._output.emit("data", offset=region["offset"], data=text)

    def _write(self, job: Job) -> None:
        esp = self._esp
        if esp.secure_download_mode or esp.get_flash_encryption_enabled():
            raise JobError("SecureBootMismatch", "the chip's flash is encrypted or its download mode locked")
        for region in job["erase"]:
            self._output.emit("stage", name="erase")
            self._resiliently(job, partial(self._erase, region["offset"], region["size"]))
        for index, region in enumerate(job["regions"]):
            self._output.emit("stage", name="write")
            data = Path(region["file"]).read_bytes()
            self._resiliently(job, partial(self._put, index, region["offset"], data))
        self._output.emit("stage", name="written")

    def _erase(self, offset: int, size: int) -> None:
        self._inside(offset, size)
        Writer(self._esp, lambda _: None).erase(offset, size)

    def _put(self, index: int, offset: int, data: bytes) -> None:
        """Write what differs, all of it if that was not right, and see that the whole is."""
        self._inside(offset, len(data))
        done = 0

        def written(count: int) -> None:
            nonlocal done
            done += count
            self.written += count
            self._tell(index, min(done, len(data)), len(data))

        writer = Writer(self._esp, written)
        runs = writer.differing(offset, data)
        done = len(data) - sum(min(end, len(data)) - start for start, end in runs)
        self._tell(index, done, len(data))
        if not runs:
            return
        for start, end in runs:
            writer.write(offset + start, data[start:end])
        if writer.holds(offset, data):
            return
        if sum(end - start for start, end in runs) < len(data):
            self._output.emit("stage", name="write all")
            done = 0
            writer.write(offset, data)
            if writer.holds(offset, data):
                return
        raise JobError("VerifyFailed", f"the flash at {offset:#x} does not hold what was written: its MD5 differs")

    def _tell(self, index: int, done: int, total: int) -> None:
        percent = done * 100 // total if total else 100
        self._output.emit("progress", region=index, done=done, total=total, percent=percent, written=self.written)

    def _inside(self, offset: int, size: int) -> None:
        if offset % _SECTOR:
            raise JobError("InternalError", f"{offset:#x} is not the begin of a sector")
        if self._flash_size and offset + size > self._flash_size:
            message = f"{size} bytes at {offset:#x} do not fit into {self._flash_size} bytes of flash"
            raise JobError("ImageTooLarge", message)

    def _reset(self) -> None:
        self._output.emit("stage", name="reset")
        if self._lines_lead and has_modem_lines(self._port):
            cmds.reset_chip(self._esp, "hard-reset")
        else:
            self._esp.flash_begin(0, 0)
            self._esp.flash_finish(reboot=True)
        self.close()


def _target(esp: Any) -> str:
    """The chip's IDF target, as esp32s3."""
    return str(esp.CHIP_NAME).replace("-", "").lower()


def _mac(esp: Any) -> str:
    return ":".join(f"{byte:02x}" for byte in esp.read_mac())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
