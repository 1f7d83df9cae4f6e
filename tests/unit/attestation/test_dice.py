# SPDX-License-Identifier: Apache-2.0
"""DICE certificates and chains: attacks 36 to 49 by number, and open-dice's known answers."""

from typing import Any

import pytest

from attestation import cose, dice_cbor, keys, mint
from attestation.cbor import dumps, strict_loads
from attestation.keys import Alg
from attestation.policy import Mode
from tests.unit.attestation.world import Minted, digest, private_key, rejects, vectors

DEVICE = Minted()
STRANGER = private_key(Alg.ES256, b"stranger")
COSE_KEY = keys.encode_cose(DEVICE.key("app").public_key())


def chain_of(certificates: list[bytes], device: Minted = DEVICE) -> Any:
    parsed = [dice_cbor.parse_certificate(certificate) for certificate in certificates]
    return dice_cbor.verify_chain(parsed, device.key("uds").public_key())


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("size", [32, 64])
def test_an_honest_chain_leads_to_the_application_key(alg: Alg, size: int) -> None:
    device = Minted(alg=alg, size=size)
    assert keys.raw(chain_of(device.chain(), device)) == keys.raw(device.key("app").public_key())
    certificate = dice_cbor.parse_certificate(device.chain()[1])
    assert certificate.code_hash == digest("app 2.0", size)
    assert certificate.mode is Mode.NORMAL
    config = dice_cbor.read_application_config(certificate.configuration)
    assert (config.name, config.security_version, config.boot_id) == ("porch", 3, device.boot_id)
    assert dice_cbor.read_bootloader_config(device.bootloader_config).name == "bootloader"


