# SPDX-License-Identifier: Apache-2.0
"""Do two devices share one identity? Decided from what a device's own key signed. Pure.

An honest device counts every boot up by one and draws a random seed at each. Two devices that hold the same secret
(a copied flash, a leaked UDS) each count and draw for themselves, and the verifier sees them take turns.

Rules, in the order in which they are checked (tests name them); the first that fires is the alarm:

1. Only what the enrolled key's own chain signed counts: nobody else can have a device suspended.
2. Evidence that answers a nonce older than the newest sighting's is no sighting: answers may overtake one another.
3. ``clone.identity``: the key signed a token that names another device.
4. ``clone.bootcount``: the boot counter is below one that was seen, or below the confirmed floor.
5. ``clone.seed``: one boot (the same counter) with two seeds, or a seed that was seen in an earlier boot.
6. Without an alarm the sighting is remembered: one per boot, the newest `MOST_SIGHTINGS`. The newest alone would do for
   counters; of seeds that alternate it shows only the last, and n devices that take turns with a fixed seed each are seen
   by who remembers n boots.

Not seen: devices that take turns so that the counter rises each time, under seeds that are new each time. They look like
one device that boots often, however much is remembered.

What an alarm leads to (suspension, quarantine) is its caller's business.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from attestation.errors import Code
from attestation.verdict import Verdict

MOST_SIGHTINGS: Final = 8
LEAST_SEED_BYTES: Final = 6


@dataclass(frozen=True, slots=True)
class Sighting:
    """One boot of a device, as it was seen.

    Args:
        boot_count: its boot counter.
        seed_sha256: SHA-256 of its boot seed; or its beginning, at least `LEAST_SEED_BYTES`, where memory is short.
        asked_at: Unix seconds of the nonce that was answered.
    """

    boot_count: int
    seed_sha256: bytes
    asked_at: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What follows from one more verdict.

    Args:
        sightings: what to remember, oldest first.
        alarm: the code, None where all is well.
        message: for people, empty where all is well.
    """

    sightings: tuple[Sighting, ...]
    alarm: Code | None = None
    message: str = ""


def observe(known: Sequence[Sighting], verdict: Verdict, *, asked_at: int, boot_count_floor: int = 0) -> Finding:
    """Decide whether this verdict contradicts what was seen before.

    Args:
        known: sightings so far, oldest first.
        verdict: of evidence from this device, accepted or not.
        asked_at: when its nonce was issued, Unix seconds.
        boot_count_floor: highest boot counter of a confirmed verdict.
    """
    before = tuple(known)
    if verdict.code is Code.EAT_UEID and _token_held(verdict):
        return Finding(before, Code.CLONE_IDENTITY, f"its key signed for another identity: {verdict.message}")
    claims = verdict.claims
    if claims is None or (before and asked_at < max(one.asked_at for one in before)):
        return Finding(before)
    sighting = Sighting(claims.boot_count, hashlib.sha256(claims.boot_seed).digest(), asked_at)
    highest = max((boot_count_floor, *(one.boot_count for one in before)))
    if sighting.boot_count < highest:
        return Finding(before, Code.CLONE_BOOTCOUNT, f"boot counter {sighting.boot_count} after {highest} was seen")
    for one in before:
        same_seed = len(one.seed_sha256) >= LEAST_SEED_BYTES and sighting.seed_sha256.startswith(one.seed_sha256)
        if (one.boot_count == sighting.boot_count) != same_seed:
            what = (
                "two seeds in boot"
                if one.boot_count == sighting.boot_count
                else f"boot {one.boot_count}'s seed in boot"
            )
            return Finding(before, Code.CLONE_SEED, f"{what} {sighting.boot_count}")
    others = tuple(one for one in before if one.boot_count != sighting.boot_count)
    return Finding((*others, sighting)[-MOST_SIGHTINGS:])


def _token_held(verdict: Verdict) -> bool:
    """Rule 1 for a token without authentic claims: chain and signature held, only the name is another's."""
    return any(step.rule == "token" and step.held for step in verdict.trail)
