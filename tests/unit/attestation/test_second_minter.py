# SPDX-License-Identifier: Apache-2.0
"""pycose as a second minter: a whole set (two certificates and a token) that our code did not sign is judged as ours is.

Payloads are written by cbor2 and signed by pycose, so that encoder, Sig_structure and signatures are somebody else's.
"""

from __future__ import annotations

from collections.abc import Mapping

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.keys import Alg, PrivateKey
from attestation.policy import Algorithm
from attestation.verifier import Verdict, verify
from tests.unit.attestation.world import Minted, context, policy

algorithms = pytest.importorskip("pycose.algorithms")
headers = pytest.importorskip("pycose.headers")
messages = pytest.importorskip("pycose.messages")
cose_keys = pytest.importorskip("pycose.keys")
_NAMES = {Alg.ES256: "Es256", Alg.ES384: "Es384", Alg.EDDSA: "EdDSA"}


def signed(payload: object, key: PrivateKey, *, tag: bool) -> bytes:
    """COSE_Sign1 by pycose over what cbor2 encodes."""
    name = getattr(algorithms, _NAMES[keys.alg_of(key)])
    message = messages.Sign1Message(phdr={headers.Algorithm: name}, payload=cbor2.dumps(payload))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers, width = key.private_numbers(), key.key_size // 8
        public = numbers.public_numbers
        parts = [value.to_bytes(width, "big") for value in (public.x, public.y, numbers.private_value)]
        message.key = cose_keys.EC2Key("P_256" if width == 32 else "P_384", *parts)
    else:
        message.key = cose_keys.OKPKey("ED25519", keys.raw(key.public_key()), key.private_bytes_raw())
    made = message.encode(tag=tag)
    assert isinstance(made, bytes)
    return made


def evidence(phone: Minted, spoiled: Mapping[str, PrivateKey] | None = None, *, tag: bool = False) -> bytes:
    """What a device with this other implementation would send; `spoiled`: signers to be replaced."""
    signers = {"first": phone.key("uds"), "second": phone.key("boot"), "token": phone.key("app"), **(spoiled or {})}
    chain = [
        signed(phone.certificate_claims(number), signers[name], tag=False)
        for number, name in enumerate(("first", "second"))
    ]
    token = signed(phone.claims(), signers["token"], tag=tag)
    return cbor2.dumps([1, keys.dice_id(phone.key("uds").public_key()), chain, token])


def judged(phone: Minted, data: bytes) -> Verdict:
    return verify(data, context(phone, policy=policy(phone, algorithms=tuple(Algorithm))))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("alg", Alg)
def test_a_whole_set_is_accepted(alg: Alg, size: int) -> None:
    phone = Minted(alg=alg, size=size)
    theirs = judged(phone, evidence(phone))
    ours = judged(phone, phone.evidence())
    assert theirs.proven_at_tier, theirs.message
    assert theirs.claims == ours.claims
    assert [step.rule for step in theirs.trail] == [step.rule for step in ours.trail]


@pytest.mark.parametrize("alg", Alg)
def test_a_tagged_token_is_accepted(alg: Alg) -> None:
    phone = Minted(alg=alg)
    assert judged(phone, evidence(phone, tag=True)).proven_at_tier


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("part", ["first", "second", "token"])
def test_another_signer_of_any_part_is_not(alg: Alg, part: str) -> None:
    phone = Minted(alg=alg)
    other = Minted(alg=alg, seed=b"another").key("uds")
    verdict = judged(phone, evidence(phone, {part: other}))
    assert not verdict.accepted
    assert str(verdict.code) == "sig.invalid"
    assert verdict.trail[-1].rule == ("token" if part == "token" else "chain")
