# SPDX-License-Identifier: Apache-2.0
"""Listing tokens: what is signed comes back, and nothing else does."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation import cose
from attestation.cbor import dumps, strict_loads
from attestation.discovery import listing as lst
from attestation.errors import Code, Reject
from attestation.keys import key_id
from attestation.policy import Measurement, RootOfTrust

KEY = ec.derive_private_key(77, ec.SECP256R1())
NEXT = ec.derive_private_key(78, ec.SECP256R1())
KEYS = lst.by_key_id(KEY.public_key(), NEXT.public_key())


def listing(**changes: Any) -> lst.Listing:
    fields: dict[str, Any] = {
        "ueid": b"\x01" + b"u" * 32,
        "measurement": Measurement(-44, b"m" * 64),
        "application": "porch",
        "version": "2.0.0",
        "boot_id": b"b" * 16,
        "evidence_sha256": b"e" * 32,
        "policy_hash": b"p" * 32,
        "endpoint": "192.0.2.7:80",
        "tier": RootOfTrust.SIGNED_BOOT,
    }
    return lst.Listing(**fields | changes)


def test_what_is_signed_comes_back() -> None:
    for alg, size in ((-16, 32), (-43, 48), (-44, 64)):
        told = listing(measurement=Measurement(alg, b"m" * size))
        text = lst.encode_token(lst.mint_listing(told, KEY))
        assert lst.verify_listing(lst.decode_token(text), KEYS) == told
    assert told.device_id == "01" + "75" * 32


def test_rule_3_two_keys_and_no_third() -> None:
    assert lst.verify_listing(lst.mint_listing(listing(), NEXT), KEYS) == listing()
    token = lst.mint_listing(listing(), ec.derive_private_key(79, ec.SECP256R1()))
    with pytest.raises(Reject) as caught:
        lst.verify_listing(token, KEYS)
    assert caught.value.code is Code.STATEMENT_KEY


def test_a_key_id_does_not_help_a_foreign_key() -> None:
    foreign = ec.derive_private_key(79, ec.SECP256R1())
    payload = cose.parse(lst.mint_listing(listing(), KEY)).payload
    token = cose.sign(payload, foreign, content_type=lst.CONTENT_TYPE, kid=key_id(KEY.public_key()))
    with pytest.raises(Reject) as caught:
        lst.verify_listing(token, KEYS)
    assert caught.value.code is Code.SIG_INVALID


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    token = bytearray(lst.mint_listing(listing(), KEY))
    at = data.draw(st.integers(0, len(token) - 1))
    token[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Reject):
        lst.verify_listing(bytes(token), KEYS)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({1: None}, "ueid"),
        ({9: None}, "tier"),
        ({10: 1}, "unknown label 10"),
        ({2: [-16, b"m" * 64]}, "do not fit hash algorithm"),
        ({2: [-7, b"m" * 32]}, "do not fit hash algorithm"),
        ({2: b"m"}, "measurement"),
        ({5: b"b" * 15}, "boot_id"),
        ({6: b""}, "evidence_sha256"),
        ({8: ""}, "endpoint"),
        ({9: "Superb"}, "tier"),
        ({4: 7}, "version"),
    ],
)
def test_rule_2_all_fields_and_no_others(labels: dict[int, Any], names: str) -> None:
    content: Any = strict_loads(cose.parse(lst.mint_listing(listing(), KEY)).payload)
    content |= labels
    payload = dumps({label: value for label, value in content.items() if value is not None})
    token = cose.sign(payload, KEY, content_type=lst.CONTENT_TYPE, kid=key_id(KEY.public_key()))
    with pytest.raises(Reject) as caught:
        lst.verify_listing(token, KEYS)
    assert caught.value.code is Code.LISTING_STRUCTURE
    assert names in caught.value.message


def test_rule_1_es256_and_its_own_content_type() -> None:
    payload = cose.parse(lst.mint_listing(listing(), KEY)).payload
    other = ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    kid = key_id(other.public_key())
    with pytest.raises(Reject) as caught:
        lst.verify_listing(
            cose.sign(payload, other, content_type=lst.CONTENT_TYPE, kid=kid), lst.by_key_id(other.public_key())
        )
    assert caught.value.code is Code.COSE_ALG
    with pytest.raises(Reject) as caught:
        lst.mint_listing(listing(), other)
    assert caught.value.code is Code.COSE_ALG
    grant = cose.sign(payload, KEY, content_type="application/vnd.flashjob.grant+cbor", kid=key_id(KEY.public_key()))
    with pytest.raises(Reject) as caught:
        lst.verify_listing(grant, KEYS)
    assert caught.value.code is Code.COSE_CONTENTTYPE
    with pytest.raises(Reject) as caught:
        lst.verify_listing(bytes(1025), KEYS)
    assert caught.value.code is Code.SIZE


@pytest.mark.parametrize("change", ["{}=", "{} ", "\n{}", "+{}", "é{}", "{}A"])
def test_rule_1_one_form_as_property(change: str) -> None:
    text = change.format(lst.encode_token(lst.mint_listing(listing(), KEY)))
    with pytest.raises(Reject):
        lst.verify_listing(lst.decode_token(text), KEYS)


def test_same_but_for_evidence() -> None:
    assert listing().same_but_for_evidence(listing(evidence_sha256=b"f" * 32))
    assert not listing().same_but_for_evidence(listing(boot_id=b"c" * 16))


def test_a_listing_that_cannot_be_told_is_not_made() -> None:
    with pytest.raises(ValidationError):
        listing(boot_id=b"")
