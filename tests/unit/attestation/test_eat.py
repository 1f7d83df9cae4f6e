# SPDX-License-Identifier: Apache-2.0
"""Envelope and claims: types and lengths, each with its own code."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import cose, eat
from attestation.cbor import dumps
from attestation.errors import Reject
from attestation.policy import DebugStatus, Measurement
from tests.unit.attestation.world import Minted, rejects, vectors

DEVICE = Minted()


def read(**changes: Any) -> eat.Token:
    claims = {**DEVICE.claims(), **{int(label): value for label, value in changes.items()}}
    return eat.read_token(eat.decode_claims(dumps({k: v for k, v in claims.items() if v is not None})))


def test_honest_claims_have_names() -> None:
    token = read(**{"-71012": {"web": [-16, bytes(32)]}, "271": ["2.0.0", 1]})
    assert token.version == "2.0.0"
    assert token.slot_state is eat.SlotState.VALID
    assert token.debug_status is DebugStatus.DISABLED_PERMANENTLY
    assert token.data_images == {"web": Measurement(-16, bytes(32))}
    assert token.owner_keys == (b"grantkey",)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "58 nonce missing": ({"10": None}, "eat.nonce"),
    "58 7 bytes": ({"10": bytes(7)}, "eat.nonce"),
    "58 65 bytes": ({"10": bytes(65)}, "eat.nonce"),
    "58 text": ({"10": "n" * 32}, "eat.nonce"),
    "58 array": ({"10": [bytes(32), bytes(32)]}, "eat.nonce"),
    "63 ueid missing": ({"256": None}, "eat.ueid"),
    "63 ueid of 6 bytes": ({"256": bytes(6)}, "eat.ueid"),
    "63 ueid of 34 bytes": ({"256": bytes(34)}, "eat.ueid"),
    "63 ueid is text": ({"256": "u" * 33}, "eat.ueid"),
    "65 dbgstat missing": ({"263": None}, "eat.dbgstat"),
    "65 dbgstat True": ({"263": True}, "eat.dbgstat"),
    "65 dbgstat 5": ({"263": 5}, "eat.dbgstat"),
    "65 dbgstat -1": ({"263": -1}, "eat.dbgstat"),
    "65 dbgstat text": ({"263": "disabled"}, "eat.dbgstat"),
    "66 submodule": ({"266": {"modem": {263: 0}}}, "eat.unknown"),
    "67 profile missing": ({"265": None}, "eat.profile"),
    "67 foreign profile": ({"265": "tag:ietf.org,2025:other"}, "eat.profile"),
    "68 oemid missing": ({"258": None}, "eat.claim"),
    "68 oemid of 4 bytes": ({"258": bytes(4)}, "eat.claim"),
    "68 oemid negative": ({"258": -1}, "eat.claim"),
    "68 hwmodel empty": ({"259": b""}, "eat.claim"),
    "62 exp": ({"4": 2**31}, "eat.unknown"),
    "62 iat": ({"6": 2**31}, "eat.unknown"),
    "unknown private claim": ({"-71099": 1}, "eat.unknown"),
    "bootcount negative": ({"267": -1}, "eat.claim"),
    "bootcount that a signed 64-bit integer has nothing above": ({"267": 2**63 - 1}, "eat.claim"),
    "fence likewise": ({"-71015": 2**64 - 1}, "eat.claim"),
    "bootcount True": ({"267": True}, "eat.claim"),
    "bootseed short": ({"268": bytes(7)}, "eat.claim"),
    "swname empty": ({"270": ""}, "eat.claim"),
    "swname with a newline": ({"270": "a\nb"}, "eat.claim"),
    "swversion is text": ({"271": "2.0.0"}, "eat.claim"),
    "swversion too long": ({"271": ["1", 1, 1]}, "eat.claim"),
    "slot state unknown": ({"-71010": 9}, "eat.claim"),
    "slot state missing": ({"-71010": None}, "eat.claim"),
    "data images is an array": ({"-71012": []}, "eat.claim"),
    "data image label is a number": ({"-71012": {1: [-16, bytes(32)]}}, "eat.claim"),
    "data image of another length": ({"-71012": {"a": [-16, bytes(64)]}}, "eat.claim"),
    "data image without algorithm": ({"-71012": {"a": bytes(32)}}, "eat.claim"),
    "addresses too many": ({"-71013": ["a"] * 9}, "eat.claim"),
    "owner key short": ({"-71014": [bytes(7)]}, "eat.claim"),
    "fence missing": ({"-71015": None}, "eat.claim"),
    "fence negative": ({"-71015": -1}, "eat.claim"),
    "cnf without a key": ({"8": {}}, "eat.cnf"),
    "cnf with a symmetric key": ({"8": {1: {1: 4, -1: bytes(32)}}}, "key."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_claims_have_their_own_code(name: str) -> None:
    changes, code = BAD[name]
    with pytest.raises(Reject) as caught:
        read(**changes)
    assert caught.value.code.startswith(code), caught.value


def test_10_float_in_claims() -> None:
    encoded = dumps(DEVICE.claims())
    head = bytes([encoded[0] + 1])
    rejects("cbor.float", lambda: eat.decode_claims(head + encoded[1:] + b"\x06\xf9\x3e\x00"))


def test_11_text_key() -> None:
    claims: dict[Any, Any] = {**DEVICE.claims(), "nonce": b"n"}
    rejects("eat.structure", lambda: eat.read_token(eat.decode_claims(dumps(claims))))
    rejects("eat.structure", lambda: eat.decode_claims(b"\x80"))


BAD_ENVELOPES = {
    "version 2": (dumps([2, bytes(20), [b"c"], b"t"]), "evidence.version"),
    "version True": (dumps([True, bytes(20), [b"c"], b"t"]), "evidence.version"),
    "three parts": (dumps([1, bytes(20), [b"c"]]), "evidence.structure"),
    "five parts": (dumps([1, bytes(20), [b"c"], b"t", 0]), "evidence.structure"),
    "not an array": (dumps({1: 1}), "evidence.structure"),
    "empty array": (dumps([]), "evidence.structure"),
    "anchor id of 19 bytes": (dumps([1, bytes(19), [b"c"], b"t"]), "evidence.structure"),
    "certificates is a string": (dumps([1, bytes(20), b"c", b"t"]), "evidence.structure"),
    "certificate is text": (dumps([1, bytes(20), ["c"], b"t"]), "evidence.structure"),
    "token is an array": (dumps([1, bytes(20), [b"c"], []]), "evidence.structure"),
    "36 no certificates": (dumps([1, bytes(20), [], b"t"]), "chain.len"),
    "tagged": (b"\xd2" + dumps([1, bytes(20), [b"c"], b"t"]), "cbor.tag"),
    "07 too large": (dumps([1, bytes(20), [bytes(4096)], b"t"]), "size"),
    "nested": (dumps([1, bytes(20), [[b"c"]], b"t"]), "cbor.depth"),
}


@pytest.mark.parametrize("name", BAD_ENVELOPES)
def test_bad_envelope_has_its_own_code(name: str) -> None:
    data, code = BAD_ENVELOPES[name]
    rejects(code, lambda: eat.parse_evidence(data))


@given(st.binary(max_size=200))
def test_garbage_raises_only_our_error(data: bytes) -> None:
    with pytest.raises(Reject):
        eat.parse_evidence(data)
    with pytest.raises(Reject):
        eat.read_token(eat.decode_claims(data))


def test_rats_examples_are_read_and_refused_as_another_profile() -> None:
    """RFC 9711's example payloads: all decode in our CBOR profile, none is of our EAT profile."""
    folder = vectors("ietf-rats-eat") / "cddl" / "Example-Payloads"
    codes = {}
    for path in sorted(folder.glob("*.cbor")):
        with pytest.raises(Reject) as caught:
            eat.read_token(eat.decode_claims(path.read_bytes()))
        codes[path.name.split(".")[0]] = str(caught.value.code)
    assert len(codes) == 9
    assert set(codes.values()) == {"eat.profile"}, codes


def test_rats_example_tokens_are_read_and_refused() -> None:
    """A CWT reads as COSE_Sign1 and is of another profile; a detached bundle (tag 602) is no token at all."""
    folder = vectors("ietf-rats-eat") / "cddl" / "Example-Tokens"
    found = {path.name.split(".")[0]: path.read_bytes() for path in folder.glob("*.cbor")}
    assert found.keys() == {"valid_cwt", "valid_deb"}

    def opened(data: bytes) -> cose.Sign1:
        return cose.parse(
            data, tagging=cose.Tagging.EITHER, protected=eat.PROTECTED_HEADERS, unprotected=eat.UNPROTECTED_HEADERS
        )

    claims = eat.decode_claims(opened(found["valid_cwt"]).payload)
    assert eat.nonce_of(claims) == bytes.fromhex("d79b964ddd5471c1393c8888")
    rejects("eat.profile", lambda: eat.read_token(claims))
    rejects("cose.tag", lambda: opened(found["valid_deb"]))
    for data in found.values():
        rejects("cbor.tag", lambda data=data: eat.parse_evidence(data))
