# SPDX-License-Identifier: Apache-2.0
"""The judge: permit, evidence, confirm. Pure: no HTTP, no cluster, no clock, no randomness of its own.

It holds no state. What must be remembered is in the task's report; each ruling says what to add to it, and the caller
writes that with a resourceVersion precondition *before* it answers, and asks again when somebody else wrote first. That
write is what makes a nonce good once.

Rules (tests name them):

 1. An attempt that has its verdict, or whose task is over, is not judged again: what comes is a replay.
 2. No permit while the caller says that the task is held: job paused or deleted, device suspended or quarantined.
 3. Before the first byte the device proves its identity over the `before` nonce; `Known` also wants an acceptable
    application. A boot that contradicts one seen before (attestation.clones) proves none. Only `before: None`, or a
    serial device that fell silent after an earlier permit of this task, goes without: then the fence comes from the
    Lease alone. An attempt that has its permit already did so before.
 4. A device that proves the target, slot VALID, before any permit of this task, is not written: AlreadyRunning.
 5. A device that proves the target under a grant id of this task is not written again: Resume.
 6. The release statement has the pinned digest and speaks of exactly this application, version, chip and measurement.
 7. No sequence below the confirmed one without leave; no secure_version below the eFuse's or the floor; none above the
    eFuse's without leave, because confirming burns it.
 8. The grant id is drawn once per attempt; a later permit of that attempt repeats id and fence over a new device nonce.
    fence = max(transitions of the device's Lease, fence stored in the device + 1).
 9. Evidence after the write: the target's measurement, a boot id that is a grant id of this task, security version not
    below the floor, slot PENDING or VALID. It earns a confirm grant that carries a second nonce, and nothing more.
10. The second nonce is derived from the first (docs/decisions/0004): the same evidence again earns the same nonce.
11. Only evidence over the second nonce, slot VALID, is a success; its verdict consumes both nonces.
12. A root of trust below the policy's minimum is recorded as BelowPolicy, whatever else was proven.
13. What time alone explains (an expired nonce, a slot still PENDING, a reset before the confirm) leaves no verdict: the
    attempt failed and may be made again. Every other rejection of evidence is a verdict.
14. A delta is granted only from the measurement that was attested just before; else the grant is for the image. What the
    device makes of it is judged like any image: by the result.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from attestation import clones, grants, nonce, release, verifier
from attestation.eat import SlotState
from attestation.errors import Code, Reject
from attestation.policy import Measurement
from attestation.statement import Digest
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import (
    ConfirmRequest,
    DeltaOffer,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    Outcome,
    PermitDecision,
    PermitReply,
    PermitRequest,
    Problem,
    Purpose,
    VerdictReply,
)
from flashjob.wire.pod import Before, TransportKind
from flashjob.wire.reasons import Reason

from .case import Case, Keys, PermitRecord, as_measurement, nonce_mark

_INSTALLED: Final = frozenset({SlotState.PENDING, SlotState.VALID})
_VALID: Final = frozenset({SlotState.VALID})
_CONFIRM: Final = "confirm"
_NONCE_RANDOM: Final = slice(6, 6 + nonce.RANDOM_SIZE)
_NONCE_EXPIRY: Final = slice(2, 6)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and all that it rested on."""

    verdict: verifier.Verdict
    evidence: bytes
    context: verifier.Context


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict to be recorded in the task's report; `judged` where there was evidence."""

    outcome: Outcome
    reason: Reason
    message: str
    judged: Judged | None = None

    @property
    def verdict(self) -> verifier.Verdict | None:
        """The verifier's verdict, where there was evidence."""
        return self.judged.verdict if self.judged else None


