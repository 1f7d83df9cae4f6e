# SPDX-License-Identifier: Apache-2.0
"""Applies a delta payload (esp_delta_ota) to the running image. What comes out is judged by its measurement."""

from __future__ import annotations

import importlib.util
import io
from typing import Final

_MAGIC: Final = (0xFCCDDE10).to_bytes(4, "little")
_HEADER_BYTES: Final = 64


class _Bounded(io.BytesIO):
    """Memory for one slot's worth."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Refuses what the slot has no room for."""
        if self.tell() + len(data) > self._limit:
            raise ValueError(f"the patch makes more than {self._limit} bytes")
        return super().write(data)


def available() -> bool:
    """Whether this device can apply deltas: its `info` says so (flag 6)."""
    return importlib.util.find_spec("detools") is not None


def apply(base: bytes, appended_hash: bytes | None, payload: bytes, limit: int) -> bytes:
    """The new image, at most `limit` bytes. Raises ValueError for any patch that cannot be applied to this base."""
    import detools

    if payload[:4] != _MAGIC or len(payload) <= _HEADER_BYTES:
        raise ValueError("the payload is no delta")
    if appended_hash is None or payload[4:36] != appended_hash:
        raise ValueError("the delta starts from another image")
    made = _Bounded(limit)
    try:
        detools.apply_patch(io.BytesIO(base), io.BytesIO(payload[_HEADER_BYTES:]), made)
    except (detools.Error, EOFError, OverflowError, IndexError, MemoryError) as error:
        raise ValueError(f"the patch cannot be applied: {error}") from error
    return made.getvalue()
