# SPDX-License-Identifier: Apache-2.0
"""NOR flash memory of a virtual chip.

Rules (as a serial NOR flash chip keeps them; tests name them):

1. Erasing works on whole 4 KiB sectors and sets every bit; an unaligned range is refused, never rounded.
2. Programming can only clear bits: the new content is ``old AND data``. Writing without erasing is not an
   error, it is the wrong content, exactly as on hardware.
3. Nothing outside ``0 <= offset < size`` can be read, programmed or erased.
4. Every erased and programmed byte is counted, in total and per watched region, so that a test or a person
   can prove that a slot was written once, or never.
5. A fault hook is asked before each sector is programmed or erased, and may stop the operation there: sectors before
   it are changed, it and those behind it are not.
6. Content is shared between chips until it differs: erased sectors take no memory, sectors of a `FactoryContent` belong
   to all chips that left the factory with it, and only sectors that a chip changed are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

SECTOR = 4096
"""Erase unit in bytes."""

Operation = Literal["read", "program", "erase"]
Hook = Callable[[Operation, int, int], None]
FactoryContent: TypeAlias = Mapping[int, bytes]
"""Sector number -> its 4,096 bytes; what is not in it is erased. Never changed, so any number of chips share one."""

_FEW: Final = 4
_REMEMBERED: Final = 32
"""Ranges of more than `_FEW` sectors that were read last, of all chips of the process."""
_ERASED: Final = b"\xff" * SECTOR
_NOTHING: Final[FactoryContent] = MappingProxyType({})


class FlashIOError(OSError):
    """The flash chip did not do what it was told (rule 5)."""


@dataclass(slots=True)
class RegionCounters:
    """What happened inside one watched region, in bytes, since the last `Flash.reset_counters`."""

    start: int
    size: int
    erased: int = 0
    programmed: int = 0
    installs: int = 0
    """How often the region's first byte was programmed: one per image written from its beginning."""


