# SPDX-License-Identifier: Apache-2.0
"""The judge: permit, evidence, confirm, revert. Pure: no HTTP, no cluster, no clock, no randomness of its own.

The permit's own rules are carried out in permit.py, the revert's in revert.py; what all rest on is in appraisal.py and
ruling.py.

It holds no state. What must be remembered is in the task's report; each ruling says what to add to it, and the caller
writes that with a resourceVersion precondition *before* it answers, and asks again when somebody else wrote first. That
write is what makes a nonce good once.

Rules (tests name them):

 1. An attempt that has its verdict, or whose task is over, is not judged again: what comes is a replay.
 2. No permit while the caller says that the task is held: job paused or deleted, device suspended or quarantined.
 3. Before the first byte the device proves its identity over the `before` nonce; `Known` also wants an acceptable
    application. A boot that contradicts one seen before (attestation.clones) proves none; nor does one below a boot that
    was seen since its nonce was issued, and that is asked anew. Only `before: None`, or a serial device that fell silent
    after an earlier permit of this task, goes without: then the fence comes from the Lease alone. An attempt that has its
    permit already did so before.
 4. A device that proves the target, slot VALID, before any permit of this task, is not written: AlreadyRunning. Here and
    below the target is the artifact's measurement, under the partition table that the artifact names, where it names one.
 5. A device that proves the target under a grant id of this task is not written again: Resume.
 6. The release statement has the pinned digest and speaks of exactly this application, version, chip and measurement.
 7. No sequence below the confirmed one without leave; no secure_version below the eFuse's or the floor; none above the
    eFuse's without leave, because confirming burns it.
 8. The grant id is drawn once per attempt; a later permit of that attempt repeats id and fence over a new device nonce.
    fence = max(transitions of the device's Lease, fence stored in the device + 1).
 9. Evidence after the write: the target's measurement, a boot id that is a grant id of this task, the target's partition
    table, security version not below the floor, slot PENDING or VALID. It earns a confirm grant that carries a second
    nonce, and nothing more.
10. The second nonce is derived from the first (docs/decisions/0004): the same evidence again earns the same nonce.
11. Only evidence over the second nonce, slot VALID, is a success; its verdict consumes both nonces.
12. A root of trust below the policy's minimum is recorded as BelowPolicy, whatever else was proven.
13. What time alone explains (an expired nonce, a slot still PENDING, a reset before the confirm) leaves no verdict: the
    attempt failed and may be made again. Every other rejection of evidence is a verdict.
14. A delta is granted only from the measurement that was attested just before; else the grant is for the image. What the
    device makes of it is judged like any image: by the result.
15. Evidence after the write that holds in every other rule and shows the very installation (measurement and boot id)
    that the device proved before a write of this task convicts nobody: its first boot of the image failed, and its
    bootloader went back. The attempt failed with WentBack, without a verdict, and may be made again. Anything else that
    is not the target, and a device that proved nothing before, stays a verdict (rule 13;
    docs/decisions/0013).
16. A revert is granted to the attempt alone whose recorded verdict rejects an installation of this task: by its boot id,
    with a fence no lower than any permit's, and only where the device had proved before the write what it goes back to.
    So never after a success, and never for what somebody else installed. It changes no verdict.
"""

from typing import Final

from attestation import grants, nonce
from attestation.eat import SlotState
from attestation.errors import Code
from attestation.statement import Digest
from flashjob.wire.gateway import (
    ConfirmRequest,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    Outcome,
    Purpose,
    VerdictReply,
)
from flashjob.wire.reasons import Reason

from .appraisal import (
    VALID,
    answered_nonce,
    appraised,
    as_installed,
    audience,
    claims_of,
    context,
    gone_back,
    issued_at,
    reason_of,
    said_by,
    success,
)
from .case import Case, Keys, nonce_mark
from .permit import permit
from .revert import revert
from .ruling import NOTHING, Addition, Judged, Refused, rejection, require_open

__all__ = ["confirm", "first_evidence", "issue_nonce", "permit", "revert"]

_CONFIRM: Final = "confirm"
_NOT_INSTALLED: Final = frozenset({Reason.MEASUREMENT_MISMATCH, Reason.BOOT_ID_MISMATCH})
_NONCE_RANDOM: Final = slice(6, 6 + nonce.RANDOM_SIZE)


def issue_nonce(case: Case, purpose: Purpose, keys: Keys, *, now: int, random: bytes) -> NonceReply:
    """A fresh nonce for this attempt and purpose.

    Args:
        case: the attempt.
        purpose: before or after the write.
        keys: the gateway's keys.
        now: Unix time in seconds.
        random: 10 fresh random bytes.

    Raises:
        Refused: rule 1.
    """
    require_open(case)
    ttl = case.subject.policy.nonce_ttl_seconds
    value = nonce.issue(keys.ring, case.subject.id, audience(case, purpose), now=now, ttl=ttl, random=random)
    return NonceReply(nonce=value, ttl_seconds=ttl)


