# SPDX-License-Identifier: Apache-2.0
"""An exclusively opened serial port as an asyncio byte stream (POSIX).

Rules (tests name them):

1. The port is held by flock, which binds root too, and on a real port by TIOCEXCL; whoever holds it already is waited
   for, at most `wait_seconds`, then ``PortBusy``. A pseudo-terminal would keep TIOCEXCL after we are gone, for as long as
   its other end lives: there flock alone decides.
2. DTR and RTS are deasserted in one step, so that opening a port never resets a board; a pseudo-terminal has none.
3. The line is raw, 8N1, and is not hung up on closing.
4. What came in before it was opened is discarded, unless whoever opens it asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
import tty
from typing import Final, Protocol

from attestation.device_protocol import DeviceError

_WAIT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.05
_READ_BYTES: Final = 4096


class ByteStream(Protocol):
    """Bytes in both directions. `read` must not lose bytes when it is cancelled."""

    async def read(self) -> bytes:
        """At least one byte. Raises DeviceError ConnectionLost at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Write everything. Raises DeviceError ConnectionLost."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class SerialPort:
    """A `ByteStream` over an open port; make it with `open_port`."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    async def read(self) -> bytes:
        """The next bytes of the port."""
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                await self._ready(read=True)
                continue
            except OSError as error:
                raise self._lost(error) from error
            if not data:
                raise DeviceError("ConnectionLost", f"{self.path}: the port was closed at the other end")
            return data

    async def write(self, data: bytes) -> None:
        """Write everything, waiting while the port takes no more."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._ready(read=False)
            except OSError as error:
                raise self._lost(error) from error

    def close(self) -> None:
        """Close the port, which releases both locks. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _ready(self, *, read: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        add, remove = (loop.add_reader, loop.remove_reader) if read else (loop.add_writer, loop.remove_writer)
        add(self._fd, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(self._fd)

    def _lost(self, error: OSError) -> DeviceError:
        return DeviceError("ConnectionLost", f"{self.path}: {error.strerror}; is the cable still in?")


async def open_port(
    path: str, baud: int = 115200, *, wait_seconds: float = _WAIT_SECONDS, earlier: bool = False
) -> SerialPort:
    """Open a port for this process alone (rules 1 to 4).

    Args:
        path: device node or a link to it.
        baud: line speed; must be one that the C library names.
        wait_seconds: how long to wait for another holder.
        earlier: keep what came in before, as far as the system still has it (rule 4).

    Raises:
        DeviceError: ``PortBusy``, or ``Unreachable`` when it does not exist, is no terminal or may not be opened.
    """
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while True:
        try:
            return SerialPort(path, _open(path, baud, termios.TCSANOW if earlier else termios.TCSAFLUSH))
        except BlockingIOError as error:
            if asyncio.get_running_loop().time() >= deadline:
                message = f"{path} is held by another program for {wait_seconds:g} s; end it, or wait for its job"
                raise DeviceError("PortBusy", message) from error
            await asyncio.sleep(_RETRY_SECONDS)
        except (OSError, termios.error, ValueError) as error:
            raise DeviceError("Unreachable", f"{path} cannot be opened as a serial port: {error}") from error


def _open(path: str, baud: int, when: int) -> int:
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise ValueError(f"{baud} is not a standard line speed")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:  # TIOCEXCL of another holder
            raise BlockingIOError(*error.args) from error
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.ttyname(fd).startswith("/dev/pts/"):
            fcntl.ioctl(fd, termios.TIOCEXCL)
        lines = struct.pack("I", termios.TIOCM_DTR | termios.TIOCM_RTS)
        with contextlib.suppress(OSError):  # a pseudo-terminal has no modem lines
            fcntl.ioctl(fd, termios.TIOCMBIC, lines)
        tty.setraw(fd, when)
        attributes = termios.tcgetattr(fd)
        attributes[2] = (attributes[2] & ~(termios.HUPCL | termios.CRTSCTS)) | termios.CLOCAL | termios.CREAD
        attributes[4] = attributes[5] = speed
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except BaseException:
        os.close(fd)
        raise
    return fd
