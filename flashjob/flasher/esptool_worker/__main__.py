# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive one serial port with esptool, told by JSON lines on stdin, telling by JSON lines on stdout.

    python -m flashjob.flasher.esptool_worker

Every line in is a job ``{verb, port, chip, baud, stub, regions, erase, connectAttempts}``; every job is answered by
events (``stage, progress, chip, data``) and ends with exactly one ``done`` or ``error``. The port stays open, locked
and in the loader from the first job to the end of input, so that nobody comes between a look at a chip and the write
to it. Rules:

1. `probe` names the chip (chip, revision, MAC, flash size, security) and then reads `regions`; `read` only reads.
2. `write` erases `erase`, then writes `regions` strictly in their order; each is verified by the chip's own MD5
   before the next is begun. Files are written as they are: flash mode, frequency and size are kept.
3. `reset` makes the application run.
4. The port is opened for this program alone (flock; TIOCEXCL too on real ports, a pseudo-terminal would keep that
   beyond our end), with DTR and RTS deasserted; it waits at most 5 s for another user to let go.
5. End of input ends the program; in the middle of a job at once, as if the cable were pulled. So nothing of ours
   goes on writing when whoever started it is gone.
6. A lost connection is an error, never silently retried: who may try again is decided elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
import queue
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import esptool.loader
import serial
from esp_pylib.logger import EspLogBase
from esptool import cmds
from esptool.logger import log
from esptool.util import FatalError, flash_size_bytes

PORT_WAIT_SECONDS = 5.0
BUSY = (errno.EBUSY, errno.EAGAIN, errno.EACCES)
LOST = ("No serial data", "data stream stopped", "transfer stopped", "No more data", "Invalid head of packet")

Job = dict[str, Any]


class JobError(Exception):
    """A job that failed: `kind` is the reason code of the flasher's wire format."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Output:
    """Writes events; the only user of the real stdout."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, event: str, **fields: object) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()


