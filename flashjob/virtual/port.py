# SPDX-License-Identifier: Apache-2.0
"""The serial line of a virtual device, and its usual form: a pseudo-terminal that can be plugged and pulled.

Rules (tests name them):

1. The line is raw in both directions from the first byte: nothing echoes, nothing is translated.
2. A pulled cable is what USB serial looks like: the node disappears and whoever has it open gets an I/O error.
   Plugging in again makes a new node under the same name.
3. Log text that nobody reads is dropped, as on a UART: about `UNREAD_LIMIT` bytes wait for the next reader. Answers of the
   loader are never dropped.
4. With a simulated rate both directions take 10 bits per byte at the current baud rate; a byte counts as arrived
   when its last bit has.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import termios
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

UNREAD_LIMIT = 2048
SETTLE_SECONDS = 0.1
"""After this time what was sent can be seen in the reader's queue; before, the kernel may still be moving it."""
CHUNK = 4096


class SerialLine(ABC):
    """The device's end of a serial line; a subclass says how the host finds the other end.

    Args:
        on_data: called with received bytes, in the event loop.
        simulate_rate: let bytes take the time that the baud rate asks for (rule 4), divided by `speed`.
        speed: how much faster than real time.
    """

    def __init__(self, on_data: Callable[[bytes], None], *, simulate_rate: bool = False, speed: float = 1.0) -> None:
        self.baud = 115_200
        self._on_data = on_data
        self._simulate, self._speed = simulate_rate, speed
        self._fd = -1
        """Where bytes are read and written; -1 while nothing is connected."""
        self._out = bytearray()
        self._rx_free = self._tx_free = 0.0
        self._settled, self._unsettled = 0.0, 0
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    @abstractmethod
    def plugged(self) -> bool:
        """Whether a host can find the line."""

    @property
    def connected(self) -> bool:
        """Whether bytes can be sent: for a pseudo-terminal always, while it is plugged."""
        return self._fd >= 0

    @property
    @abstractmethod
    def path(self) -> str:
        """What a host opens: a node, or a URL as pyserial takes it; empty while unplugged."""

    @property
    def place(self) -> str:
        """What a host may open now and after the line was unplugged: a link that follows the node, or the URL."""
        return self.path

    @abstractmethod
    def plug(self) -> None:
        """Make it findable; does nothing if plugged. Needs a running event loop."""

    @abstractmethod
    def unplug(self) -> None:
        """Take it away (rule 2); does nothing if unplugged."""

    def send(self, data: bytes) -> None:
        """Send `data` to the host, all of it, in order; lost if nothing is connected."""
        self._later("_tx_free", len(data), lambda: self._queue(data))

    def log(self, data: bytes) -> None:
        """Send `data` unless too much already waits unread (rule 3)."""
        now = asyncio.get_running_loop().time()
        if now >= self._settled:
            self._settled, self._unsettled = now + SETTLE_SECONDS, 0
        if self._fd >= 0 and max(self._unread(), self._unsettled) + len(self._out) + len(data) <= UNREAD_LIMIT:
            self._unsettled += len(data)
            self.send(data)

    def _unread(self) -> int:
        """Bytes that left here and wait for a reader, as far as that can be seen."""
        return 0

    def _decode(self, data: bytes) -> bytes:
        """What of the received bytes is data of the line."""
        return data

    def _encode(self, data: bytes) -> bytes:
        """How data of the line is carried."""
        return data

    @abstractmethod
    def _gone(self) -> None:
        """The host closed its end."""

    def _attach(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _detach(self) -> None:
        """Forget the connection and what was on its way; the caller closes the descriptor."""
        if self._fd < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        loop.remove_writer(self._fd)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._out.clear()
        self._rx_free = self._tx_free = 0.0
        self._fd = -1

    def _later(self, line: str, size: int, action: Callable[[], None]) -> None:
        """Run `action` when `size` bytes have passed the line (rule 4), at once without a simulated rate."""
        if not self._simulate:
            action()
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time(), getattr(self, line)) + size * 10 / self.baud / self._speed
        setattr(self, line, due)

        def run() -> None:
            self._timers.discard(timer)
            action()

        timer = loop.call_at(due, run)
        self._timers.add(timer)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ECONNRESET):
                raise
            data = b""
        if not data:
            self._gone()
            return
        data = self._decode(data)
        if not self._simulate:
            self._on_data(data)
            return
        loop, fd = asyncio.get_running_loop(), self._fd
        loop.remove_reader(fd)

        def arrived() -> None:
            self._on_data(data)
            if self._fd == fd:
                loop.add_reader(fd, self._readable)

        self._later("_rx_free", len(data), arrived)

    def _queue(self, data: bytes) -> None:
        if self._fd >= 0:
            self._write(self._encode(data))

    def _write(self, data: bytes) -> None:
        waiting = bool(self._out)
        self._out += data
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self._fd, self._out[:CHUNK])]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._gone()
            return
        loop = asyncio.get_running_loop()
        if self._out:
            loop.add_writer(self._fd, self._flush)
        else:
            loop.remove_writer(self._fd)


class SerialPort(SerialLine):
    """A pseudo-terminal; the host opens `path`, or `link`.

    Args:
        link: name under which the line can be found, as udev would give it; a symbolic link to the current node.
        on_data, simulate_rate, speed: see `SerialLine`.
    """

    def __init__(
        self, link: Path, on_data: Callable[[bytes], None], *, simulate_rate: bool = False, speed: float = 1.0
    ) -> None:
        super().__init__(on_data, simulate_rate=simulate_rate, speed=speed)
        self.link = link
        self._slave = -1

    @property
    def place(self) -> str:
        return str(self.link)

    @property
    def plugged(self) -> bool:
        """Whether a node exists."""
        return self._slave >= 0

    @property
    def path(self) -> str:
        """The node's own path; empty while unplugged."""
        return os.ttyname(self._slave) if self.plugged else ""

    def plug(self) -> None:
        """Make the node and its link; does nothing if plugged. Needs a running event loop."""
        if self.plugged:
            return
        master, self._slave = os.openpty()
        tty.setraw(master)
        tty.setraw(self._slave)
        self.baud = 115_200
        self.link.parent.mkdir(parents=True, exist_ok=True)
        new = self.link.with_name(f".{self.link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(self.path)
        new.replace(self.link)
        self._attach(master)

    def unplug(self) -> None:
        """Take node and link away (rule 2); does nothing if unplugged."""
        if not self.plugged:
            return
        master = self._fd
        self._detach()
        self.link.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(master)
        self._slave = -1

    def _gone(self) -> None:
        """The node outlives its users."""

    def _unread(self) -> int:
        """The slave is held open, so the node survives its users and the queue can be asked."""
        count = array.array("i", [0])
        fcntl.ioctl(self._slave, termios.FIONREAD, count)
        return count[0]
