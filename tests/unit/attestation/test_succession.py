# SPDX-License-Identifier: Apache-2.0
"""One owner key follows another: every rule, and a zoo of statements that no device takes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from attestation import cose, grants, keys, succession
from attestation.cbor import dumps
from attestation.errors import Reject
from attestation.keys import PrivateKey, key_id
from attestation.statement import Digest
from attestation.succession import CONTENT_TYPE, Kind, Slots, mint, parse, take
from tests.unit.attestation.world import rejects


def key(number: int) -> PrivateKey:
    return ec.derive_private_key(500 + number, ec.SECP256R1())


def kid(one: PrivateKey) -> bytes:
    return key_id(one.public_key())


def slots(*held: PrivateKey) -> Slots:
    return Slots({kid(one): one.public_key() for one in held})


OLD, NEW, NEXT, GRANT, FOREIGN = map(key, range(5))
ED = ed25519.Ed25519PrivateKey.from_private_bytes(b"s" * 32)
HELD = {Kind.RELEASE: slots(OLD), Kind.GRANT: slots(GRANT)}
FIRST = mint(Kind.RELEASE, NEW.public_key(), 1, OLD)


def held_after(data: bytes, held: dict[Kind, Slots] | None = None) -> dict[Kind, Slots]:
    kind, now = take(data, held or HELD)
    return {**(held or HELD), kind: now}


def statement(changes: dict[int, Any] | None = None, signer: PrivateKey = OLD, **headers: Any) -> bytes:
    """A statement with one thing changed; a label changed to None is left out."""
    labels = {1: 1, 2: keys.to_cose(NEW.public_key()), 3: 1, **(changes or {})}
    payload = dumps({label: value for label, value in labels.items() if value is not None})
    return cose.sign(payload, signer, **{"content_type": CONTENT_TYPE, "kid": kid(signer), **headers})


@pytest.mark.parametrize("successor", [NEW, ED], ids=["P-256", "Ed25519"])
@pytest.mark.parametrize("kind", Kind)
def test_what_is_minted_is_read_back(kind: Kind, successor: PrivateKey) -> None:
    signer = OLD if kind is Kind.RELEASE else GRANT
    data = mint(kind, successor.public_key(), 7, signer)
    told = parse(data).content
    assert (told.kind, kid_of(told.successor), told.generation) == (kind, kid(successor), 7)
    assert len(data) <= succession.MAX_SUCCESSION_BYTES
    assert take(data, HELD)[1].keys.keys() == {kid(signer), kid(successor)}


def kid_of(public: keys.PublicKey) -> bytes:
    return key_id(public)


def test_8_the_successor_takes_the_place_of_the_key_that_did_not_sign() -> None:
    both = held_after(FIRST)
    assert both[Kind.RELEASE].keys.keys() == {kid(OLD), kid(NEW)}
    assert both[Kind.GRANT] == HELD[Kind.GRANT]
    after = held_after(mint(Kind.RELEASE, NEXT.public_key(), 2, NEW), both)
    assert after[Kind.RELEASE].keys.keys() == {kid(NEW), kid(NEXT)}
    assert after[Kind.RELEASE].generation == 2


def test_8_of_two_keys_the_one_that_signs_first_drives_the_other_out() -> None:
    held = {**HELD, Kind.RELEASE: slots(OLD, NEW)}
    saved = held_after(mint(Kind.RELEASE, NEXT.public_key(), 1, NEW), held)
    assert saved[Kind.RELEASE].keys.keys() == {kid(NEW), kid(NEXT)}
    rejects("statement.key", lambda: take(mint(Kind.RELEASE, FOREIGN.public_key(), 2, OLD), saved))
    robbed = held_after(mint(Kind.RELEASE, FOREIGN.public_key(), 1, OLD), held)
    assert robbed[Kind.RELEASE].keys.keys() == {kid(OLD), kid(FOREIGN)}


def test_4_the_same_statement_again_gets_the_same_answer() -> None:
    once = held_after(FIRST)
    assert held_after(FIRST, once) == once


def test_4_an_older_one_is_not_the_same() -> None:
    later = held_after(mint(Kind.RELEASE, NEXT.public_key(), 2, NEW), held_after(FIRST))
    rejects("statement.key", lambda: take(FIRST, later))


def test_5_a_grant_key_never_makes_a_release_key() -> None:
    rejects("statement.key", lambda: take(mint(Kind.RELEASE, NEW.public_key(), 1, GRANT), HELD))
    rejects("statement.key", lambda: take(mint(Kind.GRANT, NEW.public_key(), 1, OLD), HELD))
    rejects("statement.key", lambda: take(mint(Kind.RELEASE, NEW.public_key(), 1, FOREIGN), HELD))


@pytest.mark.parametrize("generation", [1, 4, 5])
def test_6_generations_only_rise(generation: int) -> None:
    held = {**HELD, Kind.RELEASE: Slots(slots(OLD).keys, 5)}
    data = mint(Kind.RELEASE, NEW.public_key(), generation, OLD)
    rejects("succession.generation", lambda: take(data, held))
    assert held_after(mint(Kind.RELEASE, NEW.public_key(), 6, OLD), held)[Kind.RELEASE].generation == 6


def test_6_generations_are_counted_for_each_kind() -> None:
    held = held_after(mint(Kind.RELEASE, NEW.public_key(), 9, OLD))
    assert held_after(mint(Kind.GRANT, NEXT.public_key(), 1, GRANT), held)[Kind.GRANT].generation == 1


def test_7_a_key_is_held_once_and_as_one_kind() -> None:
    both = held_after(FIRST)
    rejects("succession.held", lambda: take(mint(Kind.RELEASE, NEW.public_key(), 2, OLD), both))
    rejects("succession.held", lambda: take(mint(Kind.RELEASE, GRANT.public_key(), 1, OLD), HELD))


SMALL = {1: 1, 3: -8, 4: [2], -1: 6, -2: bytes(32)}
P384 = keys.to_cose(ec.derive_private_key(9, ec.SECP384R1()).public_key())
OFF_CURVE = {**keys.to_cose(NEW.public_key()), -3: bytes(32)}
OTHER_STATEMENT = grants.mint(
    grants.CancelGrant(
        ueid=b"\1" + bytes(32),
        device_nonce=bytes(16),
        grant_id=b"g" * 16,
        fence=1,
        result=Digest(alg=-16, value=bytes(32)),
    ),
    OLD,
)
ZOO: dict[str, tuple[str, bytes]] = {
    "nothing": ("size", b""),
    "too long": ("size", FIRST + bytes(succession.MAX_SUCCESSION_BYTES)),
    "another statement of the owner": ("cose.contenttype", OTHER_STATEMENT),
    "no kid": ("succession.structure", statement(kid=None)),
    "tagged": ("cose.tag", statement(tagged=True)),
    "an unprotected header": ("cose.header", statement(unprotected={4: b"x"}, kid=None)),
    "no kind": ("succession.structure", statement({1: None})),
    "kind 0": ("succession.structure", statement({1: 0})),
    "kind 3": ("succession.structure", statement({1: 3})),
    "kind true": ("succession.structure", statement({1: True})),
    "no successor": ("succession.structure", statement({2: None})),
    "an encoded successor": ("succession.structure", statement({2: keys.encode_cose(NEW.public_key())})),
    "a successor of small order": ("key.smallorder", statement({2: SMALL})),
    "a successor off its curve": ("key.point", statement({2: OFF_CURVE})),
    "a successor with its private part": ("key.private", statement({2: {**keys.to_cose(NEW.public_key()), -4: bytes(32)}})),
    "a P-384 successor": ("key.curve", statement({2: P384})),
    "no generation": ("succession.structure", statement({3: None})),
    "generation 0": ("succession.structure", statement({3: 0})),
    "a negative generation": ("succession.structure", statement({3: -1})),
    "generation true": ("succession.structure", statement({3: True})),
    "a label too many": ("succession.structure", statement({4: 1})),
    "a list": ("succession.structure", cose.sign(dumps([1]), OLD, content_type=CONTENT_TYPE, kid=kid(OLD))),
    "another key's signature under this kid": ("sig.invalid", statement(signer=FOREIGN, kid=kid(OLD))),
    "another algorithm under this kid": ("cose.keyalg", statement(signer=ED, kid=kid(OLD))),
}  # fmt: skip


@pytest.mark.parametrize(("code", "data"), ZOO.values(), ids=ZOO)
def test_the_zoo(code: str, data: bytes) -> None:
    rejects(code, lambda: take(data, HELD))


def test_nothing_is_minted_that_no_device_takes() -> None:
    rejects("succession.structure", lambda: mint(Kind.RELEASE, NEW.public_key(), 0, OLD))
    rejects("succession.structure", lambda: mint(Kind.RELEASE, OLD.public_key(), 1, OLD))
    p384 = ec.derive_private_key(9, ec.SECP384R1())
    rejects("key.curve", lambda: mint(Kind.RELEASE, p384.public_key(), 1, OLD))
    rejects("key.curve", lambda: mint(Kind.RELEASE, NEW.public_key(), 1, p384))


def test_every_bit_counts() -> None:
    for position in range(len(FIRST) * 8):
        bent = bytearray(FIRST)
        bent[position // 8] ^= 1 << position % 8
        with pytest.raises(Reject):
            take(bytes(bent), HELD)
    for length in range(len(FIRST)):
        with pytest.raises(Reject):
            take(FIRST[:length], HELD)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 9)), max_size=12))
def test_whatever_comes_two_keys_at_most_and_generations_that_rise(
    statements: list[tuple[int, int, int]],
) -> None:
    held = dict(HELD)
    for signer, successor, generation in statements:
        if signer == successor:
            continue
        before = held[Kind.RELEASE]
        data = mint(Kind.RELEASE, key(successor).public_key(), generation, key(signer))
        try:
            _, after = take(data, held)
        except Reject:
            continue
        again = hashlib.sha256(data).digest() == before.last
        assert kid(key(signer)) in before.keys or again
        assert len(after.keys) == 2
        assert after == before if again else after.generation > before.generation
        held[Kind.RELEASE] = after
