# SPDX-License-Identifier: Apache-2.0
"""The built-in engine: run a target over a numbered supply of inputs and say what it did. No coverage, no dependencies."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .mutation import Mutator
from .target import Target

SMALL_BYTES, SMALL_SECONDS = 8 * 1024, 0.005
"""Up to so many bytes, so much CPU; above, `STEP_SECONDS` for every `STEP_BYTES`."""
STEP_BYTES, STEP_SECONDS = 64 * 1024, 0.010


def allowed_seconds(size: int) -> float:
    """CPU seconds that an input of `size` bytes may take."""
    if size <= SMALL_BYTES:
        return SMALL_SECONDS
    return SMALL_SECONDS + STEP_SECONDS * -(-size // STEP_BYTES)


class Finding(Exception):
    """A target broke a rule of `target`; the input is in the message."""


@dataclass(slots=True)
class Tally:
    """What became of the inputs of one run. `slow`: inputs that took more CPU than allowed, twice."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slow: list[tuple[float, bytes]] = field(default_factory=list)


def run(target: Target, inputs: int, *, number: int = 1) -> Tally:
    """Try `inputs` inputs of supply `number`.

    Raises:
        Finding: at the first broken rule, with the input in hex.
    """
    tally = Tally()
    supply = Mutator(target.seeds, number, target.limit)
    begun = time.process_time()
    for _ in range(inputs):
        data = supply.next()
        started = time.process_time()
        tally.accepted += _accepts(target, data)
        if time.process_time() - started > allowed_seconds(len(data)):
            started = time.process_time()  # once more: the first time may have paid for a neighbour
            _accepts(target, data)
            if (took := time.process_time() - started) > allowed_seconds(len(data)):
                tally.slow.append((took, data))
        tally.inputs += 1
    tally.seconds = time.process_time() - begun
    return tally


def _accepts(target: Target, data: bytes) -> bool:
    try:
        return target.accepts(data)
    except Exception as error:
        shown = data.hex() if len(data) <= 4096 else f"{data[:4096].hex()}... ({len(data)} bytes)"
        raise Finding(f"{target.name}: {type(error).__name__}: {error}\ninput: {shown}") from error
