# SPDX-License-Identifier: Apache-2.0
"""COSE_Key rules and the ids that are made from keys."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from attestation import cose, keys
from attestation.cbor import dumps
from attestation.keys import Alg
from tests.unit.attestation.world import private_key, rejects

P = 2**255 - 19
D = (-121665 * pow(121666, -1, P)) % P
EC2 = keys.to_cose(private_key(Alg.ES256, b"k").public_key())
OKP = keys.to_cose(private_key(Alg.EDDSA, b"k").public_key())


@pytest.mark.parametrize("alg", Alg)
def test_round_trips(alg: Alg) -> None:
    private = private_key(alg, b"k")
    public = private.public_key()
    assert keys.raw(keys.from_cose(keys.encode_cose(public))) == keys.raw(public)
    assert keys.raw(keys.from_pem(keys.to_pem(public))) == keys.raw(public)
    assert keys.raw(keys.from_raw(alg, keys.raw(public))) == keys.raw(public)
    assert keys.raw(keys.private_from_pem(keys.private_to_pem(private)).public_key()) == keys.raw(public)
    assert keys.ueid(public) == b"\x01" + hashlib.sha256(keys.raw(public)).digest()
    assert keys.key_id(public) == keys.ueid(public)[1:9]


def change(base: Any, **changes: Any) -> Any:
    names = {"kty": 1, "kid": 2, "alg": 3, "ops": 4, "iv": 5, "crv": -1, "x": -2, "y": -3, "d": -4}
    value = {**base, **{names[name]: item for name, item in changes.items()}}
    return {label: item for label, item in value.items() if item is not None}


BAD = {
    "27 private d": (change(EC2, d=bytes(32)), "key.private"),
    "28 X25519": (change(OKP, crv=4), "key.curve"),
    "28 P-521": (change(EC2, crv=3), "key.curve"),
    "28 secp256k1": (change(EC2, crv=8), "key.curve"),
    "28 Ed25519 as EC2": (change(EC2, crv=6), "key.curve"),
    "28 P-256 as OKP": (change(OKP, crv=1), "key.curve"),
    "29 off curve": (change(EC2, y=b"\x01" * 32), "key.point"),
    "29 zero": (change(EC2, x=bytes(32), y=bytes(32)), "key.point"),
    "29 x beyond the field": (change(EC2, x=b"\xff" * 32), "key.point"),
    "29 Ed25519 not canonical": (change(OKP, x=b"\xff" * 31 + b"\x7f"), "key.point"),
    "30 short x": (change(EC2, x=bytes(31)), "key.length"),
    "30 long x": (change(OKP, x=bytes(33)), "key.length"),
    "30 x is text": (change(OKP, x="x" * 32), "key.length"),
    "30 x absent": (change(EC2, x=None), "key.length"),
    "31 compressed y": (change(EC2, y=True), "key.length"),
    "31 y absent": (change(EC2, y=None), "key.length"),
    "32 symmetric": (change(OKP, kty=4), "key.type"),
    "32 kty absent": (change(OKP, kty=None), "key.type"),
    "32 kty True": (change(OKP, kty=True), "key.type"),
    "33 key_ops without verify": (change(EC2, ops=[1]), "key.ops"),
    "33 key_ops empty": (change(EC2, ops=[]), "key.ops"),
    "33 key_ops is an integer": (change(EC2, ops=2), "key.ops"),
    "y in an OKP key": (change(OKP, y=bytes(32)), "key.structure"),
    "unknown field": (change(EC2, iv=b""), "key.structure"),
    "kid is text": (change(EC2, kid="k"), "key.structure"),
    "alg of another curve": (change(EC2, alg=-8), "key.alg"),
    "not a map": ([1], "key.structure"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_key_has_its_own_code(name: str) -> None:
    value, code = BAD[name]
    rejects(code, lambda: keys.from_cose(value))
    rejects(code, lambda: keys.from_cose(dumps(value)))


@pytest.mark.parametrize("alg", Alg)
def test_30_raw_keys_have_one_length(alg: Alg) -> None:
    good = keys.raw(private_key(alg, b"k").public_key())
    for bad in (b"", good[:-1], good + b"\x00", b"\x04" + good):
        rejects("key.length", lambda bad=bad: keys.from_raw(alg, bad))


def test_34_small_order_ed25519() -> None:
    """All encodings of the eight points whose order divides 8, also the non-canonical ones, are refused."""
    ys = {0, 1, P - 1}
    # Order 8: doubling gives y = 0, so x^2 = -y^2 and the curve equation is d*y^4 + 2*y^2 - 1 = 0.
    root = _sqrt((1 + D) % P)
    for candidate in ((-1 + root) * pow(D, -1, P) % P, (-1 - root) * pow(D, -1, P) % P):
        y = _sqrt(candidate, optional=True)
        if y is not None:
            ys |= {y, P - y}
    assert len(ys) == 5
    for y in ys | {P, P + 1}:
        for sign in (0, 1):
            raw = (y | sign << 255).to_bytes(32, "little")
            rejects("key.point" if y >= P else "key.smallorder", lambda raw=raw: keys.from_raw(Alg.EDDSA, raw))


@pytest.mark.parametrize("y", [2, 7, 8])
def test_rule_4_nothing_verifies_under_an_ed25519_key_that_is_no_point(y: int) -> None:
    assert pow((y * y - 1) * (D * y * y + 1), (P - 1) // 2, P) == P - 1, "no x belongs to this y"
    key = keys.from_raw(Alg.EDDSA, y.to_bytes(32, "little"))
    genuine = cose.sign_bytes(private_key(Alg.EDDSA, b"k"), b"x")
    for signature in (genuine, bytes(64), b"\x01" + bytes(63), y.to_bytes(32, "little") + bytes(32)):
        rejects("sig.invalid", lambda signature=signature: cose.verify_bytes(Alg.EDDSA, key, signature, b"x"))


def _sqrt(value: int, optional: bool = False) -> Any:
    """Square root modulo 2^255 - 19 (RFC 8032 section 5.1.3)."""
    root = pow(value, (P + 3) // 8, P)
    if root * root % P != value:
        root = root * pow(2, (P - 1) // 4, P) % P
    if root * root % P != value:
        assert optional
        return None
    return root


def test_35_keys_of_the_zero_secret_are_known() -> None:
    from attestation import mint

    for alg in Alg:
        zero = mint.signing_key(bytes(32), alg).public_key()
        assert {keys.dice_id(zero), keys.dice_id(zero, compressed=True)} <= keys.UNPROVISIONED_IDS


def test_ids_depend_on_the_form() -> None:
    public = private_key(Alg.ES256, b"k").public_key()
    assert keys.dice_id(public) != keys.dice_id(public, compressed=True)
    assert keys.dice_id(public)[0] < 0x80
    plain = private_key(Alg.EDDSA, b"k").public_key()
    assert keys.dice_id(plain) == keys.dice_id(plain, compressed=True)


def test_pem_of_other_kinds() -> None:
    other = rsa.generate_private_key(65537, 2048)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = other.public_key().public_bytes(serialization.Encoding.PEM, form)
    rejects("key.curve", lambda: keys.from_pem(pem))
    rejects("key.curve", lambda: keys.from_pem(keys.to_pem(ec.generate_private_key(ec.SECP521R1()).public_key())))
    encoding, private_form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = other.private_bytes(encoding, private_form, serialization.NoEncryption())
    rejects("key.curve", lambda: keys.private_from_pem(private))
    rejects("key.structure", lambda: keys.from_pem("no pem"))
    rejects("key.structure", lambda: keys.private_from_pem(b"no pem"))
    weak = ed25519.Ed25519PublicKey.from_public_bytes(b"\x01" + bytes(31))
    rejects("key.smallorder", lambda: keys.from_pem(keys.to_pem(weak)))


def test_encrypted_private_key_is_refused_without_leaking_it() -> None:
    private = private_key(Alg.ES256, b"secret")
    encryption = serialization.BestAvailableEncryption(b"pw")
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    reject = rejects("key.structure", lambda: keys.private_from_pem(pem))
    assert "BEGIN" not in str(reject)
