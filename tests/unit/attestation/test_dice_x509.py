# SPDX-License-Identifier: Apache-2.0
"""DICE certificates in X.509, rule by rule (attack 45), and one verdict for both forms."""

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation import der, dice_cbor, dice_x509, keys, mint
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.policy import Algorithm, LeafSigning, Mode
from tests.unit.attestation.world import Minted, judge, policy, private_key, rejects, vectors

DEVICE = Minted()
UDS, BOOT, APP = (DEVICE.key(name) for name in ("uds", "boot", "app"))
LAYER = DEVICE.layers()[0]
HONEST = mint.x509_certificate(UDS, BOOT.public_key(), LAYER)
PLAIN_CA = (dice_x509.BASIC_CONSTRAINTS, True, dice_x509.CA)
USAGE = (dice_x509.KEY_USAGE, True, dice_x509.KEY_CERT_SIGN)
Extension = tuple[bytes, bool, bytes]


def dice_extension(**changes: bytes | None) -> bytes:
    """The DICE extension of LAYER; a field changed to None is left out, a changed one is written as it is."""
    octets = der.OCTET_STRING
    fields: dict[str, bytes | None] = {
        "code": der.write(0xA0, der.write(octets, LAYER.code_hash)),
        "config_hash": der.write(0xA2, der.write(octets, LAYER.config_hash)),
        "config": der.write(0xA3, der.write(octets, LAYER.config)),
        "authority": der.write(0xA4, der.write(octets, LAYER.authority_hash)),
        "mode": der.write(0xA6, der.write(der.ENUMERATED, b"\x01")),
        **changes,
    }
    return der.write(der.SEQUENCE, *(value for value in fields.values() if value is not None))


def signed(*extensions: Extension) -> bytes:
    """A certificate of the bootloader's key with key identifiers and these extensions."""
    subject = BOOT.public_key()
    return mint.sign_x509(UDS, subject, mint.x509_extensions(UDS.public_key(), subject, *extensions))


def with_dice(value: bytes) -> bytes:
    return signed(USAGE, PLAIN_CA, (dice_x509.DICE, True, value))


def resigned(change: Callable[[bytes], bytes]) -> bytes:
    """The honest certificate with another signed part, signed again by the right key."""
    body = change(x509.load_der_x509_certificate(HONEST).tbs_certificate_bytes)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = UDS.sign(body, ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg]
    return der.write(der.SEQUENCE, body, algorithm, der.write(der.BIT_STRING, b"\x00", signature))


def swapped(old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)

    def change(body: bytes) -> bytes:
        assert body.count(old) == 1
        return body.replace(old, new)

    return resigned(change)


UDS_ID, BOOT_ID = keys.dice_id(UDS.public_key()), keys.dice_id(BOOT.public_key())
HONEST_DICE = dice_extension()

