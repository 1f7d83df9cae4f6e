# SPDX-License-Identifier: Apache-2.0
"""The policy model, and the one rule for acceptable measurements."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation import keys
from attestation.keys import Alg
from attestation.policy import (
    Acceptance,
    ApplicationRules,
    AttestationPolicySpec,
    DenyRules,
    Measurement,
    RootOfTrust,
    acceptable_measurement,
    is_denied,
    policy_hash,
)
from tests.unit.attestation.world import private_key, ref

ONE, TWO = Measurement(-44, b"1" * 64), Measurement(-44, b"2" * 64)
PEM = keys.to_pem(private_key(Alg.ES256, b"signer").public_key())


def parse(**fields: Any) -> AttestationPolicySpec:
    return AttestationPolicySpec.model_validate_json(json.dumps(fields))


def test_default_accepts_nothing_and_demands_signed_boot() -> None:
    policy = parse()
    assert acceptable_measurement(ONE, policy) is Acceptance.UNKNOWN
    assert policy.min_root_of_trust is RootOfTrust.SIGNED_BOOT
    assert policy.required_signers is None
    assert policy.bootloader.measurements == ()


@given(st.sets(st.sampled_from(["deny", "policy", "confirmed", "pinned"])))
def test_rules_1_to_5_in_their_order(places: set[str]) -> None:
    policy = AttestationPolicySpec(
        application=ApplicationRules(measurements=(ref(ONE),) if "policy" in places else ()),
        deny=DenyRules(measurements=(ref(ONE),) if "deny" in places else ()),
    )
    result = acceptable_measurement(
        ONE, policy, [TWO, ONE] if "confirmed" in places else [TWO], [TWO, ONE] if "pinned" in places else [TWO]
    )
    order = [
        ("deny", Acceptance.DENIED),
        ("policy", Acceptance.POLICY),
        ("confirmed", Acceptance.CONFIRMED),
        ("pinned", Acceptance.PINNED),
    ]
    assert result is next((verdict for place, verdict in order if place in places), Acceptance.UNKNOWN)
    assert result.ok == ("deny" not in places and bool(places))
    assert is_denied(ONE, policy) == ("deny" in places)


def test_same_bytes_under_another_algorithm_are_another_measurement() -> None:
    policy = AttestationPolicySpec(application=ApplicationRules(measurements=(ref(ONE),)))
    assert not acceptable_measurement(Measurement(-16, ONE.value), policy).ok


def test_roots_of_trust_are_ordered() -> None:
    weak, signed, strong = RootOfTrust
    assert strong.at_least(signed)
    assert signed.at_least(weak)
    assert signed.at_least(signed)
    assert not weak.at_least(signed)
    assert not signed.at_least(strong)


BAD: list[dict[str, Any]] = [
    {"unknown": 1},
    {"algorithms": []},
    {"algorithms": ["RS256"]},
    {"modes": ["normal"]},
    {"minRootOfTrust": "None"},
    {"nonceTtlSeconds": 9},
    {"nonceTtlSeconds": "120"},
    {"nonceTtlSeconds": 601},
    {"application": {"minSecurityVersion": True}},
    {"application": {"minSecurityVersion": -1}},
    {"application": {"measurements": [{"alg": -16, "value": "ab" * 64}]}},
    {"application": {"measurements": [{"alg": -16, "value": "AB" * 32}]}},
    {"application": {"measurements": [{"alg": -16, "value": "ab" * 31}]}},
    {"authorityHashes": ["xyz"]},
    {"deny": {"keys": ["ab"]}},
    {"requiredSigners": {"keys": []}},
    {"requiredSigners": {"keys": [{"name": "ci", "publicKey": "text"}]}},
    {"requiredSigners": {"keys": [{"name": "ci", "publicKey": PEM}], "threshold": 2}},
    {"requiredSigners": {"keys": [{"name": "ci", "publicKey": PEM}], "threshold": 0}},
    {"requiredSigners": {"keys": [{"name": "a", "publicKey": PEM}, {"name": "b", "publicKey": PEM + "\n"}]}},
]


@pytest.mark.parametrize("fields", BAD, ids=[json.dumps(fields)[:60] for fields in BAD])
def test_71_bad_policy_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(**fields)


def test_hash_covers_what_is_judged_and_nothing_else() -> None:
    assert policy_hash(parse()) == policy_hash(parse(nonceTtlSeconds=120))
    assert policy_hash(parse()) != policy_hash(parse(nonceTtlSeconds=121))
    spelled = parse(**json.loads(parse().model_dump_json(by_alias=True)))
    assert policy_hash(spelled) == policy_hash(parse())


def test_one_signer() -> None:
    policy = parse(requiredSigners={"keys": [{"name": "ci", "publicKey": PEM}]})
    assert policy.required_signers is not None
    assert keys.from_pem(policy.required_signers.keys[0].public_key)


def test_a_measurement_names_its_algorithm() -> None:
    assert Measurement.of_hash(b"\xab" * 32).full == "sha256:" + "ab" * 32
    assert Measurement.of_hash(b"\xab" * 64).full == "sha512:" + "ab" * 64
    assert str(Measurement.of_hash(b"\xab" * 64)) == "sha512:abababababab...", "messages show whom, not all of it"
    with pytest.raises(ValueError, match="16"):
        Measurement.of_hash(bytes(16))
