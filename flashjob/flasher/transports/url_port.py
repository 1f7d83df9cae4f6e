# SPDX-License-Identifier: Apache-2.0
"""The line of an application behind a pyserial URL (`socket://`, `rfc2217://`) as an asyncio byte stream.

pyserial blocks, so a thread reads; DTR and RTS are deasserted before the line is opened. Whoever serves the URL decides
who may use it: both kinds of server take one client at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, Final

import serial

from attestation.device_protocol import DeviceError

_POLL_SECONDS: Final = 0.1
_READ_BYTES: Final = 4096


class UrlPort:
    """An `attestation.serial_port.ByteStream` over an open pyserial port; make it with `open_url`."""

    def __init__(self, url: str, port: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._url, self._port, self._loop = url, port, loop
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._closed = False
        threading.Thread(target=self._listen, daemon=True, name=f"read {url}").start()

    async def read(self) -> bytes:
        """The next bytes of the line."""
        data = await self._arrived.get()
        if data is None:
            self._arrived.put_nowait(None)
            raise DeviceError("ConnectionLost", f"{self._url}: the line was closed at the other end")
        return data

    async def write(self, data: bytes) -> None:
        """Write everything."""
        try:
            await asyncio.to_thread(self._port.write, data)
        except (serial.SerialException, OSError) as error:
            raise DeviceError("ConnectionLost", f"{self._url}: {error}") from error

    def close(self) -> None:
        """Close the line. Closing twice is harmless."""
        self._closed = True
        with contextlib.suppress(serial.SerialException, OSError):
            self._port.close()

    def _listen(self) -> None:
        while not self._closed:
            try:
                data = self._port.read(min(self._port.in_waiting or 1, _READ_BYTES))
            except (serial.SerialException, OSError, TypeError, AttributeError):  # the last two: closed meanwhile
                self._tell(None)
                return
            if data:
                self._tell(bytes(data))

    def _tell(self, data: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, data)


async def open_url(url: str, baud: int = 115_200) -> UrlPort:
    """Open a pyserial URL. Raises DeviceError Unreachable."""

    def connect() -> Any:
        port = serial.serial_for_url(url, do_not_open=True, timeout=_POLL_SECONDS)
        port.baudrate = baud
        port.dtr = port.rts = False
        port.open()
        return port

    try:
        return UrlPort(url, await asyncio.to_thread(connect), asyncio.get_running_loop())
    except (serial.SerialException, ValueError, OSError) as error:
        raise DeviceError("Unreachable", f"{url} cannot be opened: {error}") from error