def first_evidence(case: Case, request: EvidenceRequest, keys: Keys, *, now: int) -> tuple[EvidenceReply, Addition]:
    """Judge the evidence after the reboot (rules 9, 10, 13); on accept it earns a confirm grant.

    Args:
        case: the attempt.
        request: the evidence over the `after` nonce, and the device's confirm nonce.
        keys: the gateway's keys.
        now: Unix time in seconds.

    Returns:
        (reply, what to record: nothing yet).

    Raises:
        Refused: with the verdict in `addition` unless time alone explains it.
    """
    require_open(case)
    judged = as_installed(case, request.evidence, keys, Purpose.AFTER, now)
    verdict = judged.verdict
    if not verdict.accepted:
        raise _rejected(case, judged, keys)
    claims, answered = claims_of(verdict), answered_nonce(verdict)
    if nonce_mark(answered) in case.used_nonces:
        raise Refused(Reason.EVIDENCE_REPLAYED, "the evidence after the write was used before")
    second = _second_nonce(case, answered, keys)
    if claims.slot_state is SlotState.VALID:
        return EvidenceReply(second_nonce=second), NOTHING
    record = next(p for p in case.permits if bytes.fromhex(p.grant_id) == claims.boot_id)
    grant = grants.ConfirmGrant(
        ueid=case.subject.id,
        device_nonce=request.device_nonce,
        grant_id=claims.boot_id,
        fence=max(record.fence, claims.stored_fence),
        result=Digest.model_validate({"alg": claims.measurement.alg, "value": claims.measurement.value}),
        second_nonce=second,
    )
    return EvidenceReply(confirm_grant=grants.mint(grant, keys.grant), second_nonce=second), NOTHING


def confirm(case: Case, request: ConfirmRequest, keys: Keys, *, now: int) -> tuple[VerdictReply, Addition]:
    """Judge the evidence over the second nonce (rules 11, 12): the only way to a success.

    Args:
        case: the attempt.
        request: the evidence.
        keys: the gateway's keys.
        now: Unix time in seconds.

    Returns:
        (reply, the verdict and both consumed nonces, to be recorded before the reply leaves).

    Raises:
        Refused: with the verdict in `addition` unless time alone explains it.
    """
    require_open(case)
    judged = appraised(
        request.evidence,
        context(case, keys, _CONFIRM, now, expected=case.wanted, boot_ids=case.grant_ids, slot_states=VALID),
        keys,
    )
    verdict = judged.verdict
    if not verdict.accepted:
        raise _not_confirmed(judged)
    answered = answered_nonce(verdict)
    marks = (answered[_NONCE_RANDOM].hex(), nonce_mark(answered))
    if case.used_nonces.intersection(marks):
        raise Refused(Reason.EVIDENCE_REPLAYED, "the confirming evidence was used before")
    finding = success(case, judged, Outcome.PROVEN, Reason.PROVEN)
    reply = VerdictReply(outcome=finding.outcome, reason=str(finding.reason), message=finding.message)
    return reply, Addition(used_nonces=marks, finding=finding)


def _second_nonce(case: Case, first: bytes, keys: Keys) -> bytes:
    """Rule 10."""
    ttl, random = case.subject.policy.nonce_ttl_seconds, bytes.fromhex(nonce_mark(first))
    bound = audience(case, _CONFIRM)
    return nonce.issue(keys.ring, case.subject.id, bound, now=issued_at(case, first), ttl=ttl, random=random)


def _rejected(case: Case, judged: Judged, keys: Keys) -> Refused:
    """Rules 13 and 15."""
    verdict = judged.verdict
    said = f"after the write: {said_by(verdict)}"
    if verdict.code is Code.NONCE_EXPIRED:
        return Refused(Reason.ATTEST_TIMEOUT, said, retryable=True)
    if reason_of(verdict) in _NOT_INSTALLED:
        found = gone_back(case, judged.evidence, keys, judged.context.now)
        if found is not None:
            return Refused(
                Reason.WENT_BACK, f"after the write it runs {found.application} {found.version} again, as before"
            )
    return rejection(reason_of(verdict), said, judged)


def _not_confirmed(judged: Judged) -> Refused:
    """Rule 13 at the confirm: the first evidence was right, so an old image now means that the device reset."""
    verdict = judged.verdict
    said = f"at the confirm: {said_by(verdict)}"
    if verdict.code in (Code.SLOT_STATE, Code.NONCE_EXPIRED):
        return Refused(Reason.CONFIRM_TIMEOUT, said)
    if reason_of(verdict) in _NOT_INSTALLED:
        return Refused(Reason.RESET_BEFORE_CONFIRM, said)
    return rejection(reason_of(verdict), said, judged)
