# SPDX-License-Identifier: Apache-2.0
"""Who is attested when, and who is listed: the rules alone."""

from dataclasses import replace
from typing import Any

import pytest

from attestation import eat
from attestation.device_protocol import Flag, Info
from attestation.discovery import rules
from attestation.discovery.addresses import Address
from attestation.policy import Measurement, RootOfTrust
from attestation.statement import Digest
from attestation.verdict import Verdict
from tests.unit.attestation.world import NOW, Minted, judge, policy

PHONE = Minted()
HERE = Address("192.0.2.7", 80)


def info(**changes: Any) -> Info:
    base = Info(
        versions=[1],
        ueid=PHONE.ueid,
        chip_id=9,
        chip_revision=2,
        flash_size=1 << 22,
        running_slot=0x10,
        slot_state=2,
        target_slot_size=1 << 20,
        measurement=Digest(alg=-16, value=bytes(32)),
        name="porch",
        version="2.0.0",
        secure_version=3,
        efuse_secure_version=1,
        flags=Flag(0),
        partition_table=bytes(32),
        bootseed=b"seed-of-boot",
    )
    return base.model_copy(update=changes)


def answer(reached: Address | None = HERE) -> rules.Attestation:
    return rules.Attestation(
        device_id=PHONE.ueid.hex(),
        endpoint=str(reached) if reached else "serial:/virtual/a",
        reached=reached,
        nonce=b"",
        evidence=b"",
        boot_seed=b"seed-of-boot",
        slot_state=2,
        at=100.0,
        unix=NOW,
    )


@pytest.mark.parametrize("state", [0, 1, 3, 4, 17])
def test_rule_1_a_slot_that_waits_or_is_bad_is_not_asked(state: int) -> None:
    assert not rules.may_attest(info(slot_state=state), in_hand=False)


@pytest.mark.parametrize("state", [2, 0xFFFFFFFF])
def test_rule_1_a_settled_slot_is_asked_unless_a_task_has_it(state: int) -> None:
    assert rules.may_attest(info(slot_state=state), in_hand=False)
    assert not rules.may_attest(info(slot_state=state), in_hand=True)


@pytest.mark.parametrize(
    ("last", "said", "now", "expected"),
    [
        (None, info(), 100.0, True),
        (answer(), info(), 100.0, False),
        (answer(), info(), 159.9, False),
        (answer(), info(), 160.0, True),
        (answer(), info(bootseed=b"another-seed"), 100.0, True),
        (answer(), info(slot_state=1), 100.0, True),
        (answer(), info(ueid=b"\x01" + bytes(32)), 100.0, True),
        (answer(), info(version="9", name="liar"), 100.0, False),
    ],
)
def test_rule_2_when_evidence_is_due(last: rules.Attestation | None, said: Info, now: float, expected: bool) -> None:
    assert rules.due(last, said, now=now, interval=60.0) is expected


def test_rules_3_to_5_accepted_proven_and_reached_where_it_says() -> None:
    judged, listing = rules.judge(answer(), judge(PHONE))
    assert (judged.code, listing is not None) == ("", True)
    assert listing is not None
    assert (listing.ueid, listing.endpoint) == (PHONE.ueid, "192.0.2.7:80")
    assert listing.measurement == PHONE.measurement == Measurement(-44, PHONE.measurement.value)
    assert listing.boot_id == PHONE.boot_id
    assert listing.evidence_sha256 == judge(PHONE).evidence_sha256


def test_rule_3_a_slot_state_that_is_not_listable_is_rejected() -> None:
    pending = replace(PHONE, slot_state=1)
    judged, listing = rules.judge(answer(), judge(pending, slot_states=rules.LISTABLE))
    assert (judged.code, listing) == ("slot.state", None)
    assert judged.slot_state is eat.SlotState.PENDING


def test_rule_4_a_weak_root_of_trust() -> None:
    strict = policy(PHONE, min_root_of_trust=RootOfTrust.ISOLATED)
    judged, listing = rules.judge(answer(), judge(PHONE, policy=strict))
    assert (judged.code, listing) == ("", None)
    assert "SignedBoot" in judged.message


@pytest.mark.parametrize("own", [[], ["192.0.2.8:80"], ["192.0.2.7:81"], ["porch.example"], ["?"]])
def test_rule_5_reached_elsewhere(own: list[str]) -> None:
    verdict: Verdict = judge(PHONE, PHONE.evidence(token=PHONE.token({eat.ADDRESSES: own})))
    judged, listing = rules.judge(answer(), verdict)
    assert (judged.code, listing) == ("eat.address", None)
    _, over_tls = rules.judge(answer(HERE._replace(tls=True)), judge(PHONE))
    assert over_tls is not None
    assert over_tls.endpoint == "https://192.0.2.7:80"
    _, on_a_port = rules.judge(answer(reached=None), verdict)
    assert on_a_port is not None


def test_rule_5_over_tls_under_another_key() -> None:
    judged, listing = rules.judge(replace(answer(), bound=False), judge(PHONE))
    assert (judged.code, listing, judged.is_itself) == ("eat.channel", None, False)
    refused = judge(PHONE, policy=policy(PHONE, min_root_of_trust=RootOfTrust.ISOLATED), slot_states=frozenset())
    judged, _ = rules.judge(replace(answer(), bound=False), refused)
    assert (judged.code, judged.is_itself) == ("slot.state", False), "nor does a refusal say where the device is"