class Progress(EspLogBase):  # type: ignore[misc]
    """esptool's logger: progress becomes events, what people might want to read goes to stderr."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.region = 0
        self.fraction = 0.0

    def progress_bar(
        self, cur_iter: int, total_iters: int, prefix: str = "", suffix: str = "", bar_length: int = 30
    ) -> None:
        self.fraction = cur_iter / total_iters if total_iters else 1.0
        self._output.emit("progress", region=self.region, done=cur_iter, total=total_iters)

    def print(self, *args: object, **_: object) -> None:
        pass

    def err(self, *args: object, suggestion: str | None = None) -> None:
        self._say("error", *args)

    def warn(self, *args: object, suggestion: str | None = None) -> None:
        self._say("warning", *args)

    def note(self, *args: object) -> None:
        pass

    def hint(self, *args: object) -> None:
        pass

    def debug(self, *args: object) -> None:
        pass

    def set_verbosity(self, mode: int | str) -> None:
        pass

    @staticmethod
    def _say(level: str, *args: object) -> None:
        sys.stderr.write(f"esptool {level}: {' '.join(map(str, args))}\n")


class Session:
    """One open port and the chip behind it."""

    def __init__(self, output: Output, progress: Progress) -> None:
        self._output = output
        self._progress = progress
        self._port: Any = None
        self._esp: Any = None
        self._flash_size = 0
        self.written = 0

    def run(self, job: Job) -> None:
        """Carry out one job. Raises JobError; the port is then closed."""
        self.written = 0
        try:
            self._connect(job)
            if job["verb"] == "probe":
                self._chip()
            if job["verb"] in ("probe", "read"):
                self._read(job["regions"])
            elif job["verb"] == "write":
                self._write(job)
            elif job["verb"] == "reset":
                self._reset()
        except JobError:
            self.close()
            raise
        except FatalError as error:
            self.close()
            raise JobError(_kind(str(error), job["verb"]), _first_line(error)) from error
        except (serial.SerialException, OSError, termios.error) as error:
            self.close()
            raise JobError("TransportLost", f"{job['port']}: {error}") from error

    def close(self) -> None:
        """Let go of the port."""
        if self._port is not None:
            with contextlib.suppress(OSError, termios.error):
                self._port.close()
        self._port = self._esp = None

    def _connect(self, job: Job) -> None:
        if self._esp is not None:
            return
        self._output.emit("stage", name="connect")
        self._port = open_port(job["port"])
        try:
            esp = cmds.detect_chip(self._port, connect_attempts=job["connectAttempts"])
        except FatalError as error:
            raise JobError("PortSilent", f"{job['port']}: {_first_line(error)}") from error
        found = esp.CHIP_NAME.replace("-", "").lower()
        if job["chip"] and found != job["chip"]:
            raise JobError("WrongChip", f"{job['port']} holds an {esp.CHIP_NAME}, expected {job['chip']}")
        if job["stub"]:
            esp = cmds.run_stub(esp)
        esp.WRITE_FLASH_ATTEMPTS = 1
        cmds.attach_flash(esp)
        if job["baud"] != esp.get_baud():
            esp.change_baud(job["baud"])
        size = None if esp.secure_download_mode else cmds.detect_flash_size(esp)
        self._flash_size = flash_size_bytes(size) if size else 0
        if self._flash_size:
            esp.flash_set_parameters(self._flash_size)
        self._esp = esp

    def _chip(self) -> None:
        esp = self._esp
        locked = esp.secure_download_mode
        info = esp.get_security_info() if locked else None
        encrypted = info["flash_crypt_cnt"].bit_count() % 2 == 1 if info else esp.get_flash_encryption_enabled()
        signed = info["parsed_flags"]["SECURE_BOOT_EN"] if info else esp.get_secure_boot_enabled()
        self._output.emit(
            "chip",
            chip=esp.CHIP_NAME.replace("-", "").lower(),
            revision=0 if locked else esp.get_chip_revision(),
            mac="" if locked else ":".join(f"{byte:02x}" for byte in esp.read_mac()),
            flashSize=self._flash_size,
            secureBoot=bool(signed),
            flashEncryption=bool(encrypted),
            secureDownload=bool(locked),
        )

    def _read(self, regions: list[Job]) -> None:
        for region in regions:
            data = bytes(self._esp.read_flash(region["offset"], region["size"]))
            text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
            self._output.emit("data", offset=region["offset"], data=text)

    def _write(self, job: Job) -> None:
        self._output.emit("stage", name="erase")
        for region in job["erase"]:
            if self._esp.IS_STUB:
                self._esp.erase_region(region["offset"], region["size"])
            elif region["size"]:
                self._put(region["offset"], b"\xff" * region["size"], silent=True)
        self._output.emit("stage", name="write")
        for index, region in enumerate(job["regions"]):
            self._progress.region, self._progress.fraction = index, 0.0
            data = Path(region["file"]).read_bytes()
            before = self.written
            try:
                self._put(region["offset"], data)
            finally:
                self.written = before + round(len(data) * self._progress.fraction)
        self._output.emit("stage", name="written")

    def _put(self, offset: int, data: bytes, silent: bool = False) -> None:
        cmds.write_flash(self._esp, [(offset, data)], flash_size="keep", no_progress=silent)

    def _reset(self) -> None:
        self._output.emit("stage", name="reset")
        if has_modem_lines(self._port):
            cmds.reset_chip(self._esp, "hard-reset")
        else:
            self._esp.flash_begin(0, 0)
            self._esp.flash_finish(reboot=True)
        self.close()


def open_port(name: str) -> Any:
    """Open `name` for this program alone (rule 4). Raises JobError PortNotFound or PortBusy."""
    port = serial.serial_for_url(name, do_not_open=True, exclusive=True)
    port.baudrate = esptool.loader.ESPLoader.ESP_ROM_BAUD
    port.dtr = port.rts = False
    deadline = time.monotonic() + PORT_WAIT_SECONDS
    while True:
        try:
            port.open()
            break
        except (serial.SerialException, OSError) as error:
            if error.errno not in BUSY or not os.access(name, os.R_OK | os.W_OK):
                raise JobError("PortNotFound", f"{name} cannot be opened: {error}") from error
            if time.monotonic() > deadline:
                message = f"{name} is held by another program, waited {PORT_WAIT_SECONDS:.0f} s"
                raise JobError("PortBusy", message) from error
            time.sleep(0.05)
    if not os.path.realpath(name).startswith("/dev/pts/"):
        with contextlib.suppress(AttributeError, OSError):
            fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    return port


def has_modem_lines(port: Any) -> bool:
    """Whether RTS reaches the chip: pseudo-terminals have no such lines."""
    try:
        return isinstance(port.cts, bool)
    except OSError:
        return False


def _kind(message: str, verb: str) -> str:
    if "MD5 of file does not match" in message:
        return "VerifyFailed"
    if any(part in message for part in LOST) or verb != "write":
        return "TransportLost"
    return "WriteFailed"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def skip_hex_dumps() -> None:
    """Spare esptool the hex dump of every packet that it formats even when nobody traces (13 x less CPU)."""
    if isinstance(getattr(esptool.loader, "HexFormatter", None), type):
        esptool.loader.HexFormatter = lambda _data, _split=True: ""


def jobs(stream: TextIO) -> Iterator[tuple[Job, threading.Event]]:
    """Yield each job with the event to set when it is over; leaves the process when input ends in a job (rule 5)."""
    lines: queue.SimpleQueue[tuple[str, threading.Event] | None] = queue.SimpleQueue()

    def read() -> None:
        over = threading.Event()
        over.set()
        for line in stream:
            over = threading.Event()
            lines.put((line, over))
        if not over.is_set():
            os._exit(1)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (item := lines.get()) is not None:
        yield json.loads(item[0]), item[1]


def main() -> NoReturn:
    output = Output(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    sys.stdout = sys.stderr
    os.environ["ESPTOOL_CFGFILE"] = os.devnull
    progress = Progress(output)
    log.set_logger(progress)
    skip_hex_dumps()
    session = Session(output, progress)
    for job, over in jobs(sys.stdin):
        try:
            session.run(job)
            over.set()
            output.emit("done", bytesWritten=session.written)
        except JobError as error:
            over.set()
            output.emit("error", kind=error.kind, message=str(error), bytesWritten=session.written)
    session.close()
    sys.exit(0)


if __name__ == "__main__":
    main()
