# SPDX-License-Identifier: Apache-2.0
"""The verdict under mutation: whatever is changed, nothing but a verdict comes out, and none that accepts."""

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import cose, keys
from attestation.cbor import dumps, strict_loads
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.replay import InMemorySingleUse
from attestation.verifier import verify, verify_once
from tests.unit.attestation.world import NOW, Minted, context, rejects

DEVICE = Minted()
EVIDENCE = DEVICE.evidence()


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 8 * len(EVIDENCE) - 1))
def test_flipped_bits_reject(bit: int) -> None:
    data = bytearray(EVIDENCE)
    data[bit // 8] ^= 1 << bit % 8
    assert not verify(bytes(data), context(DEVICE)).accepted


@pytest.mark.slow
@pytest.mark.parametrize("alg", [Alg.ES256, Alg.EDDSA])
def test_every_single_flipped_bit_rejects(alg: Alg) -> None:
    device = Minted(alg=alg)
    evidence, setting = device.evidence(), context(device)
    for bit in range(8 * len(evidence)):
        data = bytearray(evidence)
        data[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(data), setting).accepted, bit


def test_every_truncation_rejects() -> None:
    setting = context(DEVICE)
    for size in range(len(EVIDENCE)):
        assert not verify(EVIDENCE[:size], setting).accepted, size


@given(st.binary(max_size=300))
def test_garbage_is_a_verdict_and_never_an_exception(data: bytes) -> None:
    assert not verify(data, context(DEVICE)).accepted
    wrapped = dumps([1, keys.dice_id(DEVICE.key("uds").public_key()), [data, data], data])
    assert not verify(wrapped, context(DEVICE)).accepted
    signed = cose.sign(data, DEVICE.key("app"))
    assert not verify(DEVICE.evidence(token=signed), context(DEVICE)).accepted
    certificate = cose.sign(data, DEVICE.key("boot"))
    assert not verify(DEVICE.evidence([DEVICE.certificate(0), certificate]), context(DEVICE)).accepted


ODD: list[Any] = [0, -1, 2**64 - 1, True, b"", bytes(20), "", "x" * 40, [], {}, [1, 2], {1: 2}, {"a": 1}, "\u202e"]


def spoiled(value: Any, random: Random) -> Any:
    """The value with one thing wrong somewhere inside, also inside encoded CBOR."""
    chance = random.random()
    if chance < 0.1 or isinstance(value, int | str):
        return random.choice(ODD)
    if isinstance(value, bytes):
        with contextlib.suppress(Reject):
            inner = strict_loads(value)
            if isinstance(inner, list | dict):
                return dumps(spoiled(inner, random))
        flipped = bytearray(value or b"\x00")
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        return bytes(flipped)
    if not value:
        return random.choice(ODD)
    if isinstance(value, dict):
        label = random.choice(list(value))
        rest = {key: item for key, item in value.items() if key != label}
        if chance < 0.2:
            return rest
        return (
            {**value, random.choice([0, -70002, "t"]): 1}
            if chance < 0.3
            else {**rest, label: spoiled(value[label], random)}
        )
    position = random.randrange(len(value))
    middle = [] if chance < 0.2 else [spoiled(value[position], random)]
    return [*value[:position], *middle, *value[position + 1 :]]


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_spoiled_structure_is_a_verdict_and_never_accepted(random: Random) -> None:
    evidence = dumps(spoiled(strict_loads(EVIDENCE), random))
    assert evidence == EVIDENCE or not verify(evidence, context(DEVICE)).accepted


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_spoiled_claims_under_the_right_signature_never_raise(random: Random) -> None:
    """What a compromised application or bootloader could sign: any verdict, no exception."""
    token = cose.sign(dumps(spoiled(DEVICE.claims(), random)), DEVICE.key("app"))
    assert verify(DEVICE.evidence(token=token), context(DEVICE)).trail
    chain, layer = DEVICE.chain(), random.randrange(2)
    claims = spoiled(dict(DEVICE.certificate_claims(layer)), random)
    chain[layer] = cose.sign(dumps(claims), DEVICE.key(("uds", "boot")[layer]))
    assert verify(DEVICE.evidence(chain), context(DEVICE)).trail


@given(st.lists(st.sampled_from([b"n" * 32, b"m" * 32, DEVICE.fresh_nonce()]), min_size=1, max_size=4))
def test_accept_implies_that_the_nonce_was_ours_fresh_and_is_now_used(nonces: list[bytes]) -> None:
    used, seen = InMemorySingleUse(), set[bytes]()
    for value in nonces:
        verdict = verify_once(Minted(nonce=value).evidence(), context(DEVICE), used)
        assert verdict.accepted == (value == DEVICE.fresh_nonce() and value not in seen)
        if verdict.accepted:
            seen.add(value)
            rejects("replay", lambda: used.consume(DEVICE.fresh_nonce(), until=NOW + 120, now=NOW))
