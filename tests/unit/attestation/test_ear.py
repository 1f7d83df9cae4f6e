# SPDX-License-Identifier: Apache-2.0
"""Attestation results: what a verdict becomes, and that no result says more than its verdict."""

from dataclasses import replace
from typing import Any

import pytest

from attestation import cose, ear, keys
from attestation.anchors import DeviceState
from attestation.cbor import dumps, strict_loads
from attestation.ear import Entry, Status
from attestation.errors import Code, Reject
from attestation.keys import Alg
from attestation.policy import Measurement, RootOfTrust
from attestation.replay import InMemorySingleUse
from attestation.verifier import Verdict, verify_once
from tests.unit.attestation.world import NOW, Minted, context, judge, policy, private_key, rejects

DEVICE = Minted()
NONCE = DEVICE.fresh_nonce()
KEY = private_key(Alg.ES256, b"verifier")
KEYS = {keys.key_id(KEY.public_key()): KEY.public_key()}
VERIFIER = ear.Verifier("flashjob", "0.1.0+abc")


def once(phone: Minted = DEVICE, evidence: bytes | None = None, **changes: Any) -> Verdict:
    given = phone.evidence() if evidence is None else evidence
    return verify_once(given, context(phone, **changes), InMemorySingleUse())


def minted(verdict: Verdict, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "ueid": DEVICE.ueid, "nonce": NONCE, "policy_name": "fleet/default@3", "verifier": VERIFIER, "now": NOW
    }  # fmt: skip
    return ear.mint(verdict, KEY, **{**arguments, **changes})


def read(data: bytes, **changes: Any) -> ear.Ear:
    return ear.check(data, KEYS, **{"nonce": NONCE, "now": NOW + 1, **changes})


def test_an_accepted_device_is_affirming() -> None:
    verdict = once()
    result = read(minted(verdict))
    assert result.status is Status.AFFIRMING
    assert result.vector == {
        Entry.INSTANCE_IDENTITY: 2,
        Entry.CONFIGURATION: 2,
        Entry.EXECUTABLES: 3,
        Entry.HARDWARE: 2,
    }
    assert (result.reason, result.ueid, result.verifier) == ("accepted", DEVICE.ueid, VERIFIER)
    assert result.policy_hash == verdict.policy_hash
    assert result.policy_id.startswith("fleet/default@3#sha256:")
    assert result.root_of_trust is RootOfTrust.SIGNED_BOOT


def test_self_reported_is_capped_even_where_the_policy_allows_it() -> None:
    device = Minted(mode0=0, mode1=0, authority=bytes(64), efuses=0)
    rules = policy(device, min_root_of_trust=RootOfTrust.SELF_REPORTED)
    verdict = once(device, device=device.anchor(RootOfTrust.SELF_REPORTED), policy=rules)
    assert verdict.proven_at_tier
    assert read(minted(verdict)).status is Status.WARNING


def test_weak_root_unjudged_application_or_unconsumed_nonce_is_a_warning_at_best() -> None:
    weak = once(policy=policy(DEVICE, min_root_of_trust=RootOfTrust.ISOLATED))
    assert weak.accepted
    unjudged = once(any_application=True)
    assert unjudged.accepted
    for verdict in (weak, unjudged, judge(DEVICE)):
        assert read(minted(verdict)).status is Status.WARNING
    assert Entry.EXECUTABLES not in read(minted(unjudged)).vector
    assert "root of trust" in read(minted(weak)).unproven[0]


def test_what_is_left_out_of_a_long_list_is_counted_and_the_root_of_trust_never_is() -> None:
    weak = policy(DEVICE, min_root_of_trust=RootOfTrust.ISOLATED)
    images = {f"data{number}": frozenset[Measurement]() for number in range(20)}
    verdict = once(policy=weak, data_images=images)
    assert len(verdict.unproven) == 21
    said = read(minted(verdict)).unproven
    assert (len(said), said[-1]) == (8, "14 more")
    assert "root of trust" in said[0]
    few = once(policy=weak, data_images=dict(list(images.items())[:7]))
    assert read(minted(few)).unproven == few.unproven


@pytest.mark.parametrize(
    ("changes", "entry", "value"),
    [
        ({"code": "app 9.9"}, Entry.EXECUTABLES, 33),
        ({"authority": bytes(64)}, Entry.HARDWARE, 97),
        ({"mode1": 2}, Entry.CONFIGURATION, 96),
        ({"secure_version": 1}, Entry.CONFIGURATION, 96),
    ],
)
def test_a_refused_device_is_contraindicated_and_the_entry_says_why(
    changes: dict[str, Any], entry: Entry, value: int
) -> None:
    verdict = once(replace(DEVICE, **changes))
    result = read(minted(verdict))
    assert result.status is Status.CONTRAINDICATED
    assert result.vector == {entry: value}
    assert verdict.code is not None
    assert result.reason == verdict.code.value


def test_unreadable_input_sets_every_entry_to_99() -> None:
    result = read(minted(once(evidence=b"\x00")))
    assert set(result.vector.values()) == {99}
    assert len(result.vector) == len(Entry)
    suspended = once(device=replace(DEVICE.anchor(), state=DeviceState.SUSPENDED))
    assert read(minted(suspended)).vector == {Entry.INSTANCE_IDENTITY: 96}
    assert read(minted(once(policy=None))).vector == {}
    assert read(minted(once(policy=None))).policy_hash is None


