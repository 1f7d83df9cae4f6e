# SPDX-License-Identifier: Apache-2.0
"""SLIP framing as ESP serial loaders use it: ``C0 payload C0``, with C0 -> DB DC and DB -> DB DD inside."""

from __future__ import annotations

END = b"\xc0"
MAX_FRAME = 80 * 1024
"""Longest frame kept, in bytes as received; the stub's blocks are 16 KiB, 32 KiB when every byte is escaped."""


def encode(payload: bytes) -> bytes:
    """Return one frame."""
    return END + payload.replace(b"\xdb", b"\xdb\xdd").replace(END, b"\xdb\xdc") + END


class SlipDecoder:
    """Cuts a byte stream into frames; what stands outside frames is returned as noise.

    A frame that outgrows `MAX_FRAME` is dropped: the decoder never holds more than that.
    """

    def __init__(self) -> None:
        self._frame: bytearray | None = None

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return (frames that ended in `data`, bytes outside frames)."""
        frames: list[bytes] = []
        noise = bytearray()
        parts = data.split(END)
        for index, part in enumerate(parts):
            if self._frame is None:
                noise += part
            else:
                self._frame += part
                if len(self._frame) > MAX_FRAME:
                    self._frame = None
            if index == len(parts) - 1:
                break
            if self._frame:
                frames.append(bytes(self._frame).replace(b"\xdb\xdc", END).replace(b"\xdb\xdd", b"\xdb"))
                self._frame = None
            else:
                self._frame = bytearray()
        return frames, bytes(noise)

    def reset(self) -> None:
        """Forget a frame that has begun."""
        self._frame = None
