# SPDX-License-Identifier: Apache-2.0
"""Hardware faults of a virtual device: what goes wrong below its firmware. Lies of the firmware are in adversaries.

Faults of a write count only images (at least `LARGE` bytes at once), so that they strike the image and not its OTA
data. `PowerCut` counts sectors of flash, whatever is written there. `BrownOut` and `Crash` strike an installation's first
boot, `WrongChip` the loader, `Slow` everything.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Literal

LARGE = 64 * 1024
"""Bytes: a write of at least this size is an image."""


class Effect(Enum):
    """What a fault does to the block that is about to be written."""

    PULL = "the cable is pulled"
    HANG = "the chip stops answering"
    FAIL = "the flash fails"
    CORRUPT = "a bit of the block flips"


@dataclass(slots=True)
class Fault:
    """Strikes once a write has reached `percent`, at most `times` times."""

    percent: float = 30.0
    times: int = 1

    def strikes(self, done: int, total: int) -> bool:
        """Whether it strikes now, `done` of `total` bytes being written; counts down."""
        if total < LARGE or self.times <= 0 or done * 100 < self.percent * total:
            return False
        self.times -= 1
        return True

    @property
    def effect(self) -> Effect:
        """What happens when it strikes."""
        return Effect.FAIL


@dataclass(slots=True)
class CablePulled(Fault):
    """The node vanishes in mid-write; it comes back under the same name after `replug_seconds` (None: never)."""

    replug_seconds: float | None = 0.5

    @property
    def effect(self) -> Effect:
        return Effect.PULL


@dataclass(slots=True)
class ChipHangs(Fault):
    """The chip stops answering in mid-write, until it is reset by hand."""

    @property
    def effect(self) -> Effect:
        return Effect.HANG


@dataclass(slots=True)
class FlashFails(Fault):
    """The flash refuses blocks. Over serial three in a row end a write, since each is tried three times; a network device
    gives up at the first."""

    times: int = 3


@dataclass(slots=True)
class BitFlips(Fault):
    """One bit of one block is written wrongly: only the comparison after the write can see it."""

    @property
    def effect(self) -> Effect:
        return Effect.CORRUPT


@dataclass(slots=True)
class SilentPort(Fault):
    """Nothing on this port ever answers, neither application nor loader."""

    def strikes(self, done: int, total: int) -> bool:
        return False


@dataclass(slots=True)
class PowerCut(Fault):
    """The power fails just before the sector-th next sector of flash is changed (0 = the next one), and comes back.

    What was written before stays; everything in RAM is gone. It strikes `times` times, counting anew after each. With
    `back_seconds` None it comes back by a reset alone.
    """

    sector: int = 0
    during: Literal["program", "erase"] = "program"
    back_seconds: float | None = 0.1
    passed: int = 0
    """Sectors since it struck last."""

    def strikes(self, done: int, total: int) -> bool:
        return False

    def cuts(self, operation: str) -> bool:
        """Whether it strikes before this operation on one sector; counts sectors, and itself down."""
        if self.times <= 0 or operation != self.during:
            return False
        self.passed += 1
        if self.passed <= self.sector:
            return False
        self.passed, self.times = 0, self.times - 1
        return True


@dataclass(slots=True)
class BrownOut(Fault):
    """The supply breaks down while an installation boots first; the chip starts once more by itself."""

    def strikes(self, done: int, total: int) -> bool:
        return False

    def first_boot(self) -> bool:
        """Whether it strikes this first boot; counts down."""
        self.times -= 1
        return self.times >= 0


@dataclass(slots=True)
class Crash(BrownOut):
    """The new application starts and panics after `seconds`; the chip resets."""

    seconds: float = 0.05


@dataclass(slots=True)
class WrongChip(Fault):
    """The loader is that of another chip: somebody soldered, or the port is not the one it was."""

    chip: str = "esp32c3"

    def strikes(self, done: int, total: int) -> bool:
        return False


@dataclass(slots=True)
class Slow(Fault):
    """Every answer, of loader and application, and every 16 KiB over the network come `seconds` late."""

    seconds: float = 0.1

    def strikes(self, done: int, total: int) -> bool:
        return False


@dataclass(slots=True)
class NoisyLine(Fault):
    """Above `baud` nothing arrives whole: a long cable, or a cheap converter. A reset brings the slow rate back."""

    baud: int = 115_200

    def strikes(self, done: int, total: int) -> bool:
        return False


FAULTS: dict[str, type[Fault]] = {
    kind.__name__: kind
    for kind in (
        CablePulled,
        ChipHangs,
        FlashFails,
        BitFlips,
        SilentPort,
        PowerCut,
        BrownOut,
        Crash,
        WrongChip,
        Slow,
        NoisyLine,
    )
}


def make_fault(spec: dict[str, Any]) -> Fault:
    """The fault that ``{"kind": name, ...}`` describes. Raises ValueError for an unknown kind or field."""
    arguments = dict(spec)
    name = arguments.pop("kind", None)
    kind = FAULTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"fault {name!r} is none of {', '.join(FAULTS)}")
    unknown = arguments.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"fault {name} has no {', '.join(sorted(unknown))}")
    return kind(**arguments)
