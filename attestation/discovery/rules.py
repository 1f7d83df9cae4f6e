# SPDX-License-Identifier: Apache-2.0
"""Who is attested when, and who is listed. Pure: time is an argument, in seconds of any steady clock.

A device is asked for evidence, once it has said who it is (`info`), if

1. it is enrolled, no task has it in hand, and its slot is not one that waits for a confirmation; and
2. it is seen for the first time, or was in hand since, or another device is there now, or it has booted since (new boot
   seed), or the state of its slot has changed, or the attest interval is over, or its last answer never came.

It is listed if

3. the verifier accepts the evidence, with a slot that is VALID or UNDEFINED (never confirmed: the factory's);
4. its root of trust is at least the policy's minimum;
5. on the network: it names the address at which it was reached, and over TLS the key of the connection that brought
   its answer, else that may have been relayed;
6. it is not withheld (quarantine) and no task has it in hand;
7. nothing it has said since contradicts the evidence: same device, same boot seed, same slot state; and it was not
   silent in `MISSES` looks in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attestation.device_protocol import Info
from attestation.discovery.addresses import Address, same_address
from attestation.discovery.enrolled import Judged
from attestation.discovery.listing import Listing
from attestation.eat import SlotState
from attestation.errors import Code
from attestation.verdict import Verdict

MISSES: Final = 2
LISTABLE: Final = frozenset({SlotState.VALID, SlotState.UNDEFINED})


@dataclass(frozen=True, slots=True)
class Attestation:
    """One answered request for evidence.

    Args:
        device_id: who `info` said it was.
        endpoint: host:port, with TLS https://host:port, or serial:DEVPATH.
        reached: the address on the network; None: a serial port.
        nonce: what was asked.
        evidence: as received.
        boot_seed, slot_state: as `info` said just before.
        at: when, seconds of the steady clock.
        unix: when, Unix seconds.
        bound: over TLS, whether the evidence names the key of the connection that brought it (HttpDevice, rule 4).
    """

    device_id: str
    endpoint: str
    reached: Address | None
    nonce: bytes
    evidence: bytes
    boot_seed: bytes
    slot_state: int
    at: float
    unix: int
    bound: bool = True

    def contradicted_by(self, info: Info) -> bool:
        """Rule 7."""
        said = (info.ueid.hex(), info.bootseed, info.slot_state)
        return said != (self.device_id, self.boot_seed, self.slot_state)


def may_attest(info: Info, *, in_hand: bool) -> bool:
    """Rule 1, for an enrolled device."""
    return not in_hand and info.slot_state in LISTABLE


def due(last: Attestation | None, info: Info, *, now: float, interval: float) -> bool:
    """Rule 2.

    Args:
        last: the last answer from this place, None if there is none that still counts.
        info: what the device says now.
        now: seconds of the steady clock.
        interval: the shortest attest interval anybody asked for, seconds.
    """
    return last is None or last.contradicted_by(info) or now - last.at >= interval


def judge(attestation: Attestation, verdict: Verdict) -> tuple[Judged, Listing | None]:
    """Rules 3 to 5: what to say of it, and what it may be listed as."""
    claims, reached = verdict.claims, attestation.reached
    there = claims is not None and (
        reached is None or any(same_address(own, reached) for own in claims.token.addresses)
    )
    direct = there and attestation.bound
    if not verdict.accepted or claims is None:
        return Judged(verdict, str(verdict.code or ""), verdict.message, direct, attestation.unix), None
    if not attestation.bound:
        message = f"reached at {reached} under a TLS key that the evidence does not name (cnf): somebody stands between"
        return Judged(verdict, str(Code.EAT_CHANNEL), message, asked_at=attestation.unix), None
    if not direct:
        own = ", ".join(claims.token.addresses) or "none"
        message = f"reached at {reached}, but the device names {own}: its answer may have been relayed"
        return Judged(verdict, str(Code.EAT_ADDRESS), message, asked_at=attestation.unix), None
    if not verdict.proven_at_tier or verdict.policy_hash is None or verdict.tier is None:
        message = f"accepted, but not listed: not proven are {', '.join(verdict.unproven)}"
        return Judged(verdict, "", message, True, attestation.unix), None
    listing = Listing(
        ueid=claims.ueid,
        measurement=claims.measurement,
        application=claims.application,
        version=claims.version,
        boot_id=claims.boot_id,
        evidence_sha256=verdict.evidence_sha256,
        policy_hash=verdict.policy_hash,
        endpoint=attestation.endpoint,
        tier=verdict.tier,
    )
    return Judged(verdict, "", verdict.message, True, attestation.unix), listing
