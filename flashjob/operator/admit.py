# SPDX-License-Identifier: Apache-2.0
"""Admission of a job's artifact: everything that planning needs to know of registries, keys and signatures.

1. The reference is resolved once; the digest is kept in status.firmware and nothing is ever fetched by tag again.
2. The job's own keys, if it names any, must have signed the digest: else the job ends (Unsigned, SignatureMissing).
3. Each policy that judges a selected device must name signers, and they must have signed the digest, and whatever else
   the policy wants signed beside it: annotations, SBOM, provenance. A job's keys only add to that: whoever starts a job
   does not choose its judge.
4. For each chip of a selected device the pinned manifest, config and release statement are fetched once, by digest.
5. Trouble that may pass (registry down) makes the job wait, with backoff; everything else is a refusal of job, policy
   or chip. Nothing of this is repeated once the job's selection is closed: tasks carry their targets.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from attestation.policy import AttestationPolicySpec, RequiredSigners
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.signing.policy import VerificationPolicy
from flashjob.api.flashjob import PinnedFirmware, SecretKeyRef, Verify
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.resources import SECRETS
from flashjob.planning.messages import refuse
from flashjob.planning.state import Admission, Device, Job, Policy, Refusal
from flashjob.wire.clock import stamp
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

from .artifacts import Artifact, Artifacts, Refused, device_policy, job_policy

FIRST_RETRY_SECONDS: Final = 2.0
MOST_SIGNERS: Final = 32
LAST_RETRY_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Known:
    """What was found out about one job."""

    firmware: PinnedFirmware | None = None
    chips: tuple[str, ...] | None = None
    targets: dict[str, Target] = field(default_factory=dict)
    configs: dict[str, FirmwareConfig] = field(default_factory=dict)
    refused_chips: dict[str, Refusal] = field(default_factory=dict)
    policies: dict[tuple[str, RequiredSigners | None], Policy] = field(default_factory=dict)
    failures: int = 0
    retry_at: float = 0.0
    waiting: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of one round: what planning sees, what to write into status.firmware, when to try again."""

    admission: Admission
    firmware: PinnedFirmware | None
    retry_at: float | None = None


