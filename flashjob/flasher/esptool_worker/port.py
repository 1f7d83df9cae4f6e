# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening a port for this program alone, and telling what became of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import termios
import time
from typing import Any, Final

import serial
import serial.rfc2217
from esptool.loader import ESPLoader

from .output import JobError

PORT_WAIT_SECONDS: Final = 5.0
BUSY = (errno.EBUSY, errno.EAGAIN, errno.EACCES)


class QuietRfc2217(serial.rfc2217.Serial):
    """An rfc2217:// port that talks to its server about the line only when the line changes.

    pyserial negotiates the whole line anew whenever a read timeout is set, which esptool does at every command.
    """

    _line: tuple[object, ...] = ()

    def _reconfigure_port(self) -> None:
        line = (self.baudrate, self.bytesize, self.parity, self.stopbits, self.rtscts, self.xonxoff)
        if line != self._line:
            super()._reconfigure_port()  # type: ignore[misc]
            self._line = line


def open_port(name: str) -> Any:
    """Open `name` with DTR and RTS deasserted, exclusively. Raises JobError PortNotFound or PortBusy."""
    port: Any
    try:
        if name.startswith("rfc2217://"):
            port = QuietRfc2217()
            port.port = name
        else:
            port = serial.serial_for_url(name, do_not_open=True, exclusive=True)
        port.baudrate = ESPLoader.ESP_ROM_BAUD
    except (ValueError, serial.SerialException) as error:
        raise JobError("PortNotFound", f"{name} is no port: {error}") from error
    port.dtr = port.rts = False
    deadline = time.monotonic() + PORT_WAIT_SECONDS
    while True:
        try:
            port.open()
            break
        except (serial.SerialException, OSError, ValueError) as error:
            if getattr(error, "errno", None) not in BUSY or not os.access(name, os.R_OK | os.W_OK):
                raise JobError("PortNotFound", f"{name} cannot be opened: {error}") from error
            if time.monotonic() > deadline:
                message = f"{name} is held by another program, waited {PORT_WAIT_SECONDS:.0f} s"
                raise JobError("PortBusy", message) from error
            time.sleep(0.05)
    if "://" not in name and not os.path.realpath(name).startswith("/dev/pts/"):
        with contextlib.suppress(OSError):
            fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    return port


def has_modem_lines(port: Any) -> bool:
    """Whether RTS reaches the chip: pseudo-terminals and TCP sockets have no such lines."""
    try:
        return not port.name.startswith("socket:") and isinstance(port.cts, bool)
    except OSError:
        return False


def vanished(port: Any) -> bool:
    """Whether the node behind an open port is gone, as when native USB leaves the bus."""
    try:
        termios.tcgetattr(port.fileno())
    except (OSError, termios.error, TypeError) as error:  # TypeError: pyserial closed it itself
        return not (isinstance(error, OSError | termios.error) and error.args[:1] == (errno.ENOTTY,))
    except AttributeError:  # an rfc2217 port has no file
        return False
    return False
