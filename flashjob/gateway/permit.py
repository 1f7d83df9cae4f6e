# SPDX-License-Identifier: Apache-2.0
"""The permit: whether the first byte may be written. Rules 1 to 8 and 14 of judge.py. Pure."""

import hashlib
from dataclasses import replace

from attestation import clones, grants, release, verifier
from attestation.errors import Code, Reject
from attestation.statement import Digest
from flashjob.wire.gateway import DeltaOffer, Outcome, PermitDecision, PermitReply, PermitRequest, Purpose
from flashjob.wire.pod import Before, TransportKind
from flashjob.wire.reasons import Reason

from .appraisal import (
    answered_nonce,
    appraised,
    as_installed,
    as_target,
    claims_of,
    context,
    issued_at,
    said_by,
    success,
)
from .case import Case, Installation, Keys, PermitRecord, as_measurement, nonce_mark
from .ruling import Addition, Refused, rejection, require_open


def permit(
    case: Case, request: PermitRequest, keys: Keys, *, now: int, at: str, random: bytes
) -> tuple[PermitReply, Addition]:
    """Decide whether the first byte may be written (rules 1 to 8 and 14).

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
    require_open(case)
    if case.held is not None:
        raise Refused(*case.held)
    seen: verifier.DeviceClaims | None = None
    marks: tuple[str, ...] = ()
    if request.evidence is None:
        _may_go_unseen(case)
    else:
        verdict = _identity(case, request.evidence, keys, now)
        seen, mark = claims_of(verdict), nonce_mark(answered_nonce(verdict))
        if mark in case.used_nonces and case.permit is None:
            raise Refused(Reason.EVIDENCE_REPLAYED, "the evidence before the write was used before")
        marks = () if mark in case.used_nonces else (mark,)
        if case.permits:
            resumed = as_installed(case, request.evidence, keys, Purpose.BEFORE, now)
            if resumed.verdict.accepted:
                return _resume(case, claims_of(resumed.verdict)), Addition(used_nonces=marks)
        else:
            running = as_target(case, request.evidence, keys, now)
            if running.verdict.accepted:
                finding = success(case, running, Outcome.ALREADY_RUNNING, Reason.ALREADY_RUNNING)
                return PermitReply(decision=PermitDecision.ALREADY_RUNNING), Addition(None, marks, finding)
    _release(case, request.release)
    _versions(case, seen)
    record = case.permit or PermitRecord(
        attempt=case.attempt,
        grant_id=random.hex(),
        fence=max(case.lease_transitions, seen.stored_fence + 1 if seen else 0),
        at=at,
        before=Installation(seen.measurement, seen.boot_id) if seen else None,
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


def _identity(case: Case, evidence: bytes, keys: Keys, now: int) -> verifier.Verdict:
    known = case.before is Before.KNOWN
    judged = appraised(evidence, context(case, keys, Purpose.BEFORE, now, any_application=not known), keys)
    verdict = judged.verdict
    if verdict.accepted:
        asked_at = issued_at(case, answered_nonce(verdict))
        twins = clones.observe(case.subject.boots, verdict, asked_at=asked_at, seen_at=now)
        if twins.alarm is not None:
            said = f"two devices seem to share this identity: {twins.message} ({twins.alarm})"
            withheld = replace(judged, verdict=verdict.refused("clones", Reject(twins.alarm, twins.message)))
            raise rejection(Reason.BEFORE_ATTESTATION_FAILED, f"before the write: {said}", withheld)
        count, newest = claims_of(verdict).boot_count, max((one.boot_count for one in case.subject.boots), default=0)
        if count < newest:  # the nonce is older than that sighting, else it were an alarm
            said = f"the evidence is of boot {count}, and boot {newest} was seen since it was asked for"
            raise Refused(Reason.ATTEST_TIMEOUT, f"before the write: {said}", retryable=True)
        return verdict
    if verdict.code in (Code.EAT_UEID, Code.ANCHOR_ID):
        reason = Reason.WRONG_DEVICE
    elif verdict.code is Code.NONCE_EXPIRED:
        raise Refused(Reason.ATTEST_TIMEOUT, f"before the write: {said_by(verdict)}", retryable=True)
    else:
        reason = Reason.BEFORE_ATTESTATION_FAILED
    raise rejection(reason, f"before the write: {said_by(verdict)}", judged)


def _may_go_unseen(case: Case) -> None:
    serial = case.transport is TransportKind.SERIAL
    if case.permit is not None or (serial and (case.before is Before.NONE or case.permits)):
        return
    raise Refused(Reason.BEFORE_ATTESTATION_FAILED, "the device must prove its identity before the first byte")


def _release(case: Case, data: bytes | None) -> None:
    target = case.target
    if target.release_digest is None:
        if case.transport is TransportKind.NETWORK:
            raise rejection(
                Reason.RELEASE_INVALID, "the artifact has no release statement, and devices on the network want one"
            )
        return
    if data is None or "sha256:" + hashlib.sha256(data).hexdigest() != target.release_digest:
        raise rejection(Reason.RELEASE_INVALID, "the pod did not bring the pinned release statement")
    try:
        said = release.parse(data).content
    except Reject as reject:
        raise rejection(Reason.RELEASE_INVALID, f"the release statement does not read: {reject}") from reject
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
            raise rejection(Reason.RELEASE_INVALID, f"the release statement's {what} is not the artifact's")


def _versions(case: Case, seen: verifier.DeviceClaims | None) -> None:
    target, floors, safety = case.target, case.subject.floors, case.safety
    if target.sequence < floors.sequence and not safety.allow_downgrade:
        raise rejection(
            Reason.DOWNGRADE, f"release sequence {target.sequence}, the device has confirmed {floors.sequence}"
        )
    burnt = seen.token.efuse_secure_version if seen else 0
    floor = max(burnt, floors.security_version)
    if target.secure_version < floor:
        raise rejection(
            Reason.SECURITY_VERSION_ROLLBACK, f"secure_version {target.secure_version} is below the device's {floor}"
        )
    if seen and target.secure_version > burnt and not safety.allow_security_version_burn:
        raise rejection(
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
        raise Refused(Reason.DEVICE_REFUSED, "a permit over the network needs the device's install nonce")
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