class Admitter:
    """Keeps what it found out for as long as the job lives; forgets it with `forget`."""

    def __init__(self, api: KubeApi, artifacts: Artifacts) -> None:
        self._api, self._artifacts = api, artifacts
        self._known: dict[str, _Known] = {}

    def forget(self, uid: str) -> None:
        """The job is gone, or needs no registry any more."""
        self._known.pop(uid, None)

    async def admit(
        self, job: Job, devices: tuple[Device, ...], policies: Mapping[str, AttestationPolicySpec], now: float
    ) -> Found:
        """One round of rules 1 to 5.

        Args:
            devices: the selected ones.
            policies: by name, those that exist in the job's namespace.
            now: seconds since the epoch.
        """
        known = self._known.setdefault(job.uid, _Known())
        known.firmware = known.firmware or job.status.firmware
        if now < known.retry_at:
            return Found(Admission(waiting=known.waiting), known.firmware, known.retry_at)
        try:
            artifact = await self._open(job)
            await self._pin(job, artifact, known, now)
            await self._judge(artifact, known, devices, policies)
        except Refused as error:
            if not error.passing:
                return Found(Admission(refused=error.refusal), known.firmware)
            known.failures += 1
            known.waiting = error.refusal
            known.retry_at = now + min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** (known.failures - 1))
            return Found(Admission(waiting=error.refusal), known.firmware, known.retry_at)
        known.failures = 0
        wanted = {device.policy: policies.get(device.policy) for device in devices}
        admission = Admission(
            targets=dict(known.targets),
            configs=dict(known.configs),
            refused_chips=dict(known.refused_chips),
            policies={
                name: known.policies[name, spec.required_signers] for name, spec in wanted.items() if spec is not None
            },
        )
        return Found(admission, known.firmware)

    async def _open(self, job: Job) -> Artifact:
        firmware = job.spec.firmware
        config = await self._docker_config(job)
        return await asyncio.to_thread(
            self._artifacts.open, firmware.image, plain_http=firmware.plain_http, docker_config=config
        )

    async def _pin(self, job: Job, artifact: Artifact, known: _Known, now: float) -> None:
        """Rules 1 and 2."""
        verify = job.spec.firmware.verify
        if known.firmware is None:
            digest = await asyncio.to_thread(artifact.resolve)
            signers: tuple[str, ...] = ()
            if verify is not None:
                signers = await asyncio.to_thread(artifact.verify, digest, await self._own_policy(job, verify))
            version, known.chips = await asyncio.to_thread(artifact.describe, digest)
            known.firmware = PinnedFirmware(
                repository=artifact.repository, digest=digest, version=version, signers=signers, pinned_at=stamp(now)
            )
        elif known.chips is None:
            if verify is not None:
                await asyncio.to_thread(artifact.verify, known.firmware.digest, await self._own_policy(job, verify))
            _, known.chips = await asyncio.to_thread(artifact.describe, known.firmware.digest)

    async def _judge(
        self,
        artifact: Artifact,
        known: _Known,
        devices: tuple[Device, ...],
        policies: Mapping[str, AttestationPolicySpec],
    ) -> None:
        """Rules 3 and 4."""
        assert known.firmware is not None
        digest = known.firmware.digest
        for name in sorted({device.policy for device in devices}):
            spec = policies.get(name)
            if spec is not None and (name, spec.required_signers) not in known.policies:
                known.policies[name, spec.required_signers] = await self._policy(artifact, known, name, spec)
        chips = {device.facts.chip if device.facts else "" for device in devices}
        if "" in chips and known.chips and len(known.chips) == 1:
            chips.add(known.chips[0])
        for chip in sorted(chips & set(known.chips or ()) - known.targets.keys() - known.refused_chips.keys()):
            try:
                known.targets[chip], known.configs[chip] = await asyncio.to_thread(artifact.target, digest, chip)
            except Refused as error:
                if error.passing:
                    raise
                known.refused_chips[chip] = error.refusal

    async def _policy(self, artifact: Artifact, known: _Known, name: str, spec: AttestationPolicySpec) -> Policy:
        assert known.firmware is not None
        required = spec.required_signers
        if required is None:
            return Policy(refuse(Reason.SIGNERS_NOT_CONFIGURED, f"AttestationPolicy {name} names no requiredSigners"))
        try:
            signed = await asyncio.to_thread(artifact.verify, known.firmware.digest, device_policy(required))
        except Refused as error:
            if error.passing:
                raise
            text = f"AttestationPolicy {name}: {error.refusal.message}"
            return Policy(Refusal(error.refusal.reason, text[:1024]))
        signers = sorted({*known.firmware.signers, *signed})[:MOST_SIGNERS]
        known.firmware = known.firmware.model_copy(update={"signers": tuple(signers)})
        return Policy()

    async def _own_policy(self, job: Job, verify: Verify) -> VerificationPolicy:
        keys = {key.name: await self._secret_text(job, key.secret_key_ref) for key in verify.keys}
        return job_policy(keys, verify.threshold)

    async def _docker_config(self, job: Job) -> bytes | None:
        secrets = job.spec.firmware.pull_secrets
        if not secrets:
            return None
        return await self._secret_bytes(job, secrets[0].name, ".dockerconfigjson", Reason.REGISTRY_UNAUTHORIZED)

    async def _secret_text(self, job: Job, ref: SecretKeyRef) -> str:
        raw = await self._secret_bytes(job, ref.name, ref.key, Reason.KEY_UNREADABLE)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Refused(refuse(Reason.KEY_UNREADABLE, f"Secret {ref.name}, key {ref.key}: not text")) from None

    async def _secret_bytes(self, job: Job, name: str, key: str, reason: Reason) -> bytes:
        try:
            secret = await self._api.get(SECRETS, job.namespace, name)
        except ApiError as error:
            if error.transient:
                raise
            raise Refused(refuse(reason, f"Secret {job.namespace}/{name}: {error.message}")) from error
        value = (secret.get("data") or {}).get(key)
        try:
            if value is None:
                raise ValueError(f"it has no key {key}")
            return base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error) as error:
            raise Refused(refuse(reason, f"Secret {job.namespace}/{name}: {error}")) from error