def test_every_code_of_a_verdict_has_an_entry() -> None:
    """Families that a verdict never ends with, or that say nothing about the device, have none."""
    silent = {"policy", "store", "grant", "release", "listing", "statement", "ear"}
    verdict = once(replace(DEVICE, code="app 9.9"))
    for code in Code:
        family = code.value.split(".")[0]
        vector = ear.vector_of(verdict._replace(code=code))
        if family in silent or code is Code.POLICY_MISSING:
            assert not vector, code
        elif family in ("size", "cbor", "cose", "sig", "key", "evidence", "nonce", "replay", "leaf"):
            assert set(vector.values()) == {99}, code
    for code in (Code.CLONE_BOOTCOUNT, Code.CLONE_SEED, Code.CLONE_IDENTITY):
        assert ear.vector_of(verdict._replace(code=code)) == {Entry.INSTANCE_IDENTITY: 96}, code
    for code in (Code.REF_CODE, Code.ROLLBACK, Code.BOOT_ID, Code.SLOT_STATE, Code.REF_DATA):
        assert len(ear.vector_of(verdict._replace(code=code))) == 1, code
        assert ear.status_of(verdict._replace(code=code)) is Status.CONTRAINDICATED


def changed(outer: dict[int, Any] | None = None, inner: dict[int, Any] | None = None, verdict: Any = None) -> bytes:
    """A result with other claims, signed by the verifier's own key; a claim changed to None is left out."""
    claims: Any = strict_loads(cose.parse(minted(verdict or once())).payload)
    claims.update(outer or {})
    if isinstance(claims.get(266), dict) and inner:
        claims[266]["device"].update(inner)
        claims[266]["device"] = {label: value for label, value in claims[266]["device"].items() if value is not None}
    kept = {label: value for label, value in claims.items() if value is not None}
    return cose.sign(dumps(kept), KEY, content_type=ear.CONTENT_TYPE, kid=next(iter(KEYS)))


BAD: dict[str, tuple[dict[int, Any], dict[int, Any], str]] = {
    "2 other profile": ({265: "tag:github.com,2023:veraison/ear"}, {}, "ear.profile"),
    "2 no profile": ({265: None}, {}, "ear.profile"),
    "2 no status": ({1000: None}, {}, "ear.structure"),
    "2 unknown claim": ({1002: b""}, {}, "ear.structure"),
    "2 no submodules": ({266: {}}, {}, "ear.structure"),
    "2 two submodules": ({266: {"device": {}, "modem": {}}}, {}, "ear.structure"),
    "2 no policy id": ({}, {1003: []}, "ear.structure"),
    "2 policy id without hash": ({}, {1003: ["fleet/default"]}, "ear.structure"),
    "2 status True": ({1000: True}, {}, "ear.structure"),
    "2 status 3": ({1000: 3}, {1000: 3}, "ear.structure"),
    "2 vector entry 8": ({}, {1001: {8: 2}}, "ear.structure"),
    "2 vector value True": ({}, {1001: {0: True}}, "ear.structure"),
    "2 verifier without build": ({1004: {0: "x"}}, {}, "ear.structure"),
    "2 ueid is text": ({256: "x" * 33}, {}, "ear.structure"),
    "2 time is text": ({6: "now"}, {}, "ear.structure"),
    "2 unknown root of trust": ({}, {-71021: "Perfect"}, "ear.structure"),
    "3 expired": ({6: NOW - 300, 4: NOW}, {}, "ear.time"),
    "3 from the future": ({6: NOW + 60, 4: NOW + 120}, {}, "ear.time"),
    "3 lives too long": ({4: NOW + 301}, {}, "ear.time"),
    "3 ends before it begins": ({6: NOW + 5, 4: NOW + 4}, {}, "ear.time"),
    "4 other nonce outside": ({10: bytes(32)}, {}, "ear.nonce"),
    "4 other nonce inside": ({}, {10: bytes(32)}, "ear.nonce"),
    "5 better outside than inside": ({}, {1000: 96}, "ear.status"),
    "5 better than its worst entry": ({}, {1001: {0: 96, 2: 3}}, "ear.status"),
    "5 affirming although refused": ({}, {-71020: "ref.code"}, "ear.status"),
    "5 affirming although self-reported": ({}, {-71021: "SelfReported"}, "ear.status"),
    "5 affirming without an executable": ({}, {1001: {0: 2}}, "ear.status"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_result_has_its_own_code(name: str) -> None:
    outer, inner, code = BAD[name]
    data = changed(outer, inner)
    rejects(code, lambda: read(data))


def test_who_signed_and_that_nothing_was_changed() -> None:
    honest = minted(once())
    rejects("ear.verifier", lambda: ear.check(honest, {}, nonce=NONCE, now=NOW))
    stranger = private_key(Alg.ES256, b"stranger").public_key()
    rejects("sig.invalid", lambda: ear.check(honest, dict.fromkeys(KEYS, stranger), nonce=NONCE, now=NOW))
    rejects("ear.nonce", lambda: read(honest, nonce=bytes(32)))
    rejects("ear.time", lambda: read(honest, now=NOW + 300))
    for bit in range(0, len(honest) * 8, 7):
        flipped = bytearray(honest)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Reject):
            read(bytes(flipped))


@pytest.mark.parametrize(
    "changes",
    [{"nonce": bytes(32)}, {"ueid": bytes(33)}, {"ttl": 0}, {"ttl": 301}, {"policy_name": ""}, {"policy_name": "a#b"}],
)
def test_mint_refuses_what_does_not_fit_the_verdict(changes: dict[str, Any]) -> None:
    verdict = once()
    with pytest.raises(ValueError, match=r"nonce|device|lives|policy name"):
        minted(verdict, **changes)


def test_verifier_names_are_text() -> None:
    with pytest.raises(ValueError, match="printable"):
        ear.Verifier("", "1")