BAD: dict[str, tuple[bytes, str]] = {
    "1 trailing byte": (HONEST + b"\x00", "dice.x509.der"),
    "1 empty": (b"", "size"),
    "1 too long": (HONEST + bytes(2048), "size"),
    "1 not DER": (b"\x30\x80" + HONEST[4:] + b"\x00\x00", "dice.x509.der"),
    "1 longer length than needed": (b"\x30\x83\x00" + HONEST[2:], "dice.x509.der"),
    "1 version 1": (swapped(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x00"), "dice.x509.der"),
    "2 other algorithm inside": (
        swapped(bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300a06082a8648ce3d040303")),
        "dice.x509.alg",
    ),
    "2 SHA-1": (
        swapped(bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300a06082a8648ce3d040301")),
        "dice.x509.alg",
    ),
    "3 upper-case subject": (
        swapped(BOOT_ID.hex().encode(), BOOT_ID.hex().upper().encode()),
        "dice.x509.name",
    ),
    "3 issuer in UTF-8": (
        swapped(b"\x13\x28" + UDS_ID.hex().encode(), b"\x0c\x28" + UDS_ID.hex().encode()),
        "dice.x509.name",
    ),
    "3 common name": (
        swapped(b"\x55\x04\x05\x13\x28" + UDS_ID.hex().encode(), b"\x55\x04\x03\x13\x28" + UDS_ID.hex().encode()),
        "dice.x509.name",
    ),
    "4 subject that is not the serial number": (swapped(BOOT_ID.hex().encode(), b"0" * 40), "dice.x509.serial"),
    "4 subject of another key": (
        resigned(lambda body: body.replace(BOOT_ID, UDS_ID).replace(BOOT_ID.hex().encode(), UDS_ID.hex().encode())),
        "dice.subjectid",
    ),
    "4 another serial number": (swapped(b"\x02\x14" + BOOT_ID, b"\x02\x14\x01" + BOOT_ID[1:]), "dice.x509.serial"),
    "5 ends earlier": (swapped(b"99991231235959Z", b"20991231235959Z"), "dice.x509.validity"),
    "5 begins at no time": (swapped(b"180322235959Z", b"1803222359590"), "dice.x509.validity"),
    "7 key usage digitalSignature": (
        signed((dice_x509.KEY_USAGE, True, dice_x509.DIGITAL_SIGNATURE), PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE)),
        "dice.keyusage",
    ),
    "7 key usage both": (
        signed((dice_x509.KEY_USAGE, True, bytes.fromhex("03020284")), PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE)),
        "dice.keyusage",
    ),
    "7 key usage not critical": (
        signed((dice_x509.KEY_USAGE, False, USAGE[2]), PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE)),
        "dice.x509.extension",
    ),
    "7 key usage absent": (signed(PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE)), "dice.x509.extension"),
    "7 no CA": (
        signed(USAGE, (dice_x509.BASIC_CONSTRAINTS, True, b"\x30\x00"), (dice_x509.DICE, True, HONEST_DICE)),
        "dice.x509.constraints",
    ),
    "7 CA is FALSE in so many words": (
        signed(USAGE, (dice_x509.BASIC_CONSTRAINTS, True, bytes.fromhex("3003010100")), (dice_x509.DICE, True, HONEST_DICE)),
        "dice.x509.constraints",
    ),
    "7 constraints not critical": (
        signed(USAGE, (dice_x509.BASIC_CONSTRAINTS, False, dice_x509.CA), (dice_x509.DICE, True, HONEST_DICE)),
        "dice.x509.extension",
    ),
    "7 negative path length": (
        signed(
            USAGE, (dice_x509.BASIC_CONSTRAINTS, True, bytes.fromhex("30060101ff0201ff")), (dice_x509.DICE, True, HONEST_DICE)
        ),
        "dice.x509.constraints",
    ),
    "7 DICE absent": (signed(USAGE, PLAIN_CA), "dice.x509.extension"),
    "7 DICE not critical": (signed(USAGE, PLAIN_CA, (dice_x509.DICE, False, HONEST_DICE)), "dice.x509.extension"),
    "7 DICE twice": (
        signed(USAGE, PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE), (dice_x509.DICE, True, HONEST_DICE)),
        "dice.x509.extension",
    ),
    "7 unknown critical extension (TCG DICE TcbInfo)": (
        signed(
            USAGE, PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE), (bytes.fromhex("0606678105050401"), True, b"\x30\x00")
        ),
        "dice.x509.extension",
    ),
    "7 unknown extension that is not critical": (
        signed(
            USAGE, PLAIN_CA, (dice_x509.DICE, True, HONEST_DICE), (bytes.fromhex("0606678105050401"), False, b"\x30\x00")
        ),
        "dice.x509.extension",
    ),
    "7 another issuer's key identifier": (
        swapped(der.write(0x80, UDS_ID), der.write(0x80, bytes(20))),
        "dice.x509.keyid",
    ),
    "7 another subject key identifier": (
        swapped(b"\x04\x16\x04\x14" + BOOT_ID, b"\x04\x16\x04\x14" + bytes(20)),
        "dice.x509.keyid",
    ),
    "8 trailing byte": (with_dice(HONEST_DICE + b"\x00"), "dice.x509.der"),
    "8 code hash absent": (with_dice(dice_extension(code=None)), "dice.hash"),
    "8 code hash of 16 bytes": (
        with_dice(dice_extension(code=der.write(0xA0, der.write(der.OCTET_STRING, bytes(16))))),
        "dice.hash",
    ),
    "8 configuration hash absent": (with_dice(dice_extension(config_hash=None)), "dice.confighash"),
    "8 configuration absent": (with_dice(dice_extension(config=None)), "dice.structure"),
    "8 configuration hash of other content": (
        with_dice(dice_extension(config=der.write(0xA3, der.write(der.OCTET_STRING, b"\xa0")))),
        "dice.confighash",
    ),
    "8 authority hash absent": (with_dice(dice_extension(authority=None)), "dice.hash"),
    "8 mode absent": (with_dice(dice_extension(mode=None)), "dice.mode.structure"),
    "8 mode 7": (
        with_dice(dice_extension(mode=der.write(0xA6, der.write(der.ENUMERATED, b"\x07")))),
        "dice.mode.structure",
    ),
    "8 mode of two bytes": (
        with_dice(dice_extension(mode=der.write(0xA6, der.write(der.ENUMERATED, b"\x00\x01")))),
        "dice.mode.structure",
    ),
    "8 mode as INTEGER": (
        with_dice(dice_extension(mode=der.write(0xA6, der.write(der.INTEGER, b"\x01")))),
        "dice.x509.der",
    ),
    "8 two values in one field": (
        with_dice(dice_extension(mode=der.write(0xA6, der.write(der.ENUMERATED, b"\x01") * 2))),
        "dice.x509.der",
    ),
    "8 unknown field": (with_dice(dice_extension(later=der.write(0xA8, b""))), "dice.field"),
    "8 out of order": (with_dice(dice_extension(again=der.write(0xA0, b""))), "dice.field"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_45_bad_certificate_has_its_own_code(name: str) -> None:
    """Signed by the right key unless the envelope itself is broken: only what the name says is wrong."""
    certificate, code = BAD[name]
    rejects(code, lambda: dice_x509.parse_certificate(certificate))


def test_the_honest_certificate_and_the_helpers_agree() -> None:
    assert dice_x509.parse_certificate(with_dice(HONEST_DICE)) == dice_x509.parse_certificate(HONEST)
    in_cbor, in_x509 = (
        dice_cbor.parse_certificate(DEVICE.certificate(0)),
        dice_x509.parse_certificate(HONEST),
    )
    for field in ("issuer", "subject", "code_hash", "configuration", "authority_hash", "mode", "profile_name"):
        assert getattr(in_cbor, field) == getattr(in_x509, field), field


@pytest.mark.parametrize("alg", Alg)
@pytest.mark.parametrize("size", [32, 64])
def test_a_chain_in_x509_gets_the_verdict_of_the_chain_in_cbor(alg: Alg, size: int) -> None:
    device = Minted(alg=alg, size=size)
    rules = policy(device, algorithms=tuple(Algorithm))
    ours, other = judge(device, device.evidence(device.x509_chain()), policy=rules), judge(device, policy=rules)
    assert ours.proven_at_tier, ours.message
    assert ours.claims == other.claims
    assert [step.rule for step in ours.trail] == [step.rule for step in other.trail]


def test_mixed_forms_are_refused() -> None:
    chain = [DEVICE.x509_chain()[0], DEVICE.chain()[1]]
    assert judge(DEVICE, DEVICE.evidence(chain)).code == "dice.form"


def test_path_length_is_honoured() -> None:
    first, second = DEVICE.layers()
    tight = mint.x509_certificate(UDS, BOOT.public_key(), first, path_length=0)
    app = mint.x509_certificate(BOOT, APP.public_key(), second)
    assert judge(DEVICE, DEVICE.evidence([tight, app])).code == "dice.x509.pathlen"
    enough = mint.x509_certificate(UDS, BOOT.public_key(), first, path_length=1)
    assert judge(DEVICE, DEVICE.evidence([enough, app])).accepted


def test_an_attestation_key_certified_in_x509() -> None:
    leaf = private_key(Alg.ES256, b"attestation key")
    rules = policy(DEVICE, leaf_signing=LeafSigning.ATTESTATION_KEY)
    chain = [*DEVICE.x509_chain(), mint.x509_leaf(APP, leaf.public_key())]
    assert judge(DEVICE, DEVICE.evidence(chain, DEVICE.token(key=leaf)), policy=rules).accepted
    ca = mint.sign_x509(APP, leaf.public_key(), mint.x509_extensions(APP.public_key(), leaf.public_key(), USAGE))
    assert (
        judge(DEVICE, DEVICE.evidence([*chain[:2], ca], DEVICE.token(key=leaf)), policy=rules).code == "leaf.keyusage"
    )
    usage = (dice_x509.KEY_USAGE, True, dice_x509.DIGITAL_SIGNATURE)
    listed = mint.x509_extensions(APP.public_key(), leaf.public_key(), usage, PLAIN_CA)
    rejects("dice.x509.constraints", lambda: dice_x509.parse_leaf(mint.sign_x509(APP, leaf.public_key(), listed)))


def test_signature_and_issuer_in_x509() -> None:
    """Signed by a stranger under the anchor's name; and linked to another anchor."""
    stranger = private_key(Alg.ES256, b"stranger")
    forged = resigned(lambda body: body)[:-8] + bytes(8)
    assert judge(DEVICE, DEVICE.evidence([forged, DEVICE.x509_chain()[1]])).code in ("sig.invalid", "sig.length")
    other = mint.x509_certificate(stranger, BOOT.public_key(), LAYER)
    assert judge(DEVICE, DEVICE.evidence([other, DEVICE.x509_chain()[1]])).code == "chain.issuer"


def test_keys_that_the_profile_does_not_know() -> None:
    """RSA, P-521 and a compressed point in the SubjectPublicKeyInfo, all in a certificate of the right shape."""
    spki = x509.load_der_x509_certificate(HONEST).public_key()
    assert isinstance(spki, ec.EllipticCurvePublicKey)
    for foreign, code in (
        (rsa.generate_private_key(65537, 2048).public_key(), "key.curve"),
        (ec.generate_private_key(ec.SECP521R1()).public_key(), "key.curve"),
    ):
        encoded = foreign.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        old = spki.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

        def change(body: bytes, old: bytes = old, new: bytes = encoded) -> bytes:
            content = der.Reader(body, "body").element(der.SEQUENCE)
            return der.write(der.SEQUENCE, content.replace(old, new))

        certificate = resigned(change)
        rejects(code, lambda certificate=certificate: dice_x509.parse_certificate(certificate))


@pytest.mark.parametrize("case", ["DescriptorInput", "HashOnlyInput", "ZeroInput"])
@pytest.mark.parametrize(("name", "alg"), [("Ed25519", Alg.EDDSA), ("P256", Alg.ES256)])
def test_open_dice_certificates_parse_and_are_mode_0(case: str, name: str, alg: Alg) -> None:
    data = (vectors("open-dice-known") / f"X509{name}Cert_{case}.der").read_bytes()
    certificate = dice_x509.parse_certificate(data, algs=frozenset({alg}), require_configuration_hash=False)
    assert certificate.mode is Mode.NOT_CONFIGURED
    if case != "DescriptorInput":
        rejects("dice.confighash", lambda: dice_x509.parse_certificate(data))
    rejects("dice.x509.alg", lambda: dice_x509.parse_certificate(data, algs=frozenset({Alg.ES384})))


def test_every_flipped_bit_and_every_truncation_is_refused() -> None:
    for position in range(len(HONEST) * 8):
        flipped = bytearray(HONEST)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(Reject):
            dice_cbor.verify_chain([dice_x509.parse_certificate(bytes(flipped))], UDS.public_key())
    for end in range(len(HONEST)):
        rejects("size" if end == 0 else "dice.x509.der", lambda end=end: dice_x509.parse_certificate(HONEST[:end]))
