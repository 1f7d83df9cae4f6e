# SPDX-License-Identifier: Apache-2.0
"""Do two devices share one identity? Decided from what a device's own key signed. Pure.

An honest device counts every boot up by one and draws a random seed at each. Two devices that hold the same secret
(a copied flash, a leaked UDS) each count and draw for themselves, and the verifier sees them take turns.

Rules, in the order in which they are checked (tests name them); the first that fires is the alarm:

1. Only what the enrolled key's own chain signed counts: nobody else can have a device suspended.
2. Whoever carries an answer may hold it back as long as its nonce lives. When the device gave it lies between the issue of
   its nonce and its arrival; no more is known. So it shows a later moment than a sighting only if its nonce was issued
   after that one had arrived. Times are whole seconds: within one second no device attests, boots and attests again.
3. ``clone.identity``: the key signed a token that names another device.
4. ``clone.bootcount``: later than a sighting (rule 2), the boot counter is below that one's; or later than all of them it
   is below the confirmed floor.
5. ``clone.seed``: one boot (the same counter) with two seeds, or two boots with one seed, in whatever order.
6. Without an alarm the sighting is remembered: one per boot, with the time when it was first there; of more than
   `MOST_SIGHTINGS` the highest counters. The highest alone would do for counters; of seeds that alternate it shows only
   the last, and n devices that take turns with a fixed seed each are seen by who remembers n boots.

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
        seen_at: Unix seconds, when the first answer of this boot had arrived.
    """

    boot_count: int
    seed_sha256: bytes
    seen_at: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What follows from one more verdict.

    Args:
        sightings: what to remember, the lowest counter first.
        alarm: the code, None where all is well.
        message: for people, empty where all is well.
    """

    sightings: tuple[Sighting, ...]
    alarm: Code | None = None
    message: str = ""


def observe(
    known: Sequence[Sighting], verdict: Verdict, *, asked_at: int, seen_at: int, boot_count_floor: int = 0
) -> Finding:
    """Decide whether this verdict contradicts what was seen before.

    Args:
        known: sightings so far.
        verdict: of evidence from this device, accepted or not.
        asked_at: when its nonce was issued, Unix seconds, or before.
        seen_at: when it had arrived, in the same unit, or later.
        boot_count_floor: highest boot counter of a confirmed verdict.
    """
    before = tuple(known)
    if verdict.code is Code.EAT_UEID and _token_held(verdict):
        return Finding(before, Code.CLONE_IDENTITY, f"its key signed for another identity: {verdict.message}")
    claims = verdict.claims
    if claims is None:
        return Finding(before)
    count, seed = claims.boot_count, hashlib.sha256(claims.boot_seed).digest()
    earlier = [one.boot_count for one in before if asked_at >= one.seen_at]
    floor = boot_count_floor if len(earlier) == len(before) else 0
    highest = max((floor, *earlier))
    if count < highest:
        return Finding(before, Code.CLONE_BOOTCOUNT, f"boot counter {count} after {highest} was seen")
    for one in before:
        same_seed = len(one.seed_sha256) >= LEAST_SEED_BYTES and seed.startswith(one.seed_sha256)
        if (one.boot_count == count) != same_seed:
            same_boot = one.boot_count == count
            what = "two seeds in boot" if same_boot else f"boot {one.boot_count}'s seed in boot"
            return Finding(before, Code.CLONE_SEED, f"{what} {count}")
    if any(one.boot_count == count for one in before):
        return Finding(before)
    every = sorted((*before, Sighting(count, seed, seen_at)), key=lambda one: one.boot_count)
    return Finding(tuple(every[-MOST_SIGHTINGS:]))


def _token_held(verdict: Verdict) -> bool:
    """Rule 1 for a token without authentic claims: chain and signature held, only the name is another's."""
    return any(step.rule == "token" and step.held for step in verdict.trail)
