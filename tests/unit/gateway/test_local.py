# SPDX-License-Identifier: Apache-2.0
"""The judge of a bench on a trust directory: what it remembers of boots."""

import hashlib
from pathlib import Path

import pytest

from attestation import enrolment
from attestation.clones import Sighting
from attestation.device_file import sightings_json
from attestation.directory import TrustDirectory
from attestation.evidence_store import EvidenceStore
from attestation.policy import RootOfTrust
from attestation.standing import Standing
from flashjob.gateway.local import BenchJudge
from flashjob.gateway.ruling import Refused
from flashjob.gateway.service import Clock
from flashjob.wire.gateway import NonceRequest, PermitRequest, Purpose
from flashjob.wire.pod import Assignment, TransportKind
from tests.unit.attestation.test_verifier_directory import write_policy
from tests.unit.gateway.court import Court, policy_for
from tests.unit.virtual.workbench import GRANT_KEY, Bench, image


async def test_rule_5_a_boot_that_contradicts_an_earlier_one_suspends_the_device(tmp_path: Path) -> None:
    court = Court(Bench(), image("2.0"))
    who, now = court.bench.identity, int(court.bench.now)
    trust = TrustDirectory.create(tmp_path / "trust")
    trust.enroll(enrolment.spec(who.anchor, tier=RootOfTrust.SIGNED_BOOT, policy_name="field", enrolled={}))
    trust.write_grant_key(GRANT_KEY)
    write_policy(trust, policy_for(who), "field")
    twin = Sighting(court.bench.application.boot.boot_count, hashlib.sha256(b"another").digest(), now - 60)
    content = dict(trust.device(who.ueid) or {})
    content["status"] = {"sightings": sightings_json((twin,))}
    trust._write(who.ueid, content)

    asked = Assignment(
        task="t", attempt=1, device=who.ueid.hex(), transport=TransportKind.NETWORK, address="h:1", target=court.target
    )
    clock = Clock(now=lambda: court.bench.now, random=court.bench.random)
    judge = BenchJudge(trust, asked, clock, tmp_path / "evidence")
    nonce = (await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))).nonce
    with pytest.raises(Refused, match=r"two seeds in boot \d+ \(clone.seed\)"):
        await judge.permit(PermitRequest(attempt=1, evidence=court.bench.evidence(nonce)))

    (change,) = trust.history(who.ueid)
    assert (change.standing, change.by) == (Standing.SUSPENDED, "flashjob flash")
    assert "clone.seed" in change.reason
    (line,) = EvidenceStore(tmp_path / "evidence").lines()
    assert not line.accepted
