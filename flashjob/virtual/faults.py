# SPDX-License-Identifier: Apache-2.0
"""Hardware faults of a virtual device: what goes wrong below its firmware. Lies of the firmware are in adversaries.

A fault counts only image writes (at least `LARGE` bytes at once), so that it strikes the image and not its OTA data.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

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
    """The flash refuses blocks; three in a row end a write, since each block is tried three times."""

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


FAULTS: dict[str, type[Fault]] = {
    kind.__name__: kind for kind in (CablePulled, ChipHangs, FlashFails, BitFlips, SilentPort)
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
