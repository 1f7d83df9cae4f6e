# SPDX-License-Identifier: Apache-2.0
"""Evidence put before the verifier with what a case demands of it, and its codes told as reasons. Pure."""

from typing import Final

from attestation import verifier
from attestation.eat import SlotState
from attestation.errors import Code
from attestation.policy import Measurement
from flashjob.wire.gateway import Outcome, Purpose
from flashjob.wire.pod import Before, Data
from flashjob.wire.reasons import Reason

from .case import Case, Installation, Keys
from .ruling import Finding, Judged

VALID: Final = frozenset({SlotState.VALID})
_INSTALLED: Final = frozenset({SlotState.PENDING, SlotState.VALID})
_NONCE_EXPIRY: Final = slice(2, 6)


def audience(case: Case, purpose: str) -> bytes:
    """What a nonce of this purpose is bound to."""
    return case.audience + b"/" + purpose.encode()


def context(
    case: Case,
    keys: Keys,
    purpose: str,
    now: int,
    *,
    any_application: bool = False,
    expected: frozenset[Measurement] | None = None,
    boot_ids: frozenset[bytes] | None = None,
    slot_states: frozenset[SlotState] | None = None,
) -> verifier.Context:
    """What the verifier judges by: the case's subject, and what is demanded beyond."""
    subject = case.subject
    return verifier.Context(
        device=subject.device,
        policy=subject.policy,
        nonce=verifier.IssuedNonce(keys.ring, audience(case, purpose)),
        now=now,
        floors=subject.floors,
        last_confirmed=subject.confirmed,
        pinned=subject.pinned | case.wanted,
        any_application=any_application,
        expected=expected,
        boot_ids=boot_ids,
        slot_states=slot_states,
        data_images={} if expected is None else case.data_images,
        partition_table=None if expected is None else case.partition_table,
    )


def appraised(evidence: bytes, given: verifier.Context, keys: Keys) -> Judged:
    """The verifier's verdict in this context."""
    return Judged(verifier.verify(evidence, given, chains=keys.chains), evidence, given)


def as_target(case: Case, evidence: bytes, keys: Keys, now: int) -> Judged:
    """Whether the device runs the target, VALID, before a write; whose installation it is does not matter."""
    return appraised(evidence, context(case, keys, Purpose.BEFORE, now, expected=case.wanted, slot_states=VALID), keys)


def as_installed(case: Case, evidence: bytes, keys: Keys, purpose: Purpose, now: int) -> Judged:
    """Whether the device runs the target by an installation of this task."""
    return appraised(
        evidence,
        context(case, keys, purpose, now, expected=case.wanted, boot_ids=case.grant_ids, slot_states=_INSTALLED),
        keys,
    )


def gone_back(case: Case, evidence: bytes, keys: Keys, now: int) -> verifier.DeviceClaims | None:
    """Rule 15 of judge.py: the claims of a device that after the write runs what it ran before it; None of any other."""
    unknown = case.before is not Before.KNOWN
    verdict = appraised(evidence, context(case, keys, Purpose.AFTER, now, any_application=unknown), keys).verdict
    if not verdict.accepted:
        return None
    claims = claims_of(verdict)
    return claims if Installation(claims.measurement, claims.boot_id) in case.ran else None


def issued_at(case: Case, answered: bytes) -> int:
    """When a nonce of ours was issued, Unix seconds."""
    return int.from_bytes(answered[_NONCE_EXPIRY], "big") - case.subject.policy.nonce_ttl_seconds


def success(case: Case, judged: Judged, outcome: Outcome, reason: Reason) -> Finding:
    """Rule 12 of judge.py: the finding, unless the root of trust is too low. A wipe that was asked for stays unproven."""
    beyond: tuple[str, ...] = ()
    if case.safety.data is Data.WIPE:
        beyond = ("that its data was wiped" if case.permits else "a wipe of its data: nothing was written",)
    if judged.verdict.proven_at_tier:
        return Finding(outcome, reason, reason.meaning, judged, beyond)
    missing = "; ".join(judged.verdict.unproven)
    return Finding(Outcome.BELOW_POLICY, Reason.ROOT_OF_TRUST_TOO_LOW, f"not proven: {missing}", judged, beyond)


def reason_of(verdict: verifier.Verdict) -> Reason:
    """The reason of a verdict that does not accept."""
    code, rule = verdict.code, verdict.trail[-1].rule
    if code is Code.REF_CODE and rule == "application":
        return Reason.MEASUREMENT_MISMATCH
    if code is Code.REF_PARTITIONS and rule == "installation":
        return Reason.PARTITION_MISMATCH
    if code in _REASONS:
        return _REASONS[code]
    return Reason.POLICY_REJECTED if rule in _POLICY_RULES else Reason.EVIDENCE_INVALID


_POLICY_RULES: Final = frozenset({"boot", "bootloader", "application", "versions", "counter", "slot", "data"})
_REASONS: Final = {
    Code.BOOT_ID: Reason.BOOT_ID_MISMATCH,
    Code.EAT_UEID: Reason.EVIDENCE_OF_ANOTHER_DEVICE,
    Code.ANCHOR_ID: Reason.EVIDENCE_OF_ANOTHER_DEVICE,
    Code.NONCE_MAC: Reason.EVIDENCE_REPLAYED,
    Code.NONCE_KEY: Reason.EVIDENCE_REPLAYED,
    Code.NONCE_FUTURE: Reason.EVIDENCE_REPLAYED,
    Code.NONCE_STRUCTURE: Reason.EVIDENCE_REPLAYED,
    Code.ROLLBACK: Reason.SECURITY_VERSION_ROLLBACK,
    Code.DEVICE_SUSPENDED: Reason.SUSPENDED,
    Code.DEVICE_REVOKED: Reason.SUSPENDED,
    Code.DEVICE_UNKNOWN: Reason.DEVICE_NOT_ENROLLED,
    Code.POLICY_MISSING: Reason.POLICY_MISSING,
}


def said_by(verdict: verifier.Verdict) -> str:
    """Message and code."""
    return f"{verdict.message} ({verdict.code})"


def claims_of(verdict: verifier.Verdict) -> verifier.DeviceClaims:
    """The claims of a verdict that accepts."""
    if verdict.claims is None:
        raise ValueError("an accepted verdict has claims")
    return verdict.claims


def answered_nonce(verdict: verifier.Verdict) -> bytes:
    """The nonce that a verdict that accepts is about."""
    if verdict.nonce is None:
        raise ValueError("an accepted verdict has its nonce")
    return verdict.nonce
