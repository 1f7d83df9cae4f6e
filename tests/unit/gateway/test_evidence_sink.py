# SPDX-License-Identifier: Apache-2.0
"""The evidence of verdicts in a directory: what is kept, when, and that it never changes a verdict."""

from dataclasses import replace
from pathlib import Path

import pytest

from attestation import evidence
from attestation.clones import Sighting
from attestation.evidence_store import EvidenceStore
from attestation.keys import Alg
from attestation.policy import DenyRules, MeasurementRef
from attestation.reappraisal import Outcome as Again
from attestation.reappraisal import reappraise
from flashjob.gateway.evidence_sink import DirectorySink
from flashjob.gateway.ruling import Refused
from flashjob.wire.gateway import Outcome, Purpose
from tests.unit.attestation.world import private_key
from tests.unit.gateway.court import Court, policy_for
from tests.unit.virtual.workbench import Bench, image

KEY = private_key(Alg.ES256, b"records")


def court(root: Path) -> Court:
    made = Court(Bench(), image("2.0"))
    made.service = replace(made.service, sink=DirectorySink(root, KEY))
    return made


def records(root: Path) -> list[evidence.Record]:
    store = EvidenceStore(root)
    return [evidence.read(store.envelope(line.record), [KEY.public_key()]) for line in store.lines()]


async def test_a_success_can_be_judged_again_under_another_policy(tmp_path: Path) -> None:
    held = court(tmp_path)
    assert (await held.whole_update()).outcome is Outcome.PROVEN
    (record,) = records(tmp_path)
    assert record.verdict.accepted
    assert (record.about["outcome"], record.about["task"]) == ("Proven", "ns/t")
    assert held.verdict is not None
    assert record.evidence_sha256.hex() == held.verdict.evidence_hash
    store = EvidenceStore(tmp_path)
    envelope = store.envelope(next(store.lines()).record)
    assert reappraise(envelope, [KEY.public_key()], policy_for(held.bench.identity)).outcome is Again.HOLDS
    ran = tuple(MeasurementRef(alg=m.alg, value=m.value) for m in held.target.measurements)
    withdrawn = policy_for(held.bench.identity).model_copy(update={"deny": DenyRules(measurements=ran)})
    found = reappraise(envelope, [KEY.public_key()], withdrawn)
    assert (found.outcome, found.code) == (Again.FAILS, "ref.denied")


async def test_a_rejection_is_kept_too_and_steps_on_the_way_are_not(tmp_path: Path) -> None:
    held = court(tmp_path)
    await held.permit()
    assert records(tmp_path) == []
    held.policy_changes = {"modes": ["Recovery"]}
    with pytest.raises(Refused):
        await held.prove(held.bench.evidence(await held.nonce(Purpose.AFTER)))
    (record,) = records(tmp_path)
    assert (record.verdict.accepted, record.verdict.code) == (False, "dice.mode")


async def test_a_twins_evidence_is_kept_with_the_alarm(tmp_path: Path) -> None:
    held = court(tmp_path)
    held.boots = (Sighting(held.bench.application.boot.boot_count, b"s" * 32, int(held.bench.now) - 60),)
    with pytest.raises(Refused):
        await held.permit()
    (record,) = records(tmp_path)
    assert (record.verdict.accepted, record.verdict.code) == (False, "clone.seed")
    assert held.verdict is not None
    assert held.verdict.is_clone_alarm
    assert held.verdict.evidence_hash == record.evidence_sha256.hex()
    store = EvidenceStore(tmp_path)
    envelope = store.envelope(next(store.lines()).record)
    found = reappraise(envelope, [KEY.public_key()], policy_for(held.bench.identity))
    assert (found.outcome, found.code) == (Again.STILL_FAILS, "clone.seed")


async def test_a_directory_that_is_gone_changes_no_verdict(tmp_path: Path) -> None:
    root = tmp_path / "evidence"
    held = court(root)
    sink = held.service.sink
    assert isinstance(sink, DirectorySink)
    (root / "records").rmdir()
    assert (await held.whole_update()).outcome is Outcome.PROVEN
    assert sink.lost == 1
