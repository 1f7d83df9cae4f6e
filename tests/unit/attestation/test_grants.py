# SPDX-License-Identifier: Apache-2.0
"""Grants: what goes in comes out, and nothing else passes."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation import cose, grants
from attestation.cbor import dumps, strict_loads
from attestation.errors import Code, Reject
from attestation.grants import CancelGrant, ConfirmGrant, Grant, InstallGrant, PayloadFormat, RevertGrant
from attestation.keys import PrivateKey, key_id
from attestation.statement import Digest, by_key_id

KEY = ec.derive_private_key(41, ec.SECP256R1())
OTHER = ec.derive_private_key(42, ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"e" * 32)
DIGEST = Digest(alg=-16, value=b"\x06" * 32)
COMMON: dict[str, Any] = {
    "ueid": b"\x01" + b"\x02" * 32,
    "device_nonce": b"\x03" * 16,
    "grant_id": b"\x04" * 16,
    "fence": 5,
    "result": DIGEST,
}
INSTALL = InstallGrant(
    **COMMON, payload_sha256=b"\x07" * 32, payload_size=8, release=b"\x0b" * 230, confirm_seconds=300
)
DELTA = InstallGrant.model_validate(
    {**INSTALL.model_dump(), "payload_format": PayloadFormat.ESP_DELTA, "base": DIGEST, "allow_downgrade": True,
     "result": DIGEST}
)  # fmt: skip
CONFIRM = ConfirmGrant(**COMMON, second_nonce=b"\x0e" * 32)
ALL: list[Grant] = [INSTALL, DELTA, CONFIRM, RevertGrant(**COMMON), CancelGrant(**COMMON)]


@pytest.mark.parametrize("grant", ALL, ids=lambda grant: type(grant).__name__)
@pytest.mark.parametrize("key", [KEY, ED], ids=["ES256", "EdDSA"])
def test_what_is_minted_is_read_back(grant: Grant, key: PrivateKey) -> None:
    signed = grants.parse(grants.mint(grant, key))
    assert signed.content == grant
    assert signed.kid == key_id(key.public_key())
    assert grants.check(signed, by_key_id(OTHER.public_key(), key.public_key())) == grant


def test_the_layout_is_the_documented_one() -> None:
    message = strict_loads(grants.mint(DELTA, KEY))
    assert isinstance(message, list)
    protected, unprotected, payload, signature = message
    assert isinstance(protected, bytes)
    assert isinstance(payload, bytes)
    assert strict_loads(protected) == {1: -7, 3: "application/vnd.flashjob.grant+cbor", 4: key_id(KEY.public_key())}
    assert (unprotected, len(signature)) == ({}, 64)  # type: ignore[arg-type]
    assert strict_loads(payload) == {
        1: 1, 2: COMMON["ueid"], 3: b"\x03" * 16, 4: b"\x04" * 16, 5: 5, 6: [-16, b"\x06" * 32], 7: b"\x07" * 32, 8: 8,
        9: 1, 10: [-16, b"\x06" * 32], 11: b"\x0b" * 230, 12: 300, 13: True,
    }  # fmt: skip
    confirm = cose.parse(grants.mint(CONFIRM, KEY)).payload
    assert strict_loads(confirm)[14] == b"\x0e" * 32  # type: ignore[index]
    assert 10 not in strict_loads(cose.parse(grants.mint(INSTALL, KEY)).payload)  # type: ignore[operator]


def test_signatures_and_keys_are_checked() -> None:
    data = grants.mint(CONFIRM, KEY)
    with pytest.raises(Reject) as caught:
        grants.check(grants.parse(data), by_key_id(OTHER.public_key()))
    assert caught.value.code is Code.STATEMENT_KEY
    forged = grants.parse(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Reject) as caught:
        grants.check(forged, by_key_id(KEY.public_key()))
    assert caught.value.code is Code.SIG_INVALID
    with pytest.raises(Reject) as caught:
        grants.check(grants.parse(data), {key_id(KEY.public_key()): ED.public_key()})
    assert caught.value.code is Code.COSE_KEYALG


GOOD: dict[int, Any] = {
    1: 1, 2: COMMON["ueid"], 3: b"\x03" * 16, 4: b"\x04" * 16, 5: 5, 6: [-16, bytes(32)], 7: bytes(32), 8: 8, 9: 0,
    11: b"r", 12: 300,
}  # fmt: skip
GOOD_CONFIRM: dict[int, Any] = {**{k: GOOD[k] for k in range(2, 7)}, 1: 2, 14: bytes(32)}


def signed(labels: Any, **kwargs: Any) -> bytes:
    options: dict[str, Any] = {"content_type": grants.CONTENT_TYPE, "kid": b"k" * 8} | kwargs
    return cose.sign(dumps(labels), KEY, **options)


def test_the_good_labels_are_good() -> None:
    assert isinstance(grants.parse(signed(GOOD)).content, InstallGrant)
    assert isinstance(grants.parse(signed(GOOD_CONFIRM)).content, ConfirmGrant)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({1: 0}, "verb"),
        ({1: 5}, "verb"),
        ({1: True}, "verb"),
        ({1: None}, "verb"),
        ({2: b"\x01" * 34}, "ueid"),
        ({2: "text"}, "ueid"),
        ({3: bytes(15)}, "device_nonce"),
        ({4: bytes(17)}, "grant_id"),
        ({4: bytes(16)}, "sixteen zero bytes"),
        ({5: -1}, "fence"),
        ({5: True}, "fence"),
        ({5: None}, "fence"),
        ({6: [-16, bytes(31)]}, "result"),
        ({6: [-7, bytes(32)]}, "result"),
        ({6: [-16, bytes(32), 0]}, "result"),
        ({6: bytes(32)}, "result"),
        ({7: bytes(64)}, "payload_sha256"),
        ({8: 0}, "payload_size"),
        ({8: 2**32}, "payload_size"),
        ({9: 2}, "payload_format"),
        ({9: False}, "payload_format"),
        ({9: None}, "payload format"),
        ({9: 1}, "base digest"),
        ({10: [-16, bytes(32)]}, "base digest"),
        ({11: b""}, "release"),
        ({12: 0}, "confirm_seconds"),
        ({13: False}, "allow_downgrade"),
        ({13: 1}, "allow_downgrade"),
        ({14: bytes(32)}, "unknown label 14"),
        ({99: 1}, "unknown label 99"),
    ],
)
def test_rules_2_to_5_a_wrong_field_is_refused_and_named(change: dict[int, Any], what: str) -> None:
    labels = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(Reject, match=what) as caught:
        grants.parse(signed(labels))
    assert caught.value.code is Code.GRANT_STRUCTURE


@pytest.mark.parametrize("change", [{14: bytes(31)}, {14: None}, {7: bytes(32)}])
def test_rule_4_a_confirm_grant_has_its_second_nonce_and_nothing_of_an_install(change: dict[int, Any]) -> None:
    labels = {k: v for k, v in (GOOD_CONFIRM | change).items() if v is not None}
    with pytest.raises(Reject) as caught:
        grants.parse(signed(labels))
    assert caught.value.code is Code.GRANT_STRUCTURE


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (signed([1]), Code.GRANT_STRUCTURE),
        (signed({"1": 1}), Code.GRANT_STRUCTURE),
        (signed(GOOD, kid=None), Code.GRANT_STRUCTURE),
        (signed(GOOD, content_type="application/vnd.flashjob.release+cbor"), Code.COSE_CONTENTTYPE),
        (signed(GOOD, content_type=None), Code.COSE_CONTENTTYPE),
        (signed(GOOD, tagged=True), Code.COSE_TAG),
        (signed(GOOD, protected={16: "x"}), Code.COSE_HEADER),
        (signed(GOOD, unprotected={5: b"x"}), Code.COSE_HEADER),
        (b"", Code.SIZE),
        (bytes(1025), Code.SIZE),
    ],
)
def test_rule_1_the_envelope(data: bytes, code: Code) -> None:
    with pytest.raises(Reject) as caught:
        grants.parse(data)
    assert caught.value.code is code


def test_rule_1_a_grant_that_no_device_would_take_is_not_minted() -> None:
    large = INSTALL.model_copy(update={"release": bytes(768)})
    with pytest.raises(Reject) as caught:
        grants.mint(large, KEY)
    assert caught.value.code is Code.SIZE


def test_models_are_strict_and_frozen() -> None:
    with pytest.raises(ValidationError):
        ConfirmGrant(**COMMON, second_nonce="0" * 32)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        CONFIRM.fence = 6  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Digest(alg=-44, value=bytes(32))


@given(st.binary(max_size=1100))
def test_garbage_is_rejected_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Reject):
        grants.parse(data)


@given(st.integers(0, 8 * 300 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    data = bytearray(grants.mint(CONFIRM, KEY))
    data[(bit // 8) % len(data)] ^= 1 << bit % 8
    with pytest.raises(Reject):
        grants.check(grants.parse(bytes(data)), by_key_id(KEY.public_key()))