BAD: dict[str, tuple[dict[Any, Any], str]] = {
    "44 digitalSignature": ({dice_cbor.KEY_USAGE: b"\x01"}, "dice.keyusage"),
    "44 both": ({dice_cbor.KEY_USAGE: b"\x21"}, "dice.keyusage"),
    "44 absent": ({dice_cbor.KEY_USAGE: None}, "dice.keyusage"),
    "44 big-endian": ({dice_cbor.KEY_USAGE: b"\x00\x20"}, "dice.keyusage"),
    "44 X.509 bits": ({dice_cbor.KEY_USAGE: b"\x04"}, "dice.keyusage"),
    "46 mode 7": ({dice_cbor.MODE: b"\x07"}, "dice.mode.structure"),
    "46 two bytes": ({dice_cbor.MODE: b"\x01\x01"}, "dice.mode.structure"),
    "46 integer": ({dice_cbor.MODE: 1}, "dice.mode.structure"),
    "46 missing": ({dice_cbor.MODE: None}, "dice.mode.structure"),
    "47 code hash missing": ({dice_cbor.CODE_HASH: None}, "dice.hash"),
    "47 code hash of 16 bytes": ({dice_cbor.CODE_HASH: bytes(16)}, "dice.hash"),
    "47 code hash is text": ({dice_cbor.CODE_HASH: "a" * 64}, "dice.hash"),
    "47 unequal sizes": ({dice_cbor.AUTHORITY_HASH: bytes(32)}, "dice.hash"),
    "47 authority missing": ({dice_cbor.AUTHORITY_HASH: None}, "dice.hash"),
    "48 configuration hash wrong": ({dice_cbor.CONFIGURATION_HASH: bytes(64)}, "dice.confighash"),
    "48 configuration hash omitted": ({dice_cbor.CONFIGURATION_HASH: None}, "dice.confighash"),
    "48 configuration hash of 32 bytes": ({dice_cbor.CONFIGURATION_HASH: bytes(32)}, "dice.hash"),
    "48 descriptor swapped": (
        {dice_cbor.CONFIGURATION_DESCRIPTOR: Minted(boot_id=bytes(16)).config()},
        "dice.confighash",
    ),
    "48 descriptor missing": ({dice_cbor.CONFIGURATION_DESCRIPTOR: None}, "dice.structure"),
    "49 unknown field": ({-4670556: b""}, "dice.field"),
    "49 expiry": ({4: 2**32}, "dice.field"),
    "49 text field": ({"mode": 1}, "dice.field"),
    "40 sub is not the id of the key": ({dice_cbor.SUBJECT: "00" * 20}, "dice.subjectid"),
    "sub in upper case": (
        {dice_cbor.SUBJECT: keys.dice_id(DEVICE.key("app").public_key()).hex().upper()},
        "dice.structure",
    ),
    "sub is bytes": ({dice_cbor.SUBJECT: bytes(20)}, "dice.structure"),
    "iss missing": ({dice_cbor.ISSUER: None}, "dice.structure"),
    "key missing": ({dice_cbor.SUBJECT_PUBLIC_KEY: None}, "dice.structure"),
    "key as a map": ({dice_cbor.SUBJECT_PUBLIC_KEY: strict_loads(COSE_KEY)}, "dice.structure"),
    "27 key with d": (
        {dice_cbor.SUBJECT_PUBLIC_KEY: dumps({**keys.to_cose(DEVICE.key("app").public_key()), -4: bytes(32)})},
        "key.private",
    ),
    "34 small-order key": (
        {dice_cbor.SUBJECT_PUBLIC_KEY: dumps({1: 1, 3: -8, -1: 6, -2: b"\x01" + bytes(31)})},
        "key.smallorder",
    ),
    "03 key not in shortest form": ({dice_cbor.SUBJECT_PUBLIC_KEY: b"\xb8\x06" + COSE_KEY[1:]}, "cbor.nonminimal"),
    "code descriptor is text": ({dice_cbor.CODE_DESCRIPTOR: "x"}, "dice.structure"),
    "profile name is bytes": ({dice_cbor.PROFILE_NAME: b"x"}, "dice.structure"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_certificate_has_its_own_code(name: str) -> None:
    """The certificate is signed by the right key: only what it says is wrong."""
    changes, code = BAD[name]
    certificate = DEVICE.certificate(1, changes)
    rejects(code, lambda: dice_cbor.parse_certificate(certificate))


def test_19_tagged_certificate() -> None:
    rejects("cose.tag", lambda: dice_cbor.parse_certificate(b"\xd2" + DEVICE.certificate(0)))


def test_certificate_with_other_headers_or_payload() -> None:
    payload = cose.parse(DEVICE.certificate(0)).payload
    signed = cose.sign(payload, DEVICE.key("uds"), kid=b"x")
    rejects("cose.header", lambda: dice_cbor.parse_certificate(signed))
    rejects("dice.structure", lambda: dice_cbor.parse_certificate(cose.sign(b"\x80", DEVICE.key("uds"))))


def test_36_swapped_missing_duplicated() -> None:
    first, second = DEVICE.chain()
    rejects("chain.issuer", lambda: chain_of([second, first]))
    rejects("chain.issuer", lambda: chain_of([second]))
    rejects("chain.issuer", lambda: chain_of([first, first]))


def test_37_another_devices_anchor() -> None:
    other = Minted(seed=b"device two")
    rejects("chain.issuer", lambda: chain_of(DEVICE.chain(), other))
    forged = other.certificate(0, {dice_cbor.ISSUER: keys.dice_id(DEVICE.key("uds").public_key()).hex()})
    rejects("sig.invalid", lambda: chain_of([forged]))


def test_38_self_made_chain_that_carries_its_root() -> None:
    """An attacker's root certifies itself under the enrolled device's name."""
    layer = DEVICE.layers()[0]
    claims = mint.certificate_claims(STRANGER.public_key(), STRANGER.public_key(), layer)
    claims[dice_cbor.ISSUER] = keys.dice_id(DEVICE.key("uds").public_key()).hex()
    rejects("sig.invalid", lambda: chain_of([mint.sign_certificate(claims, STRANGER)]))


def test_39_issuer_is_not_the_previous_subject_although_the_signature_is_right() -> None:
    second = DEVICE.certificate(1, {dice_cbor.ISSUER: "00" * 20})
    rejects("chain.issuer", lambda: chain_of([DEVICE.certificate(0), second]))


def test_41_repeated_subject() -> None:
    """The application certifies the bootloader's key again, and the bootloader certifies the anchor's."""
    boot, uds = DEVICE.key("boot"), DEVICE.key("uds")
    loop = mint.certificate(boot, uds.public_key(), DEVICE.layers()[1])
    rejects("chain.repeat", lambda: chain_of([DEVICE.certificate(0), loop]))


def test_35_anchor_or_layer_of_the_zero_secret() -> None:
    zero = mint.signing_key(bytes(32), Alg.ES256)
    certificate = mint.certificate(zero, DEVICE.key("boot").public_key(), DEVICE.layers()[0])
    parsed = [dice_cbor.parse_certificate(certificate)]
    rejects("key.unprovisioned", lambda: dice_cbor.verify_chain(parsed, zero.public_key()))
    inner = mint.certificate(DEVICE.key("uds"), zero.public_key(), DEVICE.layers()[0])
    rejects("key.unprovisioned", lambda: chain_of([inner]))


def test_15_key_of_another_algorithm_than_the_signature() -> None:
    """A certificate signed with ES384 under a P-256 issuer."""
    claims = DEVICE.certificate_claims(1)
    second = mint.sign_certificate(claims, private_key(Alg.ES384, b"other"))
    rejects("cose.keyalg", lambda: chain_of([DEVICE.certificate(0), second]))


def test_compressed_ids_only_when_asked_for() -> None:
    public = DEVICE.key("boot").public_key()
    old_form = DEVICE.certificate(
        0,
        {
            dice_cbor.SUBJECT: keys.dice_id(public, compressed=True).hex(),
            dice_cbor.ISSUER: keys.dice_id(DEVICE.key("uds").public_key(), compressed=True).hex(),
        },
    )
    rejects("dice.subjectid", lambda: dice_cbor.parse_certificate(old_form))
    parsed = [dice_cbor.parse_certificate(old_form, compressed_ids=True)]
    uds = DEVICE.key("uds").public_key()
    rejects("chain.issuer", lambda: dice_cbor.verify_chain(parsed, uds))
    assert dice_cbor.verify_chain(parsed, uds, anchor_id=keys.dice_id(uds, compressed=True))


def leaf(usage: bytes = b"\x01", extra: dict[int, Any] | None = None) -> bytes:
    key = private_key(Alg.ES256, b"attestation key").public_key()
    claims: dict[int, Any] = {
        1: keys.dice_id(DEVICE.key("app").public_key()).hex(),
        2: keys.dice_id(key).hex(),
        dice_cbor.SUBJECT_PUBLIC_KEY: keys.encode_cose(key),
        dice_cbor.KEY_USAGE: usage,
    }
    return mint.sign_certificate({**claims, **(extra or {})}, DEVICE.key("app"))


def test_57_attestation_key_certificate() -> None:
    assert dice_cbor.parse_leaf(leaf())
    rejects("leaf.keyusage", lambda: dice_cbor.parse_leaf(leaf(b"\x20")))
    rejects("leaf.keyusage", lambda: dice_cbor.parse_leaf(leaf(b"\x21")))
    rejects("dice.field", lambda: dice_cbor.parse_leaf(leaf(extra={dice_cbor.MODE: b"\x01"})))


def config(**changes: Any) -> bytes:
    values: dict[Any, Any] = {-70002: "a", -70005: 1, -71001: bytes(32), -71002: bytes(16), -71003: 16, -71004: 0}
    values.update({int(label): value for label, value in changes.items()})
    return dumps({label: value for label, value in values.items() if value is not None})


@pytest.mark.parametrize(
    "descriptor",
    [
        dumps([1]),
        config(**{"-70002": None}),
        config(**{"-70002": b"a"}),
        config(**{"-70002": ""}),
        config(**{"-70002": "a\nb"}),
        config(**{"-70002": "a" * 33}),
        config(**{"-70005": None}),
        config(**{"-70005": True}),
        config(**{"-70005": -1}),
        config(**{"-70005": 2**32}),
        config(**{"-71001": bytes(31)}),
        config(**{"-71002": bytes(15)}),
        config(**{"-71002": "0" * 16}),
        config(**{"-71003": "ota_0"}),
        config(**{"-71004": None}),
        config(**{"-70004": 1}),
    ],
)
def test_bad_descriptor(descriptor: bytes) -> None:
    rejects("dice.config", lambda: dice_cbor.read_application_config(descriptor))


KNOWN = [
    (cert, alg) for alg in ("Ed25519", "P256", "P384") for cert in ("DescriptorInput", "HashOnlyInput", "ZeroInput")
]


@pytest.mark.parametrize(("case", "name"), KNOWN)
@pytest.mark.parametrize("android", ["", "Android"])
def test_open_dice_known_answers(case: str, name: str, android: str) -> None:
    """Every published CBOR certificate with a supported algorithm parses by our rules; all of them are mode 0.

    ML-DSA ones are left out: the algorithm is not supported. One file of the set does not exist upstream.
    """
    path = vectors("open-dice-known") / f"Cbor{name}Cert_{android}{case}.cose"
    if not path.exists():
        assert (name, android, case) == ("Ed25519", "", "DescriptorInput")
        return
    alg = {"Ed25519": Alg.EDDSA, "P256": Alg.ES256, "P384": Alg.ES384}[name]
    data = path.read_bytes()
    certificate = dice_cbor.parse_certificate(data, algs=frozenset({alg}), require_configuration_hash=False)
    assert certificate.mode is Mode.NOT_CONFIGURED
    if case == "DescriptorInput":
        assert dice_cbor.parse_certificate(data).configuration == certificate.configuration
    else:
        rejects("dice.confighash", lambda: dice_cbor.parse_certificate(data))
    if alg is not Alg.ES384:
        signature_of_a_known_device(certificate, alg, case)


def signature_of_a_known_device(certificate: dice_cbor.Certificate, alg: Alg, case: str) -> None:
    """The UDS of the published vectors: zeros for ZeroInput; the others' is not published with them."""
    if case != "ZeroInput":
        return
    uds = mint.signing_key(bytes(32), alg).public_key()
    cose.verify(certificate.message, uds)
    assert certificate.issuer == keys.dice_id(uds)
    rejects("key.unprovisioned", lambda: dice_cbor.verify_chain([certificate], uds))
