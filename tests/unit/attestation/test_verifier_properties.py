# SPDX-License-Identifier: Apache-2.0
"""The verdict under mutation: whatever is changed, nothing but a verdict comes out, and none that accepts."""

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import cose, dice_cbor, eat, keys, nonce
from attestation.cbor import dumps, strict_loads
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.replay import InMemorySingleUse
from attestation.verifier import Verdict, verify, verify_once
from tests.unit.attestation.world import AUDIENCE, NOW, RING, Minted, context, rejects

DEVICE = Minted()
EVIDENCE = DEVICE.evidence()


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 8 * len(EVIDENCE) - 1))
def test_flipped_bits_reject(bit: int) -> None:
    data = bytearray(EVIDENCE)
    data[bit // 8] ^= 1 << bit % 8
    assert not verify(bytes(data), context(DEVICE)).accepted


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cbor", "x509"])
@pytest.mark.parametrize("alg", [Alg.ES256, Alg.EDDSA])
def test_every_single_flipped_bit_rejects(alg: Alg, form: str) -> None:
    device = Minted(alg=alg)
    evidence, setting = device.evidence(device.x509_chain() if form == "x509" else None), context(device)
    assert verify(evidence, setting).accepted
    for bit in range(8 * len(evidence)):
        data = bytearray(evidence)
        data[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(data), setting).accepted, bit


def test_every_truncation_rejects() -> None:
    setting = context(DEVICE)
    for size in range(len(EVIDENCE)):
        assert not verify(EVIDENCE[:size], setting).accepted, size


@pytest.mark.parametrize("form", ["cbor", "x509"])
def test_every_truncation_of_a_certificate_and_of_the_token_rejects(form: str) -> None:
    """Each cut off in an envelope that is whole, so that the part's own rules must notice."""
    setting, token = context(DEVICE), DEVICE.token()
    chain = DEVICE.x509_chain() if form == "x509" else DEVICE.chain()
    assert verify(DEVICE.evidence(chain, token), setting).accepted
    for size in range(len(token)):
        assert not verify(DEVICE.evidence(chain, token[:size]), setting).accepted, size
    for number, certificate in enumerate(chain):
        for size in range(len(certificate)):
            cut = [*chain[:number], certificate[:size], *chain[number + 1 :]]
            assert not verify(DEVICE.evidence(cut, token), setting).accepted, (number, size)
    for length in range(len(chain)):
        assert not verify(DEVICE.evidence(chain[:length], token), setting).accepted, length


HOSTILE = "\x1b[2J\u202e" * 100


def hostile_answers() -> dict[str, bytes]:
    """Text of an attacker in every place that a message could repeat it from."""
    app, boot = DEVICE.key("app"), DEVICE.key("boot")
    label: dict[Any, Any] = {HOSTILE: 1}
    key: dict[Any, Any] = {**keys.to_cose(app.public_key()), **label}
    claims: dict[Any, Any] = {**DEVICE.certificate_claims(1), **label}
    header = dumps([dumps({1: -7, **label}), {}, b"", bytes(64)])
    certificates = {
        "certificate": cose.sign(dumps(claims), boot),
        "certificate header": header,
        "key": DEVICE.certificate(1, {dice_cbor.SUBJECT_PUBLIC_KEY: dumps(key)}),
        "key type": DEVICE.certificate(1, {dice_cbor.SUBJECT_PUBLIC_KEY: dumps({**key, 1: HOSTILE})}),
        "profile name": DEVICE.certificate(1, {dice_cbor.PROFILE_NAME: HOSTILE}),
    }
    tokens = {
        "claim": cose.sign(dumps({**DEVICE.claims(), **label}), app),
        "profile": DEVICE.token({eat.EAT_PROFILE: HOSTILE}),
        "data image": DEVICE.token({eat.DATA_IMAGES: {HOSTILE[:16]: [-16, b""]}}),
        "token header": header,
        "algorithm": dumps([dumps({1: HOSTILE}), {}, b"", bytes(64)]),
        "content type": cose.sign(b"", app, content_type=HOSTILE),
        "key id": cose.sign(dumps(DEVICE.claims()), app, kid=HOSTILE.encode()),
    }
    return {
        "version": dumps([HOSTILE, b"", [], b""]),
        "twice": b"\x82\x01\xa2" + 2 * (dumps(HOSTILE) + b"\x01"),
        **{name: DEVICE.evidence([DEVICE.certificate(0), data]) for name, data in certificates.items()},
        **{name: DEVICE.evidence(token=data) for name, data in tokens.items()},
    }


@pytest.mark.parametrize("place", hostile_answers())
def test_a_message_is_short_and_printable_whatever_an_attacker_writes(place: str) -> None:
    """Messages go to terminals, logs and statuses."""
    verdict = verify(hostile_answers()[place], context(DEVICE))
    assert not verdict.accepted
    assert_readable(verdict)


def assert_readable(verdict: Verdict) -> None:
    for text in (verdict.message, *(step.detail for step in verdict.trail)):
        assert text.isprintable(), text
        assert len(text) <= 200, text


@given(st.binary(max_size=300))
def test_garbage_is_a_verdict_and_never_an_exception(data: bytes) -> None:
    assert not verify(data, context(DEVICE)).accepted
    wrapped = dumps([1, keys.dice_id(DEVICE.key("uds").public_key()), [data, data], data])
    assert not verify(wrapped, context(DEVICE)).accepted
    signed = cose.sign(data, DEVICE.key("app"))
    assert not verify(DEVICE.evidence(token=signed), context(DEVICE)).accepted
    certificate = cose.sign(data, DEVICE.key("boot"))
    assert not verify(DEVICE.evidence([DEVICE.certificate(0), certificate]), context(DEVICE)).accepted


ODD: list[Any] = [
    0,
    -1,
    2**64 - 1,
    True,
    b"",
    bytes(20),
    "",
    "x" * 40,
    [],
    {},
    [1, 2],
    {1: 2},
    {"a": 1},
    "\u202e",
    HOSTILE,
]


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
            {**value, random.choice([0, -70002, HOSTILE]): 1}
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
    verdict = verify(evidence, context(DEVICE))
    assert evidence == EVIDENCE or not verdict.accepted
    assert_readable(verdict)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_spoiled_claims_under_the_right_signature_never_raise(random: Random) -> None:
    """What a compromised application or bootloader could sign: any verdict, no exception."""
    token = cose.sign(dumps(spoiled(DEVICE.claims(), random)), DEVICE.key("app"))
    assert_readable(verify(DEVICE.evidence(token=token), context(DEVICE)))
    chain, layer = DEVICE.chain(), random.randrange(2)
    claims = spoiled(dict(DEVICE.certificate_claims(layer)), random)
    chain[layer] = cose.sign(dumps(claims), DEVICE.key(("uds", "boot")[layer]))
    assert_readable(verify(DEVICE.evidence(chain), context(DEVICE)))


OTHER = Minted(seed=b"device two")
RINGS = {"current": RING, "previous": nonce.KeyRing(6, RING.keys), "foreign": nonce.KeyRing(7, {7: b"k" * 32})}
QUESTIONS = st.tuples(
    st.sampled_from(list(RINGS)),
    st.sampled_from([DEVICE, DEVICE, OTHER]),
    st.sampled_from([AUDIENCE, AUDIENCE, b"task/2/after"]),
    st.sampled_from([-60, -6, -5, 0, 60, 119, 120, 500]),
    st.sampled_from([b"0123456789", b"9876543210"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(QUESTIONS, min_size=1, max_size=6))
def test_accept_implies_that_the_nonce_was_ours_fresh_and_is_now_used(
    questions: list[tuple[str, Minted, bytes, int, bytes]],
) -> None:
    """Of honest answers to any questions (by which key, whom, what for, how long ago) those count that must, once each."""
    used, seen = InMemorySingleUse(), set[bytes]()
    for ring, asked, audience, age, random in questions:
        value = nonce.issue(RINGS[ring], asked.ueid, audience, now=NOW - age, ttl=120, random=random)
        ours = ring != "foreign" and asked is DEVICE and audience == AUDIENCE
        fresh = -nonce.SKEW_SECONDS <= age < 120
        verdict = verify_once(Minted(nonce=value).evidence(), context(DEVICE), used)
        assert verdict.accepted == (ours and fresh and value not in seen), verdict.message
        if verdict.accepted:
            assert verdict.trail[-1] == ("single use", True, "the nonce is used up")
            assert verdict.nonce == value
            seen.add(value)
            rejects("replay", lambda value=value: used.consume(value, until=NOW + 120, now=NOW))
