# SPDX-License-Identifier: Apache-2.0
"""One result: from what a relying party hands in to a signed EAR. Knows no HTTP; blocks on files, so run it in a thread.

Rules, in this order (tests name them):

1. The verifier's rules decide, against the device's own policy and its last confirmed measurement.
2. The nonce that was answered is the one that the relying party names (``eat.nonce``): a result is never about another.
3. A boot that contradicts earlier ones suspends the device, and withholds this result too (``clones``). A boot seen again
   is remembered in memory only: no write to a disk per result.
4. Where used nonces are kept in memory, a nonce issued before this process began is refused: it may have been used.
5. An accepted verdict uses its nonce up. If that cannot be told, there is no result (``store.unavailable``).
6. Where evidence records and an audit log are kept, both are written before the result leaves.

Floors are read here, never raised: that is for whoever confirms an update.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from attestation import clones, ear, evidence
from attestation.anchors import Floors
from attestation.clones import Sighting
from attestation.ear import Verifier
from attestation.errors import Code, Reject
from attestation.evidence_store import EvidenceStore
from attestation.keys import PrivateKey
from attestation.replay import SingleUse
from attestation.service.audit import AuditLog, line_of
from attestation.service.keyring import ServiceKeys
from attestation.service.problems import Problem, Refused
from attestation.service.trust import Enrolled, LiveTrust
from attestation.verdict import SINGLE_USE, Context, IssuedNonce, Verdict
from attestation.verifier import ChainCache, consumed, verify

SUSPENDED_BY: Final = "attest serve"
NO_POLICY: Final = "none"


@dataclass(frozen=True, slots=True)
class Question:
    """What a relying party wants to know.

    Args:
        ueid: the device that it asked.
        audience: what for; part of the nonce.
        nonce: what it asked with.
    """

    ueid: bytes
    audience: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """A signed result, and the verdict that is in it."""

    ear: bytes
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Records:
    """Where evidence records go, and who signs them."""

    store: EvidenceStore
    key: PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Makes results.

    Args:
        trust: devices and policies.
        single_use: used nonces.
        chains: chains verified before.
        verifier: who appraises.
        clock: Unix time in seconds.
        began: rule 4; None where used nonces outlive this process.
        records, audit: rule 6; None keeps none.
    """

    trust: LiveTrust
    single_use: SingleUse
    chains: ChainCache
    verifier: Verifier
    clock: Callable[[], float]
    began: int | None = None
    records: Records | None = None
    audit: AuditLog | None = None

    def result(self, question: Question, data: bytes, keys: ServiceKeys) -> Result:
        """Judge evidence.

        Args:
            question: what was asked.
            data: the evidence as received.
            keys: of the service.

        Raises:
            Reject: a store cannot tell.
            Refused: ``records.unavailable``.
        """
        now = self.clock()
        device = self.trust.device(question.ueid)
        context = self._context(question, device, keys, int(now))
        verdict = verify(data, context, chains=self.chains)
        if verdict.nonce is not None and device is not None and context.policy is not None:
            issued_at = verdict.nonce_until - context.policy.nonce_ttl_seconds
            verdict = self._looked_at(question, device, verdict, issued_at, context.now)
            verdict = consumed(verdict, self.single_use, now=context.now)
            if verdict.code is Code.STORE_UNAVAILABLE:
                raise Reject(verdict.code, verdict.message)
        self._record(question, data, context, verdict, now)
        signed = ear.mint(
            verdict,
            keys.ear,
            ueid=question.ueid,
            nonce=question.nonce,
            policy_name=_policy_name(context),
            verifier=self.verifier,
            now=context.now,
        )
        return Result(signed, verdict)

    def _context(self, question: Question, device: Enrolled | None, keys: ServiceKeys, now: int) -> Context:
        nonce = IssuedNonce(keys.ring, question.audience.encode())
        if device is None:
            return Context(device=None, policy=None, nonce=nonce, now=now, floors=Floors())
        return Context(
            device=device.anchor,
            policy=self.trust.policy(device.anchor.policy),
            nonce=nonce,
            now=now,
            floors=device.floors,
            last_confirmed=device.confirmed,
        )

    def _looked_at(self, question: Question, device: Enrolled, verdict: Verdict, issued_at: int, now: int) -> Verdict:
        """Rules 2 to 4, for a verdict on an answer to a nonce of ours."""
        if verdict.nonce != question.nonce:
            reject = Reject(Code.EAT_NONCE, "the token answers another nonce than the request names")
            return verdict.refused("asked", reject)._replace(nonce=None)
        floor = device.floors.boot_count
        finding = clones.observe(device.sightings, verdict, asked_at=issued_at, seen_at=now, boot_count_floor=floor)
        if finding.alarm is not None or _boots(finding.sightings) != _boots(device.sightings):
            finding = self.trust.store.observe(verdict, question.ueid, asked_at=issued_at, seen_at=now, by=SUSPENDED_BY)
        device.sightings = finding.sightings
        if finding.alarm is not None and verdict.accepted:
            return verdict.refused("clones", Reject(finding.alarm, f"{finding.message}: the device is suspended now"))
        if self.began is not None and verdict.accepted and issued_at < self.began:
            reason = "the nonce was issued before this replica began, which cannot tell whether it was used"
            return verdict.refused(SINGLE_USE, Reject(Code.STORE_UNAVAILABLE, f"{reason}: ask for a new one"))
        return verdict

    def _record(self, question: Question, data: bytes, context: Context, verdict: Verdict, now: float) -> None:
        """Rule 6."""
        try:
            if self.records is not None:
                about = {"audience": question.audience}
                build = self.verifier.build
                payload = evidence.record(data, context, verdict, verifier=build, about=about)
                if payload is not None:
                    self.records.store.add(payload, self.records.key)
            if self.audit is not None:
                line = line_of(
                    verdict,
                    ueid=question.ueid,
                    audience=question.audience,
                    nonce=question.nonce,
                    policy=_policy_name(context),
                    now=now,
                )
                self.audit.write(line)
        except Reject as reject:
            raise Refused(Problem.RECORDS, f"{reject.message}: no result without its record") from reject


def _policy_name(context: Context) -> str:
    return context.device.policy if context.device else NO_POLICY


def _boots(sightings: Sequence[Sighting]) -> list[tuple[int, bytes]]:
    return [(one.boot_count, one.seed_sha256) for one in sightings]
