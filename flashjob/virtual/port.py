# SPDX-License-Identifier: Apache-2.0
"""The serial line of a virtual device: a pseudo-terminal that can be plugged, pulled and slowed down.

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
import contextlib
import errno
import fcntl
import os
import termios
import tty
from collections.abc import Callable
from pathlib import Path

UNREAD_LIMIT = 2048
SETTLE_SECONDS = 0.1
"""After this time what was sent can be seen in the reader's queue; before, the kernel may still be moving it."""
CHUNK = 4096


class SerialPort:
    """One end of a serial line, the device's; the host opens `path`.

    Args:
        link: name under which the line can be found, as udev would give it; a symbolic link to the current node.
        on_data: called with received bytes, in the event loop.
        simulate_rate: let bytes take the time that the baud rate asks for (rule 4).
    """

    def __init__(self, link: Path, on_data: Callable[[bytes], None], *, simulate_rate: bool = False) -> None:
        self.link = link
        self.baud = 115_200
        self._on_data = on_data
        self._simulate = simulate_rate
        self._master = self._slave = -1
        self._out = bytearray()
        self._rx_free = self._tx_free = 0.0
        self._settled, self._unsettled = 0.0, 0
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def plugged(self) -> bool:
        """Whether a node exists."""
        return self._master >= 0

    @property
    def path(self) -> str:
        """The node's own path; empty while unplugged."""
        return os.ttyname(self._slave) if self.plugged else ""

    def plug(self) -> None:
        """Make the node and its link; does nothing if plugged. Needs a running event loop."""
        if self.plugged:
            return
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.baud = 115_200
        self.link.parent.mkdir(parents=True, exist_ok=True)
        new = self.link.with_name(f".{self.link.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(self.path)
        new.replace(self.link)
        asyncio.get_running_loop().add_reader(self._master, self._readable)

    def unplug(self) -> None:
        """Take node and link away (rule 2); does nothing if unplugged."""
        if not self.plugged:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._master)
        loop.remove_writer(self._master)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._out.clear()
        self._rx_free = self._tx_free = 0.0
        self.link.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def send(self, data: bytes) -> None:
        """Send `data` to the host, all of it, in order; lost if unplugged."""
        self._later("_tx_free", len(data), lambda: self._queue(data))

    def log(self, data: bytes) -> None:
        """Send `data` unless too much already waits unread (rule 3)."""
        now = asyncio.get_running_loop().time()
        if now >= self._settled:
            self._settled, self._unsettled = now + SETTLE_SECONDS, 0
        if self.plugged and max(self._unread(), self._unsettled) + len(self._out) + len(data) <= UNREAD_LIMIT:
            self._unsettled += len(data)
            self.send(data)

    def _later(self, line: str, size: int, action: Callable[[], None]) -> None:
        """Run `action` when `size` bytes have passed the line (rule 4), at once without a simulated rate."""
        if not self._simulate:
            action()
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time(), getattr(self, line)) + size * 10 / self.baud
        setattr(self, line, due)

        def run() -> None:
            self._timers.discard(timer)
            action()

        timer = loop.call_at(due, run)
        self._timers.add(timer)

    def _readable(self) -> None:
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return
        if not self._simulate:
            self._on_data(data)
            return
        loop, master = asyncio.get_running_loop(), self._master
        loop.remove_reader(master)

        def arrived() -> None:
            self._on_data(data)
            if self._master == master:
                loop.add_reader(master, self._readable)

        self._later("_rx_free", len(data), arrived)

    def _queue(self, data: bytes) -> None:
        if not self.plugged:
            return
        waiting = bool(self._out)
        self._out += data
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: os.write(self._master, self._out[:CHUNK])]
        loop = asyncio.get_running_loop()
        if self._out:
            loop.add_writer(self._master, self._flush)
        else:
            loop.remove_writer(self._master)

    def _unread(self) -> int:
        """Bytes that wait for a reader. The slave is held open, so the node survives its users."""
        count = array.array("i", [0])
        fcntl.ioctl(self._slave, termios.FIONREAD, count)
        return count[0]
