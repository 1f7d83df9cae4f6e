# SPDX-License-Identifier: Apache-2.0
"""Three ways of enrolment, each refused for every single thing that may be wrong with it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from attestation import cose, enrolment, factory_list, keys, vendor_ca
from attestation.cbor import dumps
from attestation.device_file import base64url
from attestation.factory_list import Entry
from attestation.keys import Alg
from attestation.policy import RootOfTrust
from tests.unit.attestation.world import NOW, Minted, policy, private_key, rejects

ALGS = (Alg.ES256, Alg.ES384, Alg.EDDSA)
NONCE = bytes(range(32))


def entry(seed: bytes = b"one", alg: Alg = Alg.ES256, batch: str = "b1", **more: Any) -> Entry:
    key = private_key(alg, seed)
    return Entry(keys.encode_cose(key.public_key()), enrolment.mint_proof(key, batch), **more)


# Factory list


@pytest.mark.parametrize("write", [factory_list.write_csv, lambda rows: factory_list.write_cbor(rows, "b1")])
def test_a_list_of_every_algorithm_in_both_forms(write: Callable[[list[Entry]], bytes]) -> None:
    rows = [entry(alg.name.encode(), alg, oemid=bytes(3), hwmodel="c3") for alg in ALGS] + [entry(b"plain")]
    found = factory_list.read(write(rows), "b1")
    assert [keys.encode_cose(one.key) for one in found] == [row.cose_key for row in rows]
    assert (found[0].oemid, found[0].hwmodel, found[3].oemid) == (bytes(3), "c3", None)


def test_rule_4_a_proof_is_of_this_key_and_this_batch() -> None:
    stolen = Entry(entry(b"two").cose_key, entry(b"one").proof)
    own = private_key(Alg.ES256, b"two")
    other = cose.sign(
        dumps({1: keys.ueid(private_key(Alg.ES256, b"one").public_key()), 2: "b1"}),
        own,
        content_type=enrolment.PROOF_TYPE,
    )
    for row in (stolen, entry(batch="b2"), Entry(entry().cose_key, b"\x80"), Entry(entry(b"two").cose_key, other)):
        for data in (factory_list.write_csv([row]), factory_list.write_cbor([row], "b1")):
            assert "device 1" in str(rejects("enrol.proof", lambda data=data: factory_list.read(data, "b1")))


def _csv(*lines: str) -> bytes:
    return "\n".join(lines).encode()


K, P = base64url(entry().cose_key), base64url(entry().proof)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"\xa2\x01",
        _csv("cose_key,proof"),
        _csv("proof,cose_key", f"{P},{K}"),
        _csv("cose_key,proof,tier", f"{K},{P},Isolated"),
        _csv("cose_key,proof,oemid,oemid", f"{K},{P},,"),
        _csv("cose_key,proof", f"{K}"),
        _csv("cose_key,proof", f"{K}=,{P}"),
        _csv("cose_key,proof", f"{K},{P}", f"{K},{P}"),
        _csv("cose_key,proof,oemid", f"{K},{P},00"),
        _csv("cose_key,proof,oemid", f"{K},{P},xyz"),
        _csv("cose_key,proof,hwmodel", f"{K},{P},{'m' * 33}"),
        factory_list.write_cbor([entry()], "b2"),
        factory_list.write_cbor([], "b1"),
        dumps({1: "b1", 2: [{1: entry().cose_key}]}),
        dumps({1: "b1", 2: [{1: "text", 2: entry().proof}]}),
        dumps({1: "b1", 2: [{1: entry().cose_key, 2: entry().proof, 3: 7}]}),
        dumps({1: "b1", 2: 3}),
        factory_list.write_cbor([entry()], "b1") + b"\x00",
    ],
)
def test_lists_that_are_refused_whole(data: bytes) -> None:
    rejects("enrol.list", lambda: factory_list.read(data, "b1"))


def test_an_unprovisioned_device_is_in_no_list() -> None:
    from attestation import mint

    key = mint.signing_key(bytes(32), Alg.ES256)
    row = Entry(keys.encode_cose(key.public_key()), enrolment.mint_proof(key, "b1"))
    assert "key.unprovisioned" in str(
        rejects("enrol.list", lambda: factory_list.read(factory_list.write_csv([row]), "b1"))
    )


# Vendor CA

Ca = tuple[x509.Certificate, Any]
DEVICE = private_key(Alg.ES256, b"device")


def issue(
    subject: str,
    key: Any,
    issuer: Ca | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    critical: bool = True,
    sign: bool = True,
    begin: int = -1,
    days: int = 365,
    algorithm: Any = "default",
    extra: x509.ExtensionType | None = None,
    extra_critical: bool = False,
    usage: bool = True,
    issuer_name: str | None = None,
    serial: int = 77,
) -> Ca:
    signer = issuer[1] if issuer else key
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    above = issuer[0].subject if issuer else name
    if issuer_name:
        above = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)])
    start = datetime.fromtimestamp(NOW, UTC) + timedelta(days=begin)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical)
    )
    if usage:
        builder = builder.add_extension(
            x509.KeyUsage(not sign, False, False, False, False, sign, False, False, False), critical
        )
    if extra is not None:
        builder = builder.add_extension(extra, extra_critical)
    if algorithm == "default":
        curve = getattr(signer, "curve", None)
        algorithm = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}.get(getattr(curve, "name", ""))
        if isinstance(signer, rsa.RSAPrivateKey):
            algorithm = hashes.SHA256()
    return builder.sign(signer, algorithm), key


ROOT = issue("root", private_key(Alg.ES384, b"root"))
MIDDLE = issue("middle", private_key(Alg.EDDSA, b"middle"), ROOT)
LEAF = issue("device", DEVICE, MIDDLE)


def path(*cas: Ca) -> list[x509.Certificate]:
    return [one for one, _ in cas]


@pytest.mark.parametrize("alg", ALGS)
def test_a_uds_certificate_leads_to_the_vendors_root(alg: Alg) -> None:
    leaf = issue("device", private_key(alg, b"uds"), MIDDLE)
    expected = keys.raw(private_key(alg, b"uds").public_key())
    assert keys.raw(vendor_ca.device_key(path(leaf, MIDDLE), path(ROOT), NOW)) == expected
    assert keys.raw(vendor_ca.device_key(path(leaf, MIDDLE, ROOT), path(ROOT), NOW)) == expected


def _bad(name: str) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    weak = rsa.generate_private_key(65537, 2048) if "rsa" in name else None
    key, root = DEVICE, path(ROOT)
    middle = ROOT[1]
    cases: dict[str, Callable[[], tuple[list[x509.Certificate], list[x509.Certificate]]]] = {
        "no path": lambda: ([], root),
        "too long": lambda: (path(LEAF, MIDDLE, MIDDLE, MIDDLE, MIDDLE), root),
        "unknown root": lambda: (path(LEAF, MIDDLE), path(issue("elsewhere", private_key(Alg.ES256, b"e")))),
        "same name, other key": lambda: (path(LEAF, MIDDLE), path(issue("root", private_key(Alg.ES256, b"e")))),
        "no roots": lambda: (path(LEAF, MIDDLE), []),
        "a root as device": lambda: (path(ROOT), root),
        "middle left out": lambda: (path(LEAF), root),
        "wrong order": lambda: (path(MIDDLE, LEAF), root),
        "expired": lambda: (path(issue("d", key, MIDDLE, begin=-9, days=8), MIDDLE), root),
        "not yet": lambda: (path(issue("d", key, MIDDLE, begin=1), MIDDLE), root),
        "no ca": lambda: (path(issue("d", key, MIDDLE, ca=False), MIDDLE), root),
        "not critical": lambda: (path(issue("d", key, MIDDLE, critical=False), MIDDLE), root),
        "no key usage": lambda: (path(issue("d", key, MIDDLE, usage=False), MIDDLE), root),
        "digital signature only": lambda: (path(issue("d", key, MIDDLE, sign=False), MIDDLE), root),
        "unknown critical": lambda: (
            path(
                issue(
                    "d", key, MIDDLE, extra_critical=True,
                    extra=x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
                ),
                MIDDLE,
            ),
            root,
        ),
        "name constraints": lambda: (
            path(issue("d", key, MIDDLE, extra=x509.NameConstraints([x509.DNSName("x")], None)), MIDDLE), root,
        ),
        "issuer name": lambda: (path(issue("d", key, MIDDLE, issuer_name="other"), MIDDLE), root),
        "authority key id": lambda: (
            path(issue("d", key, (_with_ski()[0], _with_ski()[1]), extra=_aki(b"other")), _with_ski()), root,
        ),
        "forged": lambda: (
            path(issue("d", key, (MIDDLE[0], private_key(Alg.EDDSA, b"not the middle"))), MIDDLE), root,
        ),
        "path length": lambda: _short(),
        "rsa device": lambda: (path(issue("d", weak, MIDDLE), MIDDLE), root),
        "rsa ca": lambda: (path(issue("d", key, issue("m", weak, ROOT)), issue("m", weak, ROOT)), root),
        "sha-384 on p-256": lambda: (
            path(issue("d", key, issue("m", private_key(Alg.ES256, b"m"), ROOT), algorithm=hashes.SHA384()),
                 issue("m", private_key(Alg.ES256, b"m"), ROOT)), root,
        ),
        "p-521 device": lambda: (path(issue("d", ec.generate_private_key(ec.SECP521R1()), MIDDLE), MIDDLE), root),
        "expired root": lambda: _old_root(),
    }  # fmt: skip
    assert middle is not None
    return cases[name]()


def _with_ski() -> Ca:
    return issue("ski", private_key(Alg.EDDSA, b"ski"), ROOT, extra=x509.SubjectKeyIdentifier(b"own"))


def _aki(value: bytes) -> x509.ExtensionType:
    return x509.AuthorityKeyIdentifier(value, None, None)


def _short() -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    root = issue("short", private_key(Alg.ES256, b"short"), path_length=0)
    middle = issue("m", private_key(Alg.ES256, b"m"), root)
    return path(issue("d", DEVICE, middle), middle), path(root)


def _old_root() -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    root = issue("old", private_key(Alg.ES256, b"old"), begin=-9, days=8)
    return path(issue("d", DEVICE, root)), path(root)


@pytest.mark.parametrize(
    "name",
    [
        "no path", "too long", "unknown root", "same name, other key", "no roots", "a root as device", "middle left out",
        "wrong order", "expired", "not yet", "no ca", "not critical", "no key usage", "digital signature only",
        "unknown critical", "name constraints", "issuer name", "authority key id", "forged", "path length", "rsa device",
        "rsa ca", "sha-384 on p-256", "p-521 device", "expired root",
    ],
)  # fmt: skip
def test_uds_certificates_that_are_refused(name: str) -> None:
    certificates, roots = _bad(name)
    rejects("enrol.certificate", lambda: vendor_ca.device_key(certificates, roots, NOW))


def test_a_path_length_that_is_kept() -> None:
    root = issue("short", private_key(Alg.ES256, b"short"), path_length=0)
    assert vendor_ca.device_key(path(issue("d", DEVICE, root)), path(root), NOW)


def test_files_of_certificates() -> None:
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    both = LEAF[0].public_bytes(pem) + MIDDLE[0].public_bytes(pem)
    assert vendor_ca.parse(both) == path(LEAF, MIDDLE)
    assert vendor_ca.parse(LEAF[0].public_bytes(der)) == path(LEAF)
    for bad in (b"", b"\x30", LEAF[0].public_bytes(der) + b"\x00", b"-----BEGIN CERTIFICATE-----", bytes(40_000)):
        rejects("enrol.certificate", lambda bad=bad: vendor_ca.parse(bad))


# First use


def _first_use(phone: Minted, key: Any = None, nonce: bytes = NONCE) -> enrolment.Pending:
    return enrolment.first_use(
        phone.evidence(), key or phone.key("uds").public_key(), tier=RootOfTrust.SIGNED_BOOT, policy_name="default",
        policy=policy(phone), nonce=nonce, now=NOW, seen_from="192.0.2.7:80",
    )  # fmt: skip


def test_a_device_proves_its_key_whatever_it_runs_and_then_waits() -> None:
    phone = Minted(nonce=NONCE, code="an unknown application")
    waiting = _first_use(phone)
    assert waiting.id == phone.ueid.hex()
    assert enrolment.Pending.read(waiting.to_json()) == waiting
    assert keys.raw(waiting.key) == keys.raw(phone.key("uds").public_key())


def test_first_use_believes_nothing_else() -> None:
    phone = Minted(nonce=NONCE)
    rejects("enrol.proof", lambda: _first_use(phone, nonce=bytes(32)))
    rejects("enrol.proof", lambda: _first_use(phone, key=private_key(Alg.ES256, b"other").public_key()))
    rejects("enrol.proof", lambda: _first_use(Minted(nonce=NONCE, mode0=2)))
    rejects("enrol.proof", lambda: _first_use(Minted(nonce=NONCE, bootloader="unknown")))


def test_a_waiting_device_that_was_tampered_with() -> None:
    waiting = _first_use(Minted(nonce=NONCE))
    for bad in (b"", b"{}", waiting.to_json().replace(b"SignedBoot", b"Strong")):
        rejects("enrol.pending", lambda bad=bad: enrolment.Pending.read(bad))
    other = Minted(seed=b"two").ueid.hex().encode()
    swapped = enrolment.Pending.read(waiting.to_json().replace(waiting.id.encode(), other))
    rejects("enrol.pending", lambda: swapped.key)
