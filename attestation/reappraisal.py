# SPDX-License-Identifier: Apache-2.0
"""Judge recorded evidence again: what would fail under another policy? Pure.

Rules (tests name them):

1. First the record must hold by itself: signature, spelling, hashes (``evidence.read``).
2. Judged again as it was then, it gives the recorded verdict; if not, the record or this verifier is not what it was, and
   no answer about another policy is given (``record.verdict``). A verdict that was withheld because the boot contradicted
   earlier ones (``clones``) rests on those as well: without them the evidence must be accepted.
3. Then it is judged under the new policy: as of the record's time, against the same nonce, device and expectations.
4. A device fails if it was accepted then and is not now, or is no longer proven at the demanded root of trust. One whose
   verdict was withheld fails still: no policy says which of two devices it was.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from attestation import evidence
from attestation.errors import Code, Reject
from attestation.evidence import Record
from attestation.keys import PublicKey
from attestation.policy import AttestationPolicySpec
from attestation.verdict import Verdict
from attestation.verifier import verify

_WITHHELD: Final = frozenset({Code.CLONE_BOOTCOUNT, Code.CLONE_SEED})
"""Codes of verdicts that the verifier accepted and its caller did not."""


class Outcome(StrEnum):
    """What the new policy means for a device."""

    HOLDS = "holds"
    """Accepted then, accepted now."""
    FAILS = "fails"
    """Accepted or proven then, not now."""
    MENDS = "mends"
    """Rejected or unproven then, proven now."""
    STILL_FAILS = "still fails"
    """Rejected then and now."""
    UNREADABLE = "unreadable"
    """The record does not hold (rules 1 and 2)."""


@dataclass(frozen=True, slots=True)
class Reappraisal:
    """One record under the new policy.

    Args:
        outcome: what it means.
        code, message: why not, empty where it holds.
        record: what was judged; None where it could not be read.
        verdict: under the new policy; None where none was given.
    """

    outcome: Outcome
    code: str = ""
    message: str = ""
    record: Record | None = None
    verdict: Verdict | None = None

    @classmethod
    def unreadable(cls, reject: Reject, record: Record | None = None) -> "Reappraisal":
        """Of a record that does not hold."""
        return cls(Outcome.UNREADABLE, reject.code.value, reject.message, record)


def reappraise(
    envelope: bytes, accepted: Iterable[PublicKey], policy: AttestationPolicySpec, *, policy_only: bool = False
) -> Reappraisal:
    """Rules 1 to 4 for one record. Never raises: a record that does not hold is an outcome.

    Args:
        envelope: the record as stored.
        accepted: keys that may have signed it.
        policy: the new policy.
        policy_only: applications count only if the new policy names them.
    """
    try:
        record = evidence.read(envelope, accepted)
    except Reject as reject:
        return Reappraisal.unreadable(reject)
    try:
        then = verify(record.evidence, record.as_judged())
        now = verify(record.evidence, record.as_judged(policy, policy_only=policy_only))
    except Reject as reject:
        return Reappraisal.unreadable(reject, record)
    said = record.verdict
    if then.accepted and said.code in _WITHHELD:
        if now.accepted:
            return Reappraisal(Outcome.STILL_FAILS, said.code or "", said.message, record, now)
    elif (then.accepted, then.proven_at_tier, then.code) != (said.accepted, said.proven_at_tier, said.code):
        message = (
            f"judged again as then: {then.code or 'accepted'}; recorded: {said.code or 'accepted'} ({record.verifier})"
        )
        return Reappraisal(Outcome.UNREADABLE, Code.RECORD_VERDICT.value, message, record)
    worse = (said.accepted and not now.accepted) or (said.proven_at_tier and not now.proven_at_tier)
    better = (now.accepted and not said.accepted) or (now.proven_at_tier and not said.proven_at_tier)
    if worse:
        outcome = Outcome.FAILS
    elif better:
        outcome = Outcome.MENDS
    else:
        outcome = Outcome.HOLDS if now.accepted else Outcome.STILL_FAILS
    why = "; ".join(f"not proven: {item}" for item in now.unproven) if now.accepted and not now.proven_at_tier else ""
    return Reappraisal(outcome, now.code.value if now.code else "", why if now.accepted else now.message, record, now)
