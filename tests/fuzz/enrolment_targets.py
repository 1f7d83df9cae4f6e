# SPDX-License-Identifier: Apache-2.0
"""Targets of enrolment, of what is kept, and of what the verifier signs itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from attestation import dsse, ear, evidence, factory_list, keys, vendor_ca
from attestation.enrolment import mint_proof
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.replay import InMemorySingleUse
from attestation.statement import by_key_id
from attestation.verifier import verify_once
from tests.unit.attestation.world import NOW, Minted, context

from .target import Accepted, Target, only_seeds

_BATCH = "2026-11"


def enrolment_targets() -> Iterator[Target]:
    """All of them."""
    phone = Minted()
    yield from _lists()
    yield from _certificates()
    key = ec.derive_private_key(11, ec.SECP256R1())
    told, public = context(phone), key.public_key()
    verdict = verify_once(phone.evidence(), told, InMemorySingleUse())
    payload = evidence.record(phone.evidence(), told, verdict, verifier="test 1", about={"task": "one"})
    assert payload is not None, "the verdict is about a nonce of ours"
    yield only_seeds("record", lambda raw: evidence.read(raw, [public]), (evidence.seal(payload, key),))
    yield Target(
        "attestation-record-payload",
        lambda raw: evidence.read(dsse.seal(evidence.PAYLOAD_TYPE, raw, key), [public]),
        (Reject,),
        (payload,),
    )
    nonce = phone.fresh_nonce()
    result = ear.mint(
        verdict, key, ueid=phone.ueid, nonce=nonce, policy_name="default",
        verifier=ear.Verifier("flashjob.dev", "test 1"), now=NOW,
    )  # fmt: skip
    yield only_seeds("ear", lambda raw: ear.check(raw, by_key_id(public), nonce=nonce, now=NOW), (result,))


def _lists() -> Iterator[Target]:
    """A maker's list of keys: every key in an accepted list was in a true one, since its proof is."""
    devices = [Minted(alg=alg, seed=alg.name.encode()).key("uds") for alg in (Alg.ES256, Alg.EDDSA)]
    entries = [
        factory_list.Entry(keys.encode_cose(key.public_key()), mint_proof(key, _BATCH), bytes(16), "porch")
        for key in devices
    ]
    known = {entry.cose_key for entry in entries}

    def judged(raw: bytes) -> None:
        for listed in factory_list.read(raw, _BATCH):
            if keys.encode_cose(listed.key) not in known:
                raise Accepted("factory-list: a key that nobody proved to hold")

    seeds = (factory_list.write_cbor(entries, _BATCH), factory_list.write_csv(entries))
    yield Target("attestation-factory-list", judged, (Reject,), seeds)


def _certificates() -> Iterator[Target]:
    """A vendor's certificate of one device."""
    root_key, device_key = (ec.derive_private_key(number, ec.SECP256R1()) for number in (21, 22))
    root = _issue("root", root_key, "root", root_key)
    genuine = _issue("device", device_key, "root", root_key)

    def judged(raw: bytes) -> None:
        path = vendor_ca.parse(raw)
        vendor_ca.device_key(path, [root], NOW)
        if path[0].tbs_certificate_bytes != genuine.tbs_certificate_bytes:
            raise Accepted("vendor-certificate: the vendor did not sign it")

    forms = (serialization.Encoding.DER, serialization.Encoding.PEM)
    yield Target("attestation-vendor-certificate", judged, (Reject,), tuple(map(genuine.public_bytes, forms)))


def _issue(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    subject_name, issuer_name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer))
    start = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=900))
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(usage, True)
        .sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    )
