# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is, and what a finding is.

A target takes any bytes; it may return, or refuse with its package's own error, and nothing else. Rules of a finding:

1. Any exception but the target's own refusals.
2. `Accepted`: something was believed although nobody who may sign it did.
3. `Unstable`: what was accepted means another thing when it is written and read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attestation.errors import Reject

LIMIT = 64 * 1024


class Accepted(Exception):
    """Rule 2."""


class Unstable(Exception):
    """Rule 3."""


class Refused(Exception):
    """For what refuses by its answer instead of an error."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Attributes:
        run: takes any bytes.
        refusals: what it may raise.
        seeds: true inputs.
        limit: most bytes worth trying.
    """

    name: str
    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    limit: int = LIMIT

    def accepts(self, data: bytes) -> bool:
        """Whether the input was taken. Raises what a finding is (rules 1 to 3)."""
        try:
            self.run(data)
        except self.refusals:
            return False
        return True


def only_seeds(name: str, run: Callable[[bytes], object], seeds: tuple[bytes, ...]) -> Target:
    """A target that believes a signature: nothing but the seeds themselves, byte for byte, may pass."""

    def judged(raw: bytes) -> None:
        run(raw)
        if raw not in seeds:
            raise Accepted(f"{name}: believed without a signature over these {len(raw)} bytes")

    return Target(f"attestation-{name}", judged, (Reject,), seeds)
