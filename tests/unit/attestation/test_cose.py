# SPDX-License-Identifier: Apache-2.0
"""COSE_Sign1: attacks by number, published vectors, and pycose as a second minter."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from attestation import cose, keys
from attestation.cbor import dumps, strict_loads
from attestation.cose import Tagging
from attestation.errors import Reject
from attestation.keys import Alg, PublicKey
from tests.unit.attestation.world import private_key, rejects, vectors

KEY = private_key(Alg.ES256, b"cose")
PUBLIC = KEY.public_key()
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
LOOSE: dict[str, Any] = {"protected": frozenset({1, 3, 4}), "unprotected": frozenset({4})}


def message(
    protected: Mapping[Any, Any] | bytes | None = None,
    unprotected: Any = None,
    payload: Any = b"payload",
    signature: bytes | None = None,
) -> bytes:
    """A message with any headers, signed over what it says."""
    header = protected if isinstance(protected, bytes) else dumps({1: -7} if protected is None else protected)
    signed = cose.sign_bytes(KEY, dumps(["Signature1", header, b"", payload if isinstance(payload, bytes) else b""]))
    return dumps(
        [header, {} if unprotected is None else unprotected, payload, signed if signature is None else signature]
    )


def open_(data: bytes, key: PublicKey = PUBLIC, **options: Any) -> bytes:
    parsed = cose.parse(data, **{**LOOSE, **options})
    cose.verify(parsed, key)
    return parsed.payload


@pytest.mark.parametrize("alg", Alg)
def test_what_is_signed_is_read(alg: Alg) -> None:
    key = private_key(alg, b"x")
    data = cose.sign(b"hello", key, content_type="text/plain", kid=b"12345678")
    parsed = cose.parse(data, content_type="text/plain")
    cose.verify(parsed, key.public_key())
    assert (parsed.payload, parsed.kid, parsed.alg) == (b"hello", b"12345678", alg)
    assert data == cose.sign(b"hello", key, content_type="text/plain", kid=b"12345678")


BAD = {
    "13 empty protected, alg unprotected": (message(b"", {1: -7}), "cose.noprotected"),
    "13 empty map protected": (message(b"\xa0", {1: -7}), "cose.noprotected"),
    "14 alg absent": (message({4: b"k"}), "cose.alg"),
    "14 alg 0": (message({1: 0}), "cose.alg"),
    "14 alg text": (message({1: "ES256"}), "cose.alg"),
    "14 alg -65535": (message({1: -65535}), "cose.alg"),
    "14 alg HMAC 5": (message({1: 5}), "cose.alg"),
    "14 alg True": (message({1: True}), "cose.alg"),
    "14 alg ES512": (message({1: -36}), "cose.alg"),
    "15 EdDSA with a P-256 key": (message({1: -8}), "cose.keyalg"),
    "16 alg in both headers": (message({1: -7}, {1: -7}), "cose.duplabel"),
    "16 kid in both headers": (message({1: -7, 4: b"a"}, {4: b"a"}), "cose.duplabel"),
    "17 crit": (message({1: -7, 2: [1]}), "cose.crit"),
    "17 crit unprotected": (message({1: -7}, {2: [1]}), "cose.crit"),
    "18 tag 17": (b"\xd1" + message(), "cose.tag"),
    "18 tag 98": (b"\xd8\x62" + message(), "cose.tag"),
    "18 tag 601": (b"\xd9\x02\x59" + message(), "cose.tag"),
    "18 18 in 18": (b"\xd2\xd2" + message(), "cose.tag"),
    "18 61 in 61": (b"\xd8\x3d\xd8\x3d\xd2" + message(), "cose.tag"),
    "18 61 alone": (b"\xd8\x3d" + message(), "cose.tag"),
    "18 lone tag": (b"\xd2", "cose.tag"),
    "18 bare map": (dumps({1: 2}), "cose.structure"),
    "18 five elements": (dumps([b"\xa1\x01\x26", {}, b"", bytes(64), 1]), "cose.structure"),
    "18 three elements": (dumps([b"\xa1\x01\x26", {}, bytes(64)]), "cose.structure"),
    "unprotected is an array": (message(unprotected=[]), "cose.structure"),
    "protected is a map": (dumps([{1: -7}, {}, b"", bytes(64)]), "cose.structure"),
    "protected holds an array": (message(dumps([1])), "cose.structure"),
    "20 nil payload": (message(payload=None), "cose.detached"),
    "20 text payload": (message(payload="text"), "cose.detached"),
    "23 empty signature": (message(signature=b""), "sig.length"),
    "23 63 bytes": (message(signature=bytes(63)), "sig.length"),
    "23 65 bytes": (message(signature=bytes(65)), "sig.length"),
    "23 DER": (message(signature=encode_dss_signature(2**255, 2**255)), "sig.length"),
    "24 r is 0": (message(signature=bytes(32) + b"\x01" * 32), "sig.range"),
    "24 s is 0": (message(signature=b"\x01" * 32 + bytes(32)), "sig.range"),
    "24 r is n": (message(signature=P256_ORDER.to_bytes(32, "big") + b"\x01" * 32), "sig.range"),
    "24 s is n": (message(signature=b"\x01" * 32 + P256_ORDER.to_bytes(32, "big")), "sig.range"),
    "text label": (message({1: -7, "kid": b""}), "cose.header"),
    "unknown protected label": (message({1: -7, 5: b""}), "cose.header"),
    "unknown unprotected label": (message({1: -7}, {33: b""}), "cose.header"),
    "kid is text": (message({1: -7, 4: "k"}), "cose.header"),
    "02 duplicate in protected": (message(bytes.fromhex("a201260126")), "cbor.dupkey"),
    "04 trailing in protected": (message(b"\xa1\x01\x26\x00"), "cbor.trailing"),
    "04 trailing after the message": (message() + b"\x00", "cbor.trailing"),
    "empty": (b"", "size"),
    "large": (bytes(9000), "size"),
    "signature of zeros and ones": (message(signature=b"\x01" * 64), "sig.invalid"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_message_has_its_own_code(name: str) -> None:
    data, code = BAD[name]
    rejects(code, lambda: open_(data, tagging=Tagging.EITHER))


def test_19_tag_only_where_the_caller_allows_it() -> None:
    assert open_(b"\xd2" + message(), tagging=Tagging.EITHER) == b"payload"
    assert open_(b"\xd8\x3d\xd2" + message(), tagging=Tagging.TAGGED) == b"payload"
    rejects("cose.tag", lambda: open_(b"\xd2" + message()))
    rejects("cose.tag", lambda: open_(message(), tagging=Tagging.TAGGED))


def test_21_other_context_string() -> None:
    signed = cose.sign_bytes(KEY, dumps(["Signature", b"\xa1\x01\x26", b"", b"payload"]))
    rejects("sig.invalid", lambda: open_(message(signature=signed)))


def test_22_external_aad() -> None:
    signed = cose.sign_bytes(KEY, dumps(["Signature1", b"\xa1\x01\x26", b"x", b"payload"]))
    rejects("sig.invalid", lambda: open_(message(signature=signed)))


def test_25_eddsa_with_s_plus_order() -> None:
    key = private_key(Alg.EDDSA, b"s+l")
    parsed = cose.parse(cose.sign(b"x", key))
    s = int.from_bytes(parsed.signature[32:], "little") + ED25519_ORDER
    forged = parsed.signature[:32] + s.to_bytes(32, "little")
    data = dumps([parsed.protected_bytes, {}, b"x", forged])
    rejects("sig.invalid", lambda: open_(data, key.public_key()))


def test_26_high_s_is_accepted() -> None:
    parsed = cose.parse(message(), **LOOSE)
    s = P256_ORDER - int.from_bytes(parsed.signature[32:], "big")
    assert open_(message(signature=parsed.signature[:32] + s.to_bytes(32, "big"))) == b"payload"


def test_content_type_and_algorithm_are_bound() -> None:
    data = cose.sign(b"x", KEY, content_type="application/a")
    rejects("cose.contenttype", lambda: open_(data, content_type="application/b"))
    rejects("cose.contenttype", lambda: open_(message(), content_type="application/b"))
    rejects("cose.alg", lambda: open_(data, algs=frozenset({Alg.EDDSA})))
    rejects("sig.invalid", lambda: open_(data, private_key(Alg.ES256, b"other").public_key()))
    rejects("cose.keyalg", lambda: open_(data, private_key(Alg.ES384, b"other").public_key()))


@given(st.integers(0, 8 * len(message()) - 1))
def test_every_flipped_bit_rejects(bit: int) -> None:
    data = bytearray(message())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Reject):
        open_(bytes(data), tagging=Tagging.EITHER)


@pytest.mark.parametrize("size", range(len(message())))
def test_every_truncation_rejects(size: int) -> None:
    with pytest.raises(Reject):
        open_(message()[:size])


@pytest.mark.parametrize(
    ("name", "alg"),
    [
        ("ecdsa_secp256r1_sha256_p1363_test", Alg.ES256),
        ("ecdsa_secp384r1_sha384_p1363_test", Alg.ES384),
        ("ed25519_test", Alg.EDDSA),
    ],
)
def test_wycheproof(name: str, alg: Alg) -> None:
    """All published cases of the three algorithms, none excluded."""
    content = json.loads((vectors("wycheproof") / "testvectors_v1" / f"{name}.json").read_text())
    count = 0
    for group in content["testGroups"]:
        public = group["publicKey"]
        raw = bytes.fromhex(public["pk"] if alg is Alg.EDDSA else public["uncompressed"][2:])
        key = keys.from_raw(alg, raw)
        for case in group["tests"]:
            count += 1
            arguments = alg, key, bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"])
            if case["result"] == "valid":
                cose.verify_bytes(*arguments)
            else:
                with pytest.raises(Reject) as caught:
                    cose.verify_bytes(*arguments)
                assert caught.value.code.startswith("sig."), case["tcId"]
    assert count == content["numberOfTests"] > 100


GO_COSE = {
    "sign1-verify-0000": "sig.invalid",  # external_aad, which we never use (attack 22)
    "sign1-verify-0001": None,
    "sign1-verify-0002": None,
    "sign1-verify-0003": "cose.alg",  # ES512
    "sign1-verify-0004": "cose.alg",  # PS256
    "sign1-verify-0005": "cose.alg",  # PS384
    "sign1-verify-0006": "cose.alg",  # PS512
    "sign1-verify-negative-0000": "cose.structure",
    "sign1-verify-negative-0001": "cose.structure",
    "sign1-verify-negative-0002": "cbor.dupkey",
    "sign1-verify-negative-0003": "cbor.dupkey",
}


@pytest.mark.parametrize("name", GO_COSE)
def test_go_cose(name: str) -> None:
    case = json.loads((vectors("veraison-go-cose") / "testdata" / f"{name}.json").read_text())
    data = bytes.fromhex(case["sign1::verify"]["taggedCOSESign1"]["cborHex"])
    key = _jwk(case["key"]) if case["key"]["kty"] == "EC" and case["key"]["crv"] != "P-521" else PUBLIC
    _expect(data, key, GO_COSE[name])


GO_COSE_SIGN = {
    "sign1-sign-0000": "sig.invalid",  # external_aad
    "sign1-sign-0001": None,
    "sign1-sign-0002": None,
    "sign1-sign-0003": "cose.alg",  # ES512
    "sign1-sign-0004": "cose.alg",  # PS256
    "sign1-sign-0005": "cose.alg",  # PS384
    "sign1-sign-0006": "cose.alg",  # PS512
}


@pytest.mark.parametrize("name", GO_COSE_SIGN)
def test_go_cose_made(name: str) -> None:
    """What their minter is expected to make, and the bytes that it signs."""
    case = json.loads((vectors("veraison-go-cose") / "testdata" / f"{name}.json").read_text())
    made = case["sign1::sign"]
    data = bytes.fromhex(made["expectedOutput"]["cborHex"])
    key = _jwk(case["key"]) if case["key"]["kty"] == "EC" and case["key"]["crv"] != "P-521" else PUBLIC
    _expect(data, key, GO_COSE_SIGN[name])
    if GO_COSE_SIGN[name] is None:
        parsed = cose.parse(data, tagging=Tagging.EITHER, unprotected=frozenset({cose.KID}))
        assert parsed.signed_bytes.hex() == made["tbsHex"]["cborHex"]


WG = {
    "sign1-tests/sign-pass-01": "cose.noprotected",  # algorithm in the unprotected header (attack 13)
    "sign1-tests/sign-pass-02": "sig.invalid",  # external_aad (attack 22)
    "sign1-tests/sign-pass-03": None,
    "sign1-tests/sign-fail-01": "cose.tag",
    "sign1-tests/sign-fail-02": "sig.invalid",
    "sign1-tests/sign-fail-03": "cose.alg",
    "sign1-tests/sign-fail-04": "cose.alg",
    "sign1-tests/sign-fail-06": "sig.invalid",
    "sign1-tests/sign-fail-07": "sig.invalid",
    "ecdsa-examples/ecdsa-sig-01": None,
    "ecdsa-examples/ecdsa-sig-02": None,
    "ecdsa-examples/ecdsa-sig-03": "cose.alg",  # ES512
    "ecdsa-examples/ecdsa-sig-04": "cose.alg",  # ES512 with a P-256 key
    "eddsa-examples/eddsa-sig-01": None,
    "eddsa-examples/eddsa-sig-02": "sig.length",  # Ed448: its signatures are longer
    "CWT/A_3": None,
    "RFC8152/Appendix_C_2_1": None,
}


@pytest.mark.parametrize("name", WG)
def test_cose_working_group(name: str) -> None:
    case = json.loads((vectors("cose-wg-examples") / f"{name}.json").read_text())
    key = case["input"]["sign0"]["key"]
    known = key["crv"] in ("P-256", "P-384", "Ed25519")
    _expect(bytes.fromhex(case["output"]["cbor"]), _jwk(key) if known else PUBLIC, WG[name])


def _expect(data: bytes, key: PublicKey, code: str | None) -> None:
    if code is None:
        open_(data, key, tagging=Tagging.EITHER)
    else:
        rejects(code, lambda: open_(data, key, tagging=Tagging.EITHER))


def _jwk(key: Mapping[str, str]) -> PublicKey:
    def part(name: str) -> bytes:
        if f"{name}_hex" in key:
            return bytes.fromhex(key[f"{name}_hex"])
        return base64.urlsafe_b64decode(key[name] + "==")

    if key["crv"] == "Ed25519":
        return keys.from_raw(Alg.EDDSA, part("x"))
    return keys.from_raw(Alg.ES256 if key["crv"] == "P-256" else Alg.ES384, part("x") + part("y"))


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("tag", [True, False])
def test_pycose_mints_what_we_accept(alg: Alg, tag: bool) -> None:
    """A second implementation agrees on the signed bytes."""
    algorithms = pytest.importorskip("pycose.algorithms")
    headers = pytest.importorskip("pycose.headers")
    messages = pytest.importorskip("pycose.messages")
    cose_keys = pytest.importorskip("pycose.keys")
    key = private_key(alg, b"pycose")
    values = key.private_bytes_raw() if not isinstance(key, ec.EllipticCurvePrivateKey) else None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers, width = key.private_numbers(), key.key_size // 8
        public = numbers.public_numbers
        coordinates = [value.to_bytes(width, "big") for value in (public.x, public.y, numbers.private_value)]
        foreign = cose_keys.EC2Key("P_256" if alg is Alg.ES256 else "P_384", *coordinates)
    else:
        foreign = cose_keys.OKPKey("ED25519", keys.raw(key.public_key()), values)
    name = {Alg.ES256: "Es256", Alg.ES384: "Es384", Alg.EDDSA: "EdDSA"}[alg]
    minted = messages.Sign1Message(phdr={headers.Algorithm: getattr(algorithms, name)}, payload=b"by another hand")
    minted.key = foreign
    data = minted.encode(tag=tag)
    assert open_(data, key.public_key(), tagging=Tagging.EITHER) == b"by another hand"


def test_the_signature_covers_the_bytes_as_received() -> None:
    """A protected header with unsorted labels is verified over its own bytes, not over a re-encoding."""
    header = bytes.fromhex("a2044161" + "0126")
    assert strict_loads(header) == {4: b"a", 1: -7}
    assert open_(message(header)) == b"payload"
