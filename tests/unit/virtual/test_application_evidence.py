# SPDX-License-Identifier: Apache-2.0
"""What virtual devices answer, judged by the real verifier: honest ones pass, every lie has its own code."""

from __future__ import annotations

from typing import Any

import pytest

from attestation.anchors import DeviceAnchor
from attestation.dice_cbor import parse_certificate
from attestation.eat import SlotState
from attestation.errors import Code
from attestation.grants import ConfirmGrant
from attestation.keys import Alg
from attestation.policy import AttestationPolicySpec, BootloaderRules, Measurement, MeasurementRef, RootOfTrust
from attestation.statement import SHA_256, SHA_512
from attestation.verifier import Context, ExactNonce, Verdict, verify
from flashjob.virtual.adversaries import (
    Behaviour,
    OtherDevicesEvidence,
    ReplaysEvidence,
    RollsBackAfterAccept,
    RunsOldImage,
    StaleBootId,
)
from flashjob.virtual.profile import Tier, make_identity
from tests.unit.virtual.workbench import NONCE, Bench, image

NEW = image("2.0")


def bench_of(
    name: str = "bench",
    behaviour: Behaviour | None = None,
    *,
    tier: Tier = "SignedBoot",
    chip: str = "esp32s3",
    **identity: Any,
) -> Bench:
    made = make_identity(name, chip, tier=tier, secret=b"test", **identity)
    return Bench(identity=made, behaviour=behaviour or Behaviour())


def judge(bench: Bench, evidence: bytes, nonce: bytes = NONCE, **demands: Any) -> Verdict:
    """Judge with a policy that knows this maker's bootloader and authority, and a task that pins 2.0."""
    layer0 = parse_certificate(bench.application.boot.handover().certificates[0])
    bootloader = Measurement.of_hash(layer0.code_hash)
    identity = bench.identity
    zero = not any(layer0.authority_hash)
    policy = AttestationPolicySpec(
        bootloader=BootloaderRules(measurements=(MeasurementRef(alg=bootloader.alg, value=bootloader.value.hex()),)),
        authority_hashes=() if zero else (layer0.authority_hash.hex(),),
    )
    pinned = frozenset(Measurement(m.alg, m.value) for m in (bench.measurement(data) for data in (image("1.0"), NEW)))
    tier = RootOfTrust.SELF_REPORTED if zero else RootOfTrust.SIGNED_BOOT
    context = Context(
        device=DeviceAnchor(identity.ueid, identity.anchor, tier, "p", hwmodel=identity.hardware.chip.target.encode()),
        policy=policy,
        nonce=ExactNonce(nonce),
        now=0,
        pinned=pinned,
        **demands,
    )
    return verify(evidence, context)


def target(bench: Bench) -> dict[str, Any]:
    """What the task demands after the reboot."""
    measured = bench.measurement(NEW)
    return {"expected": frozenset({Measurement(measured.alg, measured.value)}), "boot_ids": frozenset({b"g" * 16})}


def installed(bench: Bench, **changes: Any) -> Bench:
    assert bench.install(NEW, **changes).status == 200
    bench.reset()
    return bench


@pytest.mark.parametrize("alg", [Alg.ES256, Alg.EDDSA])
@pytest.mark.parametrize("hash_alg", [SHA_256, SHA_512])
def test_an_honest_device_is_accepted_before_and_after_the_update(alg: Alg, hash_alg: int) -> None:
    bench = bench_of(alg=alg, hash_alg=hash_alg)
    before = judge(bench, bench.evidence(), slot_states=frozenset({SlotState.VALID}))
    assert before.accepted, before.message
    installed(bench)
    first = judge(bench, bench.evidence(), slot_states=frozenset({SlotState.PENDING}), **target(bench))
    assert first.accepted, first.message
    assert first.proven_at_tier
    reply = bench.send(bench.running_grant(ConfirmGrant))
    assert reply.body is not None
    final = judge(bench, reply.body, b"2" * 32, slot_states=frozenset({SlotState.VALID}), **target(bench))
    assert final.accepted, final.message
    assert final.claims is not None
    assert (final.claims.version, final.claims.boot_id, final.claims.token.fence) == ("2.0", b"g" * 16, 1)


def test_the_size_of_evidence_fits_every_transport() -> None:
    sizes = {(alg, hash_alg): len(bench_of(alg=alg, hash_alg=hash_alg).evidence())
             for alg in (Alg.ES256, Alg.EDDSA) for hash_alg in (SHA_256, SHA_512)}  # fmt: skip
    assert max(sizes.values()) < 1500, "about 20 lines on a serial console"


def test_a_self_reported_device_is_accepted_but_not_proven() -> None:
    bench = bench_of(tier="SelfReported", chip="esp32")
    verdict = judge(bench, bench.evidence(), any_application=True)
    assert verdict.accepted, verdict.message
    assert not verdict.proven_at_tier


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [(RunsOldImage(), Code.REF_CODE), (ReplaysEvidence(), Code.EAT_NONCE)],
    ids=["runs old image", "replays evidence"],
)
def test_a_lie_about_what_runs_has_its_own_code(behaviour: Behaviour, code: Code) -> None:
    bench = bench_of(behaviour=behaviour)
    bench.evidence(b"\x07" * 32)
    installed(bench)
    verdict = judge(bench, bench.evidence(), **target(bench))
    assert (verdict.accepted, verdict.code) == (False, code)


def test_runs_old_image_even_claims_the_right_boot_id() -> None:
    bench = installed(bench_of(behaviour=RunsOldImage()))
    assert judge(bench, bench.evidence(), boot_ids=frozenset({b"g" * 16})).accepted, "only the measurement betrays it"


def test_a_stale_boot_id_is_refused_although_the_image_is_right() -> None:
    bench = installed(bench_of(behaviour=StaleBootId()))
    verdict = judge(bench, bench.evidence(), **target(bench))
    assert (verdict.accepted, verdict.code) == (False, Code.BOOT_ID)
    assert judge(bench, bench.evidence(), expected=target(bench)["expected"]).accepted


def test_evidence_of_another_device_is_refused() -> None:
    donor = bench_of("donor")
    bench = bench_of(behaviour=OtherDevicesEvidence(donor.application.evidence))
    assert judge(bench, bench.evidence()).code in (Code.ANCHOR_ID, Code.EAT_UEID)
    assert judge(donor, donor.evidence()).accepted


def test_a_rolled_back_device_shows_the_old_image_again() -> None:
    bench = installed(bench_of(behaviour=RollsBackAfterAccept()))
    assert bench.send(bench.running_grant(ConfirmGrant)).reboot
    bench.reset()
    assert judge(bench, bench.evidence(), **target(bench)).code is Code.REF_CODE


def test_an_unfinished_installation_is_not_valid() -> None:
    bench = installed(bench_of())
    verdict = judge(bench, bench.evidence(), slot_states=frozenset({SlotState.VALID}), **target(bench))
    assert verdict.code is Code.SLOT_STATE