@dataclass(frozen=True, slots=True)
class Addition:
    """What a ruling adds to the task's report; written before the answer leaves."""

    permit: PermitRecord | None = None
    used_nonces: tuple[str, ...] = ()
    finding: Finding | None = None
    before: tuple[str, str] | None = None
    """Application and version that the device proved before the first byte."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.permit is None and not self.used_nonces and self.finding is None


NOTHING: Final = Addition()


class Refused(FlashJobError):
    """No. `addition` is what must be recorded all the same; `retryable` means that the same attempt may ask again."""

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False, addition: Addition = NOTHING) -> None:
        super().__init__(reason, message, reason.next_step)
        self.retryable = retryable
        self.addition = addition

    @property
    def problem(self) -> Problem:
        """As it goes over the wire."""
        return Problem(
            reason=str(self.reason), message=self.message[:1024], next_step=self.next_step, retryable=self.retryable
        )


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
    _open(case)
    ttl = case.subject.policy.nonce_ttl_seconds
    value = nonce.issue(keys.ring, case.subject.id, _audience(case, purpose), now=now, ttl=ttl, random=random)
    return NonceReply(nonce=value, ttl_seconds=ttl)


def permit(
    case: Case, request: PermitRequest, keys: Keys, *, now: int, at: str, random: bytes
) -> tuple[PermitReply, Addition]:
    """Decide whether the first byte may be written (rules 1 to 8).

    Args:
        case: the attempt.
        request: what the pod brings.
        keys: the gateway's keys.
        now: Unix time in seconds.
        at: the same moment as RFC 3339, for the record.
        random: 16 fresh random bytes, the grant id if one is drawn.

    Returns:
        (reply, what to record before it is sent).

    Raises:
        Refused: see the rules; `addition` holds the verdict where the refusal is one.
    """
    _open(case)
    if case.held is not None:
        raise Refused(*case.held, retryable=case.held[0] is Reason.PAUSED)
    seen: verifier.DeviceClaims | None = None
    marks: tuple[str, ...] = ()
    if request.evidence is None:
        _may_go_unseen(case)
    else:
        verdict = _identity(case, request.evidence, keys, now)
        seen, mark = _claims(verdict), nonce_mark(_answered(verdict))
        if mark in case.used_nonces and case.permit is None:
            raise Refused(Reason.EVIDENCE_REPLAYED, "the evidence before the write was used before")
        marks = () if mark in case.used_nonces else (mark,)
        if case.permits:
            resumed = _as_installed(case, request.evidence, keys, Purpose.BEFORE, now)
            if resumed.verdict.accepted:
                return _resume(case, _claims(resumed.verdict)), Addition(used_nonces=marks)
        else:
            running = _as_target(case, request.evidence, keys, now)
            if running.verdict.accepted:
                finding = _success(running, Outcome.ALREADY_RUNNING, Reason.ALREADY_RUNNING)
                return PermitReply(decision=PermitDecision.ALREADY_RUNNING), Addition(None, marks, finding)
    _release(case, request.release)
    _versions(case, seen)
    record = case.permit or PermitRecord(
        attempt=case.attempt,
        grant_id=random.hex(),
        fence=max(case.lease_transitions, seen.stored_fence + 1 if seen else 0),
        at=at,
    )
    delta = _delta(request, seen)
    reply = PermitReply(
        decision=PermitDecision.WRITE,
        grant_id=record.grant_id,
        fence=record.fence,
        write_seconds=case.timeouts.write_seconds,
        install_grant=(
            _install_grant(case, record, request, keys, delta) if case.transport is TransportKind.NETWORK else None
        ),
        delta=delta is not None,
    )
    ran = (seen.application, seen.version) if seen and not case.permits else None
    return reply, Addition(permit=None if case.permit else record, used_nonces=marks, before=ran)


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
    _open(case)
    judged = _as_installed(case, request.evidence, keys, Purpose.AFTER, now)
    verdict = judged.verdict
    if not verdict.accepted:
        raise _rejected(judged)
    claims, answered = _claims(verdict), _answered(verdict)
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
    _open(case)
    judged = _judged(
        request.evidence,
        _context(case, keys, _CONFIRM, now, expected=case.wanted, boot_ids=case.grant_ids, slot_states=_VALID),
        keys,
    )
    verdict = judged.verdict
    if not verdict.accepted:
        raise _not_confirmed(judged)
    answered = _answered(verdict)
    marks = (answered[_NONCE_RANDOM].hex(), nonce_mark(answered))
    if case.used_nonces.intersection(marks):
        raise Refused(Reason.EVIDENCE_REPLAYED, "the confirming evidence was used before")
    finding = _success(judged, Outcome.PROVEN, Reason.PROVEN)
    reply = VerdictReply(outcome=finding.outcome, reason=str(finding.reason), message=finding.message)
    return reply, Addition(used_nonces=marks, finding=finding)


def _open(case: Case) -> None:
    if case.judged:
        raise Refused(Reason.EVIDENCE_REPLAYED, f"attempt {case.attempt} of {case.task} has been judged already")


def _audience(case: Case, purpose: str) -> bytes:
    return case.audience + b"/" + purpose.encode()


def _context(
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
    subject = case.subject
    return verifier.Context(
        device=subject.device,
        policy=subject.policy,
        nonce=verifier.IssuedNonce(keys.ring, _audience(case, purpose)),
        now=now,
        floors=subject.floors,
        last_confirmed=subject.confirmed,
        pinned=subject.pinned | case.wanted,
        any_application=any_application,
        expected=expected,
        boot_ids=boot_ids,
        slot_states=slot_states,
    )


def _judged(evidence: bytes, context: verifier.Context, keys: Keys) -> Judged:
    return Judged(verifier.verify(evidence, context, chains=keys.chains), evidence, context)


def _identity(case: Case, evidence: bytes, keys: Keys, now: int) -> verifier.Verdict:
    known = case.before is Before.KNOWN
    judged = _judged(evidence, _context(case, keys, Purpose.BEFORE, now, any_application=not known), keys)
    verdict = judged.verdict
    if verdict.accepted:
        twins = clones.observe(case.subject.boots, verdict, asked_at=_issued(case, _answered(verdict)))
        if twins.alarm is not None:
            said = f"two devices seem to share this identity: {twins.message} ({twins.alarm})"
            raise _final(Reason.BEFORE_ATTESTATION_FAILED, f"before the write: {said}")
        return verdict
    if verdict.code in (Code.EAT_UEID, Code.ANCHOR_ID):
        reason = Reason.WRONG_DEVICE
    elif verdict.code in (Code.NONCE_EXPIRED, Code.NONCE_KEY):
        raise Refused(Reason.ATTEST_TIMEOUT, f"before the write: {_said(verdict)}", retryable=True)
    else:
        reason = Reason.BEFORE_ATTESTATION_FAILED
    raise _final(reason, f"before the write: {_said(verdict)}", judged)


def _as_target(case: Case, evidence: bytes, keys: Keys, now: int) -> Judged:
    return _judged(evidence, _context(case, keys, Purpose.BEFORE, now, expected=case.wanted, slot_states=_VALID), keys)


def _as_installed(case: Case, evidence: bytes, keys: Keys, purpose: Purpose, now: int) -> Judged:
    return _judged(
        evidence,
        _context(case, keys, purpose, now, expected=case.wanted, boot_ids=case.grant_ids, slot_states=_INSTALLED),
        keys,
    )


def _may_go_unseen(case: Case) -> None:
    serial = case.transport is TransportKind.SERIAL
    if case.permit is not None or (serial and (case.before is Before.NONE or case.permits)):
        return
    raise Refused(
        Reason.BEFORE_ATTESTATION_FAILED, "the device must prove its identity before the first byte", retryable=True
    )


def _release(case: Case, data: bytes | None) -> None:
    target = case.target
    if target.release_digest is None:
        if case.transport is TransportKind.NETWORK:
            raise _final(
                Reason.RELEASE_INVALID, "the artifact has no release statement, and devices on the network want one"
            )
        return
    if data is None or "sha256:" + hashlib.sha256(data).hexdigest() != target.release_digest:
        raise _final(Reason.RELEASE_INVALID, "the pod did not bring the pinned release statement")
    try:
        said = release.parse(data).content
    except Reject as reject:
        raise _final(Reason.RELEASE_INVALID, f"the release statement does not read: {reject}") from reject
    stated = {(m.alg, m.value) for m in said.measurements}
    pairs = (
        ("application", said.name, target.application),
        ("version", said.version, target.version),
        ("chip id", said.chip_id, target.chip_id),
        ("secure_version", said.secure_version, target.secure_version),
        ("sequence", said.sequence, target.sequence),
        ("image size", said.image_size, target.image_size),
        ("measurement", True, stated == {(m.alg, m.value) for m in case.wanted}),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise _final(Reason.RELEASE_INVALID, f"the release statement's {what} is not the artifact's")


def _versions(case: Case, seen: verifier.DeviceClaims | None) -> None:
    target, floors, safety = case.target, case.subject.floors, case.safety
    if target.sequence < floors.sequence and not safety.allow_downgrade:
        raise _final(
            Reason.DOWNGRADE, f"release sequence {target.sequence}, the device has confirmed {floors.sequence}"
        )
    burnt = seen.token.efuse_secure_version if seen else 0
    floor = max(burnt, floors.security_version)
    if target.secure_version < floor:
        raise _final(
            Reason.SECURITY_VERSION_ROLLBACK, f"secure_version {target.secure_version} is below the device's {floor}"
        )
    if seen and target.secure_version > burnt and not safety.allow_security_version_burn:
        raise _final(
            Reason.SECURITY_VERSION_BURN,
            f"secure_version {target.secure_version} would burn the eFuse counter, now {burnt}",
        )


def _delta(request: PermitRequest, seen: verifier.DeviceClaims | None) -> DeltaOffer | None:
    """Rule 14."""
    offer = request.delta
    return offer if offer is not None and seen is not None and as_measurement(offer.base) == seen.measurement else None


def _install_grant(
    case: Case, record: PermitRecord, request: PermitRequest, keys: Keys, delta: DeltaOffer | None
) -> bytes:
    if request.device_nonce is None or request.release is None:
        raise Refused(
            Reason.DEVICE_REFUSED, "a permit over the network needs the device's install nonce", retryable=True
        )
    target = case.target
    # Devices compare with their own hash of the slot, and SHA-256 is the one that every bootloader has.
    result = min(case.wanted, key=lambda m: len(m.value))
    grant = grants.InstallGrant(
        ueid=case.subject.id,
        device_nonce=request.device_nonce,
        grant_id=bytes.fromhex(record.grant_id),
        fence=record.fence,
        result=Digest.model_validate({"alg": result.alg, "value": result.value}),
        payload_sha256=bytes.fromhex(delta.sha256 if delta else target.image_digest.removeprefix("sha256:")),
        payload_size=delta.size if delta else target.image_size,
        payload_format=grants.PayloadFormat.ESP_DELTA if delta else grants.PayloadFormat.RAW,
        base=(
            Digest.model_validate({"alg": delta.base.alg, "value": bytes.fromhex(delta.base.value)}) if delta else None
        ),
        release=request.release,
        confirm_seconds=case.timeouts.confirm_seconds,
        allow_downgrade=True if case.safety.allow_downgrade else None,
    )
    return grants.mint(grant, keys.grant)


def _resume(case: Case, claims: verifier.DeviceClaims) -> PermitReply:
    record = next(p for p in case.permits if bytes.fromhex(p.grant_id) == claims.boot_id)
    return PermitReply(decision=PermitDecision.RESUME, grant_id=record.grant_id, fence=record.fence)


def _second_nonce(case: Case, first: bytes, keys: Keys) -> bytes:
    issued, ttl, random = _issued(case, first), case.subject.policy.nonce_ttl_seconds, bytes.fromhex(nonce_mark(first))
    return nonce.issue(keys.ring, case.subject.id, _audience(case, _CONFIRM), now=issued, ttl=ttl, random=random)


def _issued(case: Case, answered: bytes) -> int:
    """When a nonce of ours was issued, Unix seconds."""
    return int.from_bytes(answered[_NONCE_EXPIRY], "big") - case.subject.policy.nonce_ttl_seconds


def _success(judged: Judged, outcome: Outcome, reason: Reason) -> Finding:
    if judged.verdict.proven_at_tier:
        return Finding(outcome, reason, reason.meaning, judged)
    missing = "; ".join(judged.verdict.unproven)
    return Finding(Outcome.BELOW_POLICY, Reason.ROOT_OF_TRUST_TOO_LOW, f"not proven: {missing}", judged)


def _rejected(judged: Judged) -> Refused:
    verdict = judged.verdict
    if verdict.code is Code.NONCE_EXPIRED:
        return Refused(Reason.ATTEST_TIMEOUT, f"after the write: {_said(verdict)}", retryable=True)
    return _final(_reason(verdict), f"after the write: {_said(verdict)}", judged)


def _not_confirmed(judged: Judged) -> Refused:
    """Rule 13 at the confirm: the first evidence was right, so an old image now means that the device reset."""
    verdict = judged.verdict
    said = f"at the confirm: {_said(verdict)}"
    if verdict.code in (Code.SLOT_STATE, Code.NONCE_EXPIRED):
        return Refused(Reason.CONFIRM_TIMEOUT, said)
    if _reason(verdict) in (Reason.MEASUREMENT_MISMATCH, Reason.BOOT_ID_MISMATCH):
        return Refused(Reason.RESET_BEFORE_CONFIRM, said)
    return _final(_reason(verdict), said, judged)


def _reason(verdict: verifier.Verdict) -> Reason:
    code, rule = verdict.code, verdict.trail[-1].rule
    if code is Code.REF_CODE and rule == "application":
        return Reason.MEASUREMENT_MISMATCH
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


def _final(reason: Reason, message: str, judged: Judged | None = None) -> Refused:
    return Refused(reason, message, addition=Addition(finding=Finding(Outcome.REJECTED, reason, message, judged)))


def _said(verdict: verifier.Verdict) -> str:
    return f"{verdict.message} ({verdict.code})"


def _claims(verdict: verifier.Verdict) -> verifier.DeviceClaims:
    if verdict.claims is None:
        raise ValueError("an accepted verdict has claims")
    return verdict.claims


def _answered(verdict: verifier.Verdict) -> bytes:
    if verdict.nonce is None:
        raise ValueError("an accepted verdict has its nonce")
    return verdict.nonce
