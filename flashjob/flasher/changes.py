# SPDX-License-Identifier: Apache-2.0
"""Which sectors of a region must be written, found by asking the chip for MD5 sums of what it holds. Pure.

Rules (tests name them):

1. A region that is equal needs one question and no write. So does a blank one, which is written whole.
2. Else pages of 64 KiB are asked for, then the 4 KiB sectors of each page that differs.
3. After `HOPELESS` differing pages without one equal sector nobody asks on: what is left of the differing pages is
   written whole. Code that moved has no equal sectors, and questions cost time too.
4. The answers choose what is written and nothing else. Whether the write is right is decided afterwards by the MD5 of
   the whole region; if it is not, everything is written.

MD5 is what the loader of every chip offers. It is no defence against a chip that lies; the verdict is by evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Final, TypeAlias

SECTOR: Final = 0x1000
PAGE: Final = 0x10000
HOPELESS: Final = 2

Run: TypeAlias = tuple[int, int]
"""(start, end) in bytes from the region's begin, both on sector borders but for the end of the data."""
Search: TypeAlias = Generator[Run, str, list[Run]]
"""Yields the stretches whose MD5 (lower-case hex) it wants to be sent; returns the runs to be written."""


def padded(data: bytes) -> bytes:
    """`data` up to the end of its last sector as flash holds it after a write: the rest of that sector is erased."""
    return data + b"\xff" * (-len(data) % SECTOR)


def md5(data: bytes | memoryview) -> str:
    """As the chip's loader computes it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def search(data: bytes) -> Search:
    """Find the runs of `data` that the flash does not hold yet; `data` is `padded`."""
    if not data:
        return []
    answer = yield 0, len(data)
    if answer == md5(data):
        return []
    if answer == md5(b"\xff" * len(data)):
        return [(0, len(data))]
    view = memoryview(data)
    pages = []
    for start in range(0, len(data), PAGE):
        end = min(start + PAGE, len(data))
        if (yield start, end) != md5(view[start:end]):
            pages.append((start, end))
    changed: list[Run] = []
    hopeless = 0
    for start, end in pages:
        if hopeless == HOPELESS:
            changed.append((start, end))
            continue
        differing = []
        for at in range(start, end, SECTOR):
            if (yield at, at + SECTOR) != md5(view[at : at + SECTOR]):
                differing.append((at, at + SECTOR))
        hopeless = hopeless + 1 if len(differing) * SECTOR == end - start else 0
        changed += differing
    return _joined(changed)


def _joined(sectors: list[Run]) -> list[Run]:
    """Neighbours become one run."""
    runs: list[Run] = []
    for start, end in sectors:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs
