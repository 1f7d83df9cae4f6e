# SPDX-License-Identifier: Apache-2.0
"""The device side against the values that open-dice itself publishes, and against its own readers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from attestation import cose, dice_cbor, mint
from attestation.cbor import strict_loads
from attestation.keys import UNPROVISIONED_IDS, Alg, PrivateKey, PublicKey, dice_id, from_cose, ueid

VECTORS = os.environ.get("FLASHJOB_VECTORS_DIR", "")
needs_vectors = pytest.mark.skipif(not VECTORS, reason="FLASHJOB_VECTORS_DIR is not set")

UDS = bytes(range(32))
LAYER = mint.Layer(
    code_hash=b"\x11" * 64, config=mint.bootloader_config(), authority_hash=b"\x22" * 64, mode=mint.Mode.NORMAL
)


def vector(name: str) -> bytes:
    return (Path(VECTORS) / "open-dice-known" / name).read_bytes()


def fake(seed: str, length: int) -> bytes:
    """The test inputs of open-dice: SHA-512 of a 64-byte block whose first 8 bytes count up."""
    block = hashlib.sha512(seed.encode()).digest()
    out = b""
    while len(out) < length:
        out += hashlib.sha512(block).digest()
        counter = (int.from_bytes(block[:8], "little") + 1) % 2**64
        block = counter.to_bytes(8, "little") + block[8:]
    return out[:length]


def known_layer(case: str, profile: str | None) -> tuple[bytes, bytes, mint.Layer]:
    if case == "ZeroInput":
        layer = mint.Layer(bytes(64), bytes(64), bytes(64), 0, hash_config=False, profile_name=profile)
        return bytes(32), bytes(32), layer
    described = case == "DescriptorInput"
    layer = mint.Layer(
        code_hash=fake("code_hash", 64),
        config=fake("config_desc", 40) if described else fake("inline_config", 64),
        authority_hash=fake("authority_hash", 64),
        mode=0,
        hash_config=described,
        code_descriptor=fake("code_desc", 100) if described else b"",
        authority_descriptor=fake("authority_desc", 65) if described else b"",
        profile_name=profile,
    )
    return fake("cdi_attest", 32), fake("cdi_seal", 32), layer


@needs_vectors
@pytest.mark.parametrize("case", ["ZeroInput", "HashOnlyInput", "DescriptorInput"])
def test_cdi_values_equal_open_dice(case: str) -> None:
    attest, seal, layer = known_layer(case, None)
    assert mint.next_cdi(attest, layer) == vector(f"CdiAttest_{case}.bin")
    assert mint.next_sealing_cdi(seal, layer) == vector(f"CdiSeal_{case}.bin")


@needs_vectors
@pytest.mark.parametrize(
    ("file", "case", "profile"),
    [
        ("CborEd25519Cert_ZeroInput.cose", "ZeroInput", None),
        ("CborEd25519Cert_HashOnlyInput.cose", "HashOnlyInput", None),
        ("CborEd25519Cert_AndroidZeroInput.cose", "ZeroInput", "android.18"),
        ("CborEd25519Cert_AndroidHashOnlyInput.cose", "HashOnlyInput", "android.18"),
        ("CborEd25519Cert_AndroidDescriptorInput.cose", "DescriptorInput", "android.18"),
    ],
)
def test_ed25519_certificates_are_byte_equal_to_open_dice(file: str, case: str, profile: str | None) -> None:
    cdi, _, layer = known_layer(case, profile)
    issuer = mint.signing_key(cdi, Alg.EDDSA)
    subject = mint.signing_key(mint.next_cdi(cdi, layer), Alg.EDDSA).public_key()
    assert mint.certificate(issuer, subject, layer) == vector(file)


CASES = ["ZeroInput", "HashOnlyInput", "DescriptorInput"]


def known_pair(case: str, profile: str | None, alg: Alg) -> tuple[PrivateKey, PublicKey, mint.Layer]:
    cdi, _, layer = known_layer(case, profile)
    return mint.signing_key(cdi, alg), mint.signing_key(mint.next_cdi(cdi, layer), alg).public_key(), layer


@needs_vectors
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("android", "profile"), [("", "opendice.example"), ("Android", "android.18")])
@pytest.mark.parametrize(("name", "alg", "width"), [("P256", Alg.ES256, 64), ("P384", Alg.ES384, 96)])
def test_ecdsa_certificates_equal_open_dice_but_for_the_signature(
    case: str, android: str, profile: str, name: str, alg: Alg, width: int
) -> None:
    """The published signatures do not use the k of RFC 6979, so that no deterministic signer makes them; ours and theirs verify."""
    issuer, subject, layer = known_pair(case, profile, alg)
    ours, theirs = mint.certificate(issuer, subject, layer), vector(f"Cbor{name}Cert_{android}{case}.cose")
    assert ours[:-width] == theirs[:-width]
    cose.verify(cose.parse(theirs), issuer.public_key())
    cose.verify(cose.parse(ours), issuer.public_key())


@needs_vectors
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "alg", "profile"), [("Ed25519", Alg.EDDSA, None), ("P256", Alg.ES256, "opendice.example")]
)
def test_x509_certificates_are_byte_equal_to_open_dice(case: str, name: str, alg: Alg, profile: str | None) -> None:
    """Signature included; open-dice publishes no X.509 certificate for P-384."""
    assert mint.x509_certificate(*known_pair(case, profile, alg)) == vector(f"X509{name}Cert_{case}.der")


@pytest.mark.parametrize("alg", Alg)
def test_the_all_zero_secret_gives_the_well_known_ids(alg: Alg) -> None:
    assert dice_id(mint.signing_key(bytes(32), alg).public_key()) in UNPROVISIONED_IDS
    assert dice_id(mint.signing_key(UDS, alg).public_key()) not in UNPROVISIONED_IDS


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("size", [32, 64])
def test_a_chain_links_and_the_token_verifies_under_its_leaf(alg: Alg, size: int) -> None:
    layer = mint.Layer(b"\x11" * size, mint.bootloader_config(), b"\x22" * size, mint.Mode.NORMAL)
    uds_key = mint.signing_key(UDS, alg)
    leaf = mint.signing_key(mint.next_cdi(UDS, layer), alg)
    certificate = mint.certificate(uds_key, leaf.public_key(), layer)
    message = cose.parse(certificate)
    cose.verify(message, uds_key.public_key())
    claims = strict_loads(message.payload)
    assert isinstance(claims, dict)
    subject = claims[dice_cbor.SUBJECT_PUBLIC_KEY]
    assert isinstance(subject, bytes)
    token = cose.parse(mint.eat({10: b"n" * 32}, leaf))
    cose.verify(token, from_cose(subject))
    assert len(claims[dice_cbor.CONFIGURATION_HASH]) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"code_hash": b"\x12" * 64},
        {"config": mint.bootloader_config(secure_version=1)},
        {"authority_hash": b"\x23" * 64},
        {"mode": mint.Mode.DEBUG},
        {"hidden": b"\x01" * 64},
    ],
)
def test_every_measured_input_changes_the_secret(changed: dict[str, object]) -> None:
    other = dataclasses.replace(LAYER, **changed)  # type: ignore[arg-type]
    assert mint.next_cdi(UDS, other) != mint.next_cdi(UDS, LAYER)


def test_sealing_survives_an_update_and_not_a_change_of_application() -> None:
    update = dataclasses.replace(LAYER, code_hash=b"\x12" * 64, config=b"\xa0")
    assert mint.next_sealing_cdi(UDS, update) == mint.next_sealing_cdi(UDS, LAYER)
    other = dataclasses.replace(LAYER, hidden=mint.application_hidden("other"))
    assert mint.next_sealing_cdi(UDS, other) != mint.next_sealing_cdi(UDS, LAYER)


def test_evidence_names_its_anchor_and_keeps_the_parts() -> None:
    anchor = mint.signing_key(UDS, Alg.ES256).public_key()
    assert strict_loads(mint.evidence(dice_id(anchor), [b"c0", b"c1"], b"eat")) == [
        1,
        dice_id(anchor),
        [b"c0", b"c1"],
        b"eat",
    ]
    assert len(ueid(anchor)) == 33
