# SPDX-License-Identifier: Apache-2.0
"""Release statements: strict to read, checked against the owner's keys."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from attestation import cose, release, statement
from attestation.cbor import dumps
from attestation.errors import Code, Reject
from attestation.keys import PrivateKey, key_id
from attestation.statement import Digest, by_key_id

KEY = ec.derive_private_key(51, ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"r" * 32)
SHORT, LONG = Digest(alg=-16, value=b"\x01" * 32), Digest(alg=-44, value=b"\x02" * 64)
GOOD: dict[int, Any] = {
    1: "porch", 2: "2.1.0", 3: 9, 4: [0, 65535], 5: 1, 6: 42, 7: [SHORT.to_cbor(), LONG.to_cbor()], 8: 1_600_000,
}  # fmt: skip


def signed(labels: Any, key: PrivateKey = KEY, **kwargs: Any) -> bytes:
    options: dict[str, Any] = {"content_type": release.CONTENT_TYPE, "kid": key_id(key.public_key())} | kwargs
    return cose.sign(dumps(labels), key, **options)


@pytest.mark.parametrize("key", [KEY, ED], ids=["ES256", "EdDSA"])
def test_a_release_is_read_and_verified(key: PrivateKey) -> None:
    released = release.verify(signed(GOOD, key), by_key_id(key.public_key()))
    assert (released.name, released.version, released.chip_id, released.sequence) == ("porch", "2.1.0", 9, 42)
    assert released.contains(SHORT)
    assert released.contains(LONG)
    assert not released.contains(Digest(alg=-16, value=bytes(32)))


def test_what_the_model_writes_is_what_the_layout_says() -> None:
    content = release.parse(signed(GOOD)).content
    assert statement.write(content, release.LABELS, release.CONTENT_TYPE, KEY) == signed(GOOD)


def test_revisions_are_a_closed_range() -> None:
    content = release.parse(signed(GOOD | {4: [100, 199]})).content
    assert [content.accepts_revision(revision) for revision in (99, 100, 199, 200)] == [False, True, True, False]


def test_keys_and_signatures() -> None:
    with pytest.raises(Reject) as caught:
        release.verify(signed(GOOD), by_key_id(ED.public_key()))
    assert caught.value.code is Code.STATEMENT_KEY
    data = signed(GOOD)
    with pytest.raises(Reject) as caught:
        release.verify(data[:-1] + bytes([data[-1] ^ 1]), by_key_id(KEY.public_key()))
    assert caught.value.code is Code.SIG_INVALID
    with pytest.raises(Reject) as caught:
        release.verify(signed(GOOD, content_type="application/vnd.flashjob.grant+cbor"), by_key_id(KEY.public_key()))
    assert caught.value.code is Code.COSE_CONTENTTYPE, "a grant is no release"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({1: ""}, "name"),
        ({1: "x" * 65}, "name"),
        ({1: b"porch"}, "name"),
        ({2: 2}, "version"),
        ({3: 65536}, "chip_id"),
        ({3: True}, "chip_id"),
        ({4: [5, 4]}, "no range"),
        ({4: [0]}, "revisions"),
        ({4: 0}, "revisions"),
        ({5: -1}, "secure_version"),
        ({6: None}, "sequence"),
        ({6: "42"}, "sequence"),
        ({7: []}, "measurements"),
        ({7: [SHORT.to_cbor(), SHORT.to_cbor()]}, "same algorithm"),
        ({7: SHORT.to_cbor()}, "measurements"),
        ({8: 0}, "image_size"),
        ({9: 1}, "unknown label 9"),
    ],
)
def test_rules_2_and_3_a_wrong_field_is_refused_and_named(change: dict[int, Any], what: str) -> None:
    labels = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(Reject, match=what) as caught:
        release.parse(signed(labels))
    assert caught.value.code is Code.RELEASE_STRUCTURE


def test_rule_1_size() -> None:
    with pytest.raises(Reject) as caught:
        release.parse(bytes(769))
    assert caught.value.code is Code.SIZE


@given(st.binary(max_size=800))
def test_garbage_is_rejected_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Reject):
        release.parse(data)
