# SPDX-License-Identifier: Apache-2.0
"""Serial lines over TCP: bare bytes (`socket://`), or with reset lines and baud rate (`rfc2217://`).

Source: RFC 2217; pyserial's PortManager speaks it, here is what stands behind it. Rules (tests name them):

1. One host at a time: a second connection is closed at once. The line itself outlives its hosts.
2. A bare socket carries no lines. As on a pseudo-terminal, a SYNC frame is then what resets into the loader.
3. With RFC 2217, RTS holds the chip in reset while it is asserted, and DTR then chooses the loader (asserted) or the
   application: a board whose lines go straight to EN and IO0.
4. A host that goes away releases both lines.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Literal

from serial.rfc2217 import PortManager

from flashjob.virtual.port import SerialLine

Protocol = Literal["socket", "rfc2217"]
HOST = "127.0.0.1"


class TcpPort(SerialLine):
    """A line that listens on a loopback port.

    Args:
        protocol: what is spoken.
        on_data: called with received bytes, in the event loop.
        on_lines: called with (dtr, rts), True = asserted, when the host changed one.
        port: TCP port; 0: any free one, kept while the object lives.
        simulate_rate, speed: see `SerialLine`.
    """

    def __init__(
        self,
        protocol: Protocol,
        on_data: Callable[[bytes], None],
        on_lines: Callable[[bool, bool], None],
        *,
        port: int = 0,
        simulate_rate: bool = False,
        speed: float = 1.0,
    ) -> None:
        super().__init__(on_data, simulate_rate=simulate_rate, speed=speed)
        self._protocol, self._on_lines, self._port = protocol, on_lines, port
        self._listener: socket.socket | None = None
        self._host: socket.socket | None = None
        self._manager: PortManager | None = None

    @property
    def plugged(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    @property
    def path(self) -> str:
        """URL for pyserial; empty while unplugged."""
        return f"{self._protocol}://{HOST}:{self._port}" if self.plugged else ""

    def plug(self) -> None:
        """Listen; does nothing if plugged."""
        if self.plugged:
            return
        listener = socket.create_server((HOST, self._port))
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._connected)

    def unplug(self) -> None:
        """Hang up and listen no more; does nothing if unplugged."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            self._gone()

    def _connected(self) -> None:
        if self._listener is None:
            return
        try:
            host, _ = self._listener.accept()
        except BlockingIOError:
            return
        if self._host is not None and not _hung_up(self._host):
            host.close()
            return
        self._gone()
        host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = host
        self._attach(host.fileno())
        if self._protocol == "rfc2217":
            uart: Any = _Uart(self, self._on_lines)  # what PortManager uses of a serial port, and no more
            wire: Any = _Wire(self._write)
            self._manager = PortManager(uart, wire)

    def _gone(self) -> None:
        host, self._host, self._manager = self._host, None, None
        if host is not None:
            self._detach()
            host.close()
            self._on_lines(False, False)

    def _decode(self, data: bytes) -> bytes:
        return b"".join(self._manager.filter(data)) if self._manager else data

    def _encode(self, data: bytes) -> bytes:
        return data.replace(b"\xff", b"\xff\xff") if self._manager else data


def _hung_up(host: socket.socket) -> bool:
    """Whether the host closed its end, although nobody has read that yet."""
    try:
        return not host.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class _Wire:
    """How PortManager answers."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write


class _Uart:
    """The serial port that PortManager believes to hold: what it sets reaches the device."""

    cts = dsr = cd = True
    ri = False

    def __init__(self, line: TcpPort, on_lines: Callable[[bool, bool], None]) -> None:
        self._line, self._on_lines = line, on_lines
        self._dtr = self._rts = False
        self.bytesize: Any = 8
        self.parity: Any = "N"
        self.stopbits: Any = 1
        self.xonxoff = self.rtscts = self.break_condition = False

    @property
    def baudrate(self) -> int:
        """Bits per second."""
        return self._line.baud

    @baudrate.setter
    def baudrate(self, value: int) -> None:
        self._line.baud = value

    @property
    def dtr(self) -> bool:
        """Asserted or not."""
        return self._dtr

    @dtr.setter
    def dtr(self, value: bool) -> None:
        self._dtr = value
        self._on_lines(self._dtr, self._rts)

    @property
    def rts(self) -> bool:
        """Asserted or not."""
        return self._rts

    @rts.setter
    def rts(self, value: bool) -> None:
        self._rts = value
        self._on_lines(self._dtr, self._rts)

    def reset_input_buffer(self) -> None:
        """Nothing is kept back on this side."""

    def reset_output_buffer(self) -> None:
        """Nothing is kept back on this side."""
