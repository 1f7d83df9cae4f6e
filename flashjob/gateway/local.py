# SPDX-License-Identifier: Apache-2.0
"""The same judge on a trust directory, in the flasher's own process: for one device at a bench, without a cluster.

Rules:

1. The device, its policy and its floors come from the directory; nothing in it is defaulted.
2. Nonce keys are random per run and the report lives in memory: single use holds for this process, which is the only
   one that may have the device (its file is locked by the caller).
3. A verdict after Confirm raises the floors and replaces the last confirmed measurement; nothing else does.
4. With a directory for evidence, what each verdict rested on is kept there, signed with the directory's own key.
5. A boot that contradicts earlier ones (attestation.clones) suspends the device from then on.
6. The release statement's signature is checked here against ``release/*.pub``; without such a key it is refused.
"""

import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from attestation import release
from attestation.anchors import Floors
from attestation.directory import TrustDirectory
from attestation.errors import Reject
from attestation.keys import key_id
from attestation.nonce import KeyRing
from flashjob.api.flashtask import Report, Verdict
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import (
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceReply,
    NonceRequest,
    Outcome,
    PermitReply,
    PermitRequest,
    Progress,
    RevertReply,
    RevertRequest,
    VerdictReply,
)
from flashjob.wire.pod import Assignment
from flashjob.wire.reasons import Reason

from .appraisal import issued_at
from .case import Case, Keys, Subject
from .evidence_sink import DirectorySink
from .record import permits_of, refused_of
from .ruling import Finding, Refused
from .service import Clock, Conflict, Gathered, Service

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BenchCases:
    """One case in memory; implements service.Cases."""

    trust: TrustDirectory
    assignment: Assignment
    report: Report = field(default_factory=Report)
    version: int = 0

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        """The case as of now; the directory is read anew each time."""
        ueid, spec = bytes.fromhex(self.assignment.device), self.assignment
        file = self.trust.file(ueid)
        device = file.anchor if file else None
        if file is None or device is None:
            raise FlashJobError(
                Reason.DEVICE_NOT_ENROLLED,
                f"device {spec.device} is not enrolled in {self.trust.root}",
                f"flashjob device enroll --trust {self.trust.root}",
            )
        policy = self.trust.policy(device.policy)
        if policy is None:
            raise FlashJobError(
                Reason.POLICY_MISSING,
                f"policy {device.policy} of device {spec.device} is not in {self.trust.root}",
                f"write policies/{device.policy}.yaml",
            )
        case = Case(
            namespace=namespace,
            task=task,
            task_uid=task,
            attempt=attempt,
            target=spec.target,
            transport=spec.transport,
            before=spec.before,
            safety=spec.safety,
            timeouts=spec.timeouts,
            subject=Subject(
                id=ueid,
                device=device,
                policy=policy,
                confirmed=file.confirmed,
                floors=file.floors,
                boots=file.sightings,
            ),
            lease_transitions=0,
            permits=permits_of(self.report),
            used_nonces=frozenset(self.report.used_nonces),
            refused=refused_of(self.report, attempt),
            judged=self.report.verdict is not None,
        )
        return Gathered(case, self.report, str(self.version))

    async def write(self, namespace: str, task: str, report: Report, version: str) -> None:
        """Keep the report; a verdict that counts also goes to the directory (rule 3)."""
        if version != str(self.version):
            raise Conflict
        verdict = report.verdict
        if verdict is not None and verdict.outcome in (Outcome.PROVEN, Outcome.BELOW_POLICY):
            floors = Floors(verdict.secure_version or 0, self.assignment.target.sequence, verdict.boot_count or 0)
            wanted = (await self.gather(namespace, task, verdict.attempt)).case.wanted
            self.trust.confirm(bytes.fromhex(self.assignment.device), floors, sorted(wanted, key=lambda m: m.alg))
        self.report, self.version = report, self.version + 1


@dataclass(frozen=True, slots=True)
class BenchSink:
    """Remembers the boot that a verdict was about (rule 5) and keeps its evidence; implements service.EvidenceSink."""

    trust: TrustDirectory
    records: DirectorySink | None

    async def keep(self, case: Case, finding: Finding) -> None:
        """See EvidenceSink."""
        judged = finding.judged
        if judged is not None and (answered := judged.verdict.nonce) is not None:
            asked_at, seen_at, by = issued_at(case, answered), judged.context.now, "flashjob flash"
            try:
                self.trust.observe(judged.verdict, case.subject.id, asked_at=asked_at, seen_at=seen_at, by=by)
            except Reject as reject:
                log.error("the boot of %s is not remembered: %s", case.subject.id.hex(), reject)
        if self.records is not None:
            await self.records.keep(case, finding)


class BenchJudge:
    """A `Judge` for one attempt (flashjob.flasher.judge).

    Args:
        trust: the directory.
        assignment: the attempt.
        clock: time and randomness.
        evidence: directory for evidence records (rule 4); None: none are kept.

    Raises:
        Reject: the directory has no usable grant key, or evidence cannot be kept.
    """

    def __init__(
        self,
        trust: TrustDirectory,
        assignment: Assignment,
        clock: Clock | None = None,
        evidence: Path | None = None,
    ) -> None:
        self._trust, self._assignment = trust, assignment
        self._cases = BenchCases(trust, assignment)
        keys = Keys(KeyRing(current=0, keys={0: secrets.token_bytes(32)}), trust.grant_key())
        records = DirectorySink(evidence, trust.evidence_key()) if evidence else None
        self._service = Service(self._cases, keys, clock or Clock(), BenchSink(trust, records))

    @property
    def verdict(self) -> Verdict | None:
        """What was found; None where it did not come to a verdict."""
        return self._cases.report.verdict

    async def nonce(self, request: NonceRequest) -> NonceReply:
        """A fresh nonce for evidence."""
        return await self._service.nonce("bench", self._assignment.task, request)

    async def permit(self, request: PermitRequest) -> PermitReply:
        """Asked just before byte 1."""
        self._check_release(request.release)
        return await self._service.permit("bench", self._assignment.task, request)

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        """Evidence taken after the reboot; earns a confirm grant."""
        return await self._service.evidence("bench", self._assignment.task, request)

    async def confirm(self, request: ConfirmRequest) -> VerdictReply:
        """Evidence that says VALID; earns the verdict."""
        return await self._service.confirm("bench", self._assignment.task, request)

    async def revert(self, request: RevertRequest) -> RevertReply:
        """The order to give up an installation that was refused."""
        return await self._service.revert("bench", self._assignment.task, request)

    async def progress(self, progress: Progress) -> None:
        """The flasher's listener draws the bar; there is nobody else to tell."""

    async def result(self, result: DeviceResult) -> None:
        """The caller holds the result itself."""

    async def address(self) -> str | None:
        """Nobody here knows a new address."""
        return None

    def _check_release(self, data: bytes | None) -> None:
        """Rule 6."""
        if data is None:
            return
        try:
            accepted = {key_id(key): key for key in self._trust.release_keys().values()}
            release.verify(data, accepted)
        except Reject as reject:
            raise Refused(Reason.RELEASE_INVALID, f"{reject} (keys: {self._trust.root}/release)") from reject
