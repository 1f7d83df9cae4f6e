# SPDX-License-Identifier: Apache-2.0
"""A device and a verifier in one place: tests spoil exactly one thing and name the code they expect."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation import dice_cbor, eat, keys, mint, nonce
from attestation.anchors import DeviceAnchor
from attestation.cbor import Writable
from attestation.errors import Code, Reject
from attestation.keys import Alg, PrivateKey
from attestation.policy import (
    ApplicationRules,
    AttestationPolicySpec,
    BootloaderRules,
    Measurement,
    MeasurementRef,
    RootOfTrust,
)
from attestation.verifier import Context, ExactNonce, IssuedNonce, Verdict, verify

NOW = 1_800_000_000
RING = nonce.KeyRing(7, {7: bytes(range(32)), 6: bytes(range(1, 33))})
AUDIENCE = b"task/1/after"
BOOT_ID = bytes(range(16))
LOCKED = dice_cbor.EFUSES_LOCKED
MODES = {"NotConfigured": 0, "Normal": 1, "Debug": 2, "Recovery": 3}


def vectors(folder: str) -> Path:
    """A folder of published vectors, or a skip that says what to set."""
    root = os.environ.get("FLASHJOB_VECTORS_DIR")
    if not root:
        pytest.skip("FLASHJOB_VECTORS_DIR is not set: published attestation vectors are not available")
    return Path(root) / folder


def private_key(alg: Alg, seed: bytes) -> PrivateKey:
    """A key that depends on the seed alone."""
    if alg is Alg.ES384:
        return ec.derive_private_key(int.from_bytes(hashlib.sha384(seed).digest()[:40], "big"), ec.SECP384R1())
    if alg is Alg.EDDSA:
        return ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed).digest())
    return mint.signing_key(hashlib.sha256(seed).digest(), alg)


def digest(text: str, size: int = 64) -> bytes:
    """A code hash of 32 or 64 bytes."""
    return (hashlib.sha512 if size == 64 else hashlib.sha256)(text.encode()).digest()


@dataclass
class Minted:
    """What a device would answer with. Change a field, then ask for ``evidence``."""

    alg: Alg = Alg.ES256
    size: int = 64
    seed: bytes = b"device one"
    mode0: int = 1
    mode1: int = 1
    authority: bytes | None = None
    bootloader: str = "bootloader 1"
    code: str = "app 2.0"
    name: str = "porch"
    secure_version: int = 3
    boot_id: bytes = BOOT_ID
    efuses: int = LOCKED
    partition_table: bytes = hashlib.sha256(b"table").digest()
    bootloader_config: bytes = field(default_factory=lambda: mint.bootloader_config(secure_version=1))
    slot_state: int = 2
    boot_count: int = 12
    debug: int = 3
    nonce: bytes | None = None

    def key(self, layer: str) -> PrivateKey:
        """UDS key ("uds"), layer 0 ("boot") or application ("app")."""
        return private_key(self.alg, self.seed + layer.encode())

    @property
    def ueid(self) -> bytes:
        return keys.ueid(self.key("uds").public_key())

    @property
    def authority_hash(self) -> bytes:
        return digest("secure boot key", self.size) if self.authority is None else self.authority

    @property
    def measurement(self) -> Measurement:
        return Measurement.of_hash(digest(self.code, self.size))

    def config(self) -> bytes:
        return mint.application_config(
            project_name=self.name,
            secure_version=self.secure_version,
            partition_table=self.partition_table,
            boot_id=self.boot_id,
            slot=0x10,
            security_efuses=self.efuses,
        )

    def layers(self) -> tuple[mint.Layer, mint.Layer]:
        return (
            mint.Layer(digest(self.bootloader, self.size), self.bootloader_config, self.authority_hash, self.mode0),
            mint.Layer(digest(self.code, self.size), self.config(), self.authority_hash, self.mode1),
        )

    def certificate_claims(self, number: int) -> dict[int, Writable]:
        issuer, subject = (("uds", "boot"), ("boot", "app"))[number]
        layer = self.layers()[number]
        return mint.certificate_claims(self.key(issuer).public_key(), self.key(subject).public_key(), layer)

    def certificate(self, number: int, changes: Mapping[int, Any] | None = None) -> bytes:
        """A certificate; a claim changed to None is left out."""
        claims = self.certificate_claims(number)
        for label, value in (changes or {}).items():
            claims.pop(label, None)
            if value is not None:
                claims[label] = value
        return mint.sign_certificate(claims, self.key(("uds", "boot")[number]))

    def chain(self) -> list[bytes]:
        return [self.certificate(0), self.certificate(1)]

    def x509_chain(self) -> list[bytes]:
        """The same two certificates in X.509."""
        boot, app = self.layers()
        return [
            mint.x509_certificate(self.key("uds"), self.key("boot").public_key(), boot),
            mint.x509_certificate(self.key("boot"), self.key("app").public_key(), app),
        ]

    def fresh_nonce(self) -> bytes:
        return self.nonce or nonce.issue(RING, self.ueid, AUDIENCE, now=NOW, ttl=120, random=b"0123456789")

    def claims(self) -> dict[int, Any]:
        return {
            eat.NONCE: self.fresh_nonce(),
            eat.UEID: self.ueid,
            eat.OEMID: bytes(16),
            eat.HWMODEL: b"esp32s3",
            eat.DBGSTAT: self.debug,
            eat.EAT_PROFILE: eat.PROFILE,
            eat.BOOTCOUNT: self.boot_count,
            eat.BOOTSEED: bytes(range(16)),
            eat.SWNAME: self.name,
            eat.SWVERSION: ["2.0.0"],
            eat.SLOT_STATE: self.slot_state,
            eat.EFUSE_SECURE_VERSION: 1,
            eat.DATA_IMAGES: {},
            eat.ADDRESSES: ["192.0.2.7:80"],
            eat.OWNER_KEYS: [b"grantkey"],
            eat.FENCE: 4,
        }

    def token(self, changes: Mapping[Any, Any] | None = None, key: PrivateKey | None = None) -> bytes:
        """A token; a claim changed to None is left out."""
        claims = {**self.claims(), **(changes or {})}
        kept = {label: value for label, value in claims.items() if value is not None}
        return mint.eat(kept, key or self.key("app"))

    def evidence(self, chain: Sequence[bytes] | None = None, token: bytes | None = None) -> bytes:
        certificates = self.chain() if chain is None else chain
        return mint.evidence(
            keys.dice_id(self.key("uds").public_key()), certificates, self.token() if token is None else token
        )

    def anchor(self, tier: RootOfTrust = RootOfTrust.SIGNED_BOOT) -> DeviceAnchor:
        return DeviceAnchor(self.ueid, self.key("uds").public_key(), tier, "default")


def compressed(phone: Minted) -> bytes:
    """Its evidence as builds made it whose ids come from compressed points (ES256 and ES384 alone)."""
    ids = [keys.dice_id(phone.key(name).public_key(), compressed=True) for name in ("uds", "boot", "app")]
    chain = [
        phone.certificate(n, {dice_cbor.ISSUER: ids[n].hex(), dice_cbor.SUBJECT: ids[n + 1].hex()}) for n in range(2)
    ]
    return mint.evidence(ids[0], chain, phone.token())


def ref(measurement: Measurement) -> MeasurementRef:
    return MeasurementRef(alg=measurement.alg, value=measurement.value.hex())


def policy(phone: Minted, **changes: Any) -> AttestationPolicySpec:
    """A policy under which this device passes."""
    boot = Measurement.of_hash(digest("bootloader 1", phone.size))
    app = Measurement.of_hash(digest("app 2.0", phone.size))
    base = AttestationPolicySpec(
        bootloader=BootloaderRules(measurements=(ref(boot),), min_security_version=1),
        application=ApplicationRules(names=("porch",), measurements=(ref(app),), min_security_version=2),
        authority_hashes=(digest("secure boot key", phone.size).hex(),),
    )
    return base.model_copy(update=changes)


def context(phone: Minted, **changes: Any) -> Context:
    """A context under which this device passes."""
    base = Context(
        device=phone.anchor(), policy=policy(phone), nonce=IssuedNonce(RING, AUDIENCE), now=NOW, boot_ids=None
    )
    if isinstance(changes.get("nonce"), bytes):
        changes["nonce"] = ExactNonce(changes["nonce"])
    return replace(base, **changes)


def judge(phone: Minted, evidence: bytes | None = None, **changes: Any) -> Verdict:
    return verify(phone.evidence() if evidence is None else evidence, context(phone, **changes))


def refused(code: Code | str, verdict: Verdict, rule: str) -> Verdict:
    """The verdict says no, for this reason, at this rule."""
    assert not verdict.accepted
    assert not verdict.proven_at_tier
    assert verdict.code == code, verdict.message
    assert verdict.trail[-1].rule == rule
    assert [step.held for step in verdict.trail] == [True] * (len(verdict.trail) - 1) + [False]
    return verdict


def rejects(code: Code | str, call: Any) -> Reject:
    """The Reject that the call raises, which must have this code."""
    with pytest.raises(Reject) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value
