# SPDX-License-Identifier: Apache-2.0
"""Judge evidence against a trust directory, remember the boot, and show the verdict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from attestation import eat
from attestation.anchors import DeviceAnchor, Floors
from attestation.cli.common import Exit, console
from attestation.directory import TrustDirectory
from attestation.errors import Code, Reject
from attestation.evidence import record
from attestation.evidence_store import EvidenceStore, verifier_build
from attestation.policy import AttestationPolicySpec
from attestation.verdict import Context, ExactNonce, Verdict
from attestation.verifier import verify

SUSPENDED_BY = "attest"


def context_for(
    store: TrustDirectory, evidence: bytes, nonce: bytes, *, now: int, policy: AttestationPolicySpec | None = None
) -> Context:
    """What the directory knows of the device that the evidence names.

    Args:
        store: the directory.
        evidence: as received; what cannot be read names no device.
        nonce: what the device was asked with.
        now: Unix seconds.
        policy: judges instead of the device's own.

    Raises:
        Reject: the directory cannot tell.
    """
    device = _named(store, evidence)
    if device is None:
        return Context(device=None, policy=policy, nonce=ExactNonce(nonce), now=now, floors=Floors())
    return Context(
        device=device,
        policy=policy or store.policy(device.policy),
        nonce=ExactNonce(nonce),
        now=now,
        floors=store.floors(device.ueid),
        last_confirmed=frozenset(store.confirmed(device.ueid)),
    )


def judge_live(store: TrustDirectory, evidence: bytes, context: Context, *, asked_at: int) -> Verdict:
    """The verdict on an answer that came just now; a boot that contradicts earlier ones suspends the device.

    Args:
        store: knows the device.
        evidence: the answer.
        context: of the moment after it came.
        asked_at: Unix seconds before its nonce was sent.

    Raises:
        Reject: the directory cannot be used.
    """
    verdict = verify(evidence, context)
    if context.device is None:
        return verdict
    finding = store.observe(verdict, context.device.ueid, asked_at=asked_at, seen_at=context.now, by=SUSPENDED_BY)
    if finding.alarm is None or not verdict.accepted:
        return verdict
    return verdict.refused("clones", Reject(finding.alarm, f"{finding.message}: the device is suspended now"))


def keep(
    store: TrustDirectory,
    folder: Path,
    evidence: bytes,
    context: Context,
    verdict: Verdict,
    *,
    about: Mapping[str, str],
) -> None:
    """A signed record of what the verdict rests on; none where it decided nothing (``evidence.record``). Raises Reject."""
    records = EvidenceStore(folder, create=True)
    payload = record(evidence, context, verdict, verifier=verifier_build(), about=about)
    if payload is not None:
        records.add(payload, store.evidence_key())


def exit_code(verdict: Verdict) -> Exit:
    """What the process ends with."""
    if verdict.accepted:
        return Exit.PROVEN if verdict.proven_at_tier else Exit.UNPROVEN
    return Exit.TRUST if verdict.code is Code.POLICY_MISSING else Exit.REJECTED


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs."""
    claims = verdict.claims
    return {
        "accepted": verdict.accepted,
        "provenAtTier": verdict.proven_at_tier,
        "code": verdict.code,
        "message": verdict.message,
        "tier": verdict.tier,
        "acceptance": verdict.acceptance,
        "unproven": list(verdict.unproven),
        "policyHash": verdict.policy_hash.hex() if verdict.policy_hash else None,
        "evidenceSha256": verdict.evidence_sha256.hex(),
        "device": {
            "id": claims.ueid.hex(),
            "application": claims.application,
            "version": claims.version,
            "measurement": claims.measurement.full,
            "bootloader": claims.bootloader.full,
            "securityVersion": claims.secure_version,
            "bootId": claims.boot_id.hex(),
            "slotState": claims.slot_state.name,
            "mode": claims.mode,
        }
        if claims
        else None,
        "trail": [{"rule": step.rule, "held": step.held, "detail": step.detail} for step in verdict.trail],
    }


def show(verdict: Verdict, *, quiet: bool = False) -> None:
    """The trail and the verdict for people; the verdict alone where `quiet`."""
    out = console(soft_wrap=True)
    for step in () if quiet else verdict.trail:
        mark = Text("ok  ", "green") if step.held else Text("NO  ", "bold red")
        out.print(mark, Text(f"{step.rule:13}"), Text(step.detail), sep="")
    if verdict.proven_at_tier:
        out.print(Text("proven", "bold green"))
    elif verdict.accepted:
        out.print(Text("accepted, not proven", "bold yellow"))
    else:
        doc = verdict.code.doc if verdict.code else ""
        out.print(Text(f"rejected: {verdict.code}: {doc}", "bold red"))
    for item in verdict.unproven:
        out.print(Text(f"not proven: {item}", "yellow"))


def _named(store: TrustDirectory, evidence: bytes) -> DeviceAnchor | None:
    try:
        anchor_id = eat.parse_evidence(evidence).anchor_id
    except Reject:
        return None  # the verifier says what is wrong with it
    return store.by_anchor_id(anchor_id)