@dataclass(slots=True)
class Flash:
    """Flash of `size` bytes, all erased (0xFF) at first.

    `hook(operation, offset, length)` is called before each read and each sector of a change; what it raises ends the
    operation (`FlashIOError`: the flash failed).
    """

    size: int
    hook: Hook | None = None
    regions: dict[str, RegionCounters] = field(default_factory=dict)
    bytes_erased: int = 0
    bytes_programmed: int = 0
    _base: FactoryContent = field(init=False, repr=False, default_factory=lambda: _NOTHING)
    _own: dict[int, bytes] = field(init=False, repr=False, default_factory=dict)
    """Sectors that differ, or once differed, from the base (rule 6)."""

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % SECTOR:
            raise ValueError(f"flash size {self.size} is not a positive multiple of {SECTOR}")

    @property
    def own_bytes(self) -> int:
        """Memory that this chip's content takes for itself, in bytes (rule 6)."""
        return sum(SECTOR for sector in self._own.values() if sector is not _ERASED)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`. Raises ValueError outside the chip (rule 3)."""
        self._check(offset, length, "read")
        self._ask("read", offset, length)
        return self._read(offset, length)

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits so that the content becomes ``old AND data`` (rule 2). Raises ValueError (rule 3)."""
        length = len(data)
        self._check(offset, length, "program")
        for number, start, part in _by_sector(offset, data):
            self._ask("program", number * SECTOR + start, len(part))
            self._program(number * SECTOR + start, part)

    def _program(self, offset: int, data: bytes) -> None:
        length = len(data)
        old = self._read(offset, length)
        if old.count(0xFF) == length:
            new = data
        else:
            new = (int.from_bytes(old, "little") & int.from_bytes(data, "little")).to_bytes(length, "little")
        self._put(offset, new)
        self.bytes_programmed += length
        for region in self.regions.values():
            part = _overlap(region, offset, length)
            region.programmed += part
            region.installs += bool(part and offset <= region.start)

    def erase(self, offset: int, length: int) -> None:
        """Erase whole sectors. Raises ValueError for a range that is unaligned or outside (rules 1, 3)."""
        if offset % SECTOR or length % SECTOR:
            raise ValueError(f"erase of {length} bytes at {offset:#x} is not aligned to {SECTOR} bytes")
        self._check(offset, length, "erase")
        for start in range(offset, offset + length, SECTOR):
            self._ask("erase", start, SECTOR)
            self._forget(start // SECTOR)
            self.bytes_erased += SECTOR
            for region in self.regions.values():
                region.erased += _overlap(region, start, SECTOR)

    def load(self, offset: int, data: bytes) -> None:
        """Put `data` there as a factory programmer does: replaces the content, counts nothing."""
        if offset < 0 or offset + len(data) > self.size:
            raise ValueError(f"{len(data)} bytes at {offset:#x} do not fit into {self.size} bytes of flash")
        self._put(offset, data)

    def manufacture(self, content: FactoryContent) -> None:
        """Be as `factory_content` says, from end to end: replaces everything, copies and counts nothing (rule 6)."""
        if content and max(content) >= self.size // SECTOR:
            raise ValueError(f"the factory content does not fit into {self.size} bytes of flash")
        self._base = content
        self._own.clear()

    def snapshot(self) -> bytes:
        """The whole content, uncounted and past the fault hook: for tests and comparisons."""
        return self._read(0, self.size)

    def watch(self, name: str, start: int, size: int) -> None:
        """Count separately what happens in ``[start, start + size)`` (rule 4), from zero."""
        self.regions[name] = RegionCounters(start, size)

    def reset_counters(self) -> None:
        """Begin counting anew."""
        self.bytes_erased = self.bytes_programmed = 0
        self.regions = {name: RegionCounters(r.start, r.size) for name, r in self.regions.items()}

    def _sector(self, number: int) -> bytes:
        own = self._own.get(number)
        return self._base.get(number, _ERASED) if own is None else own

    def _read(self, offset: int, length: int) -> bytes:
        first, last = offset // SECTOR, (offset + length - 1) // SECTOR
        sectors = tuple(map(self._sector, range(first, last + 1)))
        data = _joined(sectors) if len(sectors) > _FEW else b"".join(sectors)
        return data if len(data) == length else data[offset - first * SECTOR :][:length]

    def _put(self, offset: int, data: bytes) -> None:
        for number, start, part in _by_sector(offset, data):
            if len(part) < SECTOR:
                old = self._sector(number)
                part = old[:start] + part + old[start + len(part) :]
            if part == _ERASED:
                self._forget(number)
            else:
                self._own[number] = part

    def _forget(self, number: int) -> None:
        """Make a sector erased; where the base has content the chip must remember that it is gone."""
        if number in self._base:
            self._own[number] = _ERASED
        else:
            self._own.pop(number, None)

    def _check(self, offset: int, length: int, operation: Operation) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{operation} of {length} bytes at {offset:#x} leaves the {self.size} bytes there are")

    def _ask(self, operation: Operation, offset: int, length: int) -> None:
        """Rule 5."""
        if self.hook is not None:
            self.hook(operation, offset, length)


@lru_cache(maxsize=_REMEMBERED)
def _joined(sectors: tuple[bytes, ...]) -> bytes:
    """What sectors hold together: for equal sectors the same object, so that who remembers by content compares nothing.

    A fleet boots the same few images thousands of times.
    """
    return b"".join(sectors)


def factory_content(parts: Iterable[tuple[int, bytes]]) -> FactoryContent:
    """Content made of (offset, bytes), later parts over earlier ones; the rest is erased."""
    sectors: dict[int, bytes] = {}
    for offset, data in parts:
        if offset < 0:
            raise ValueError(f"{len(data)} bytes at {offset} lie before the beginning of flash")
        for number, start, part in _by_sector(offset, data):
            old = sectors.get(number, _ERASED)
            sectors[number] = old[:start] + part + old[start + len(part) :]
    return MappingProxyType(sectors)


def _by_sector(offset: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Cut `data` at sector ends: (sector number, offset in it, bytes)."""
    at = 0
    while at < len(data):
        number, start = divmod(offset + at, SECTOR)
        yield number, start, bytes(data[at : at + SECTOR - start])
        at += SECTOR - start


def _overlap(region: RegionCounters, offset: int, length: int) -> int:
    end = min(region.start + region.size, offset + length)
    return max(0, end - max(region.start, offset))
