# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: every parser that meets foreign bytes, and the verdict. What a finding is: see `target`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attestation import cose, dice_cbor, dice_x509, eat, grants, keys, mint, nonce, release, serial_framing, succession
from attestation.cbor import Writable, dumps, strict_loads
from attestation.device_protocol import (
    DeviceError,
    ErrorCode,
    Flag,
    Info,
    encode_error,
    encode_info,
    parse_info,
    parse_nonce,
    refused,
)
from attestation.discovery.listing import Listing, decode_token, encode_token, mint_listing, verify_listing
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.policy import RootOfTrust
from attestation.statement import Digest, by_key_id
from attestation.verifier import Context, verify
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.signing import formats
from tests.parsers import firmware_parsers
from tests.unit.attestation.world import NOW, Minted, context

from .enrolment_targets import enrolment_targets
from .target import Accepted, Refused, Target, Unstable, only_seeds

_ALGS = (Alg.ES256, Alg.ES384, Alg.EDDSA)


@cache
def targets() -> dict[str, Target]:
    """All of them by name: `firmware-*` and `attestation-*`."""
    every = (*_firmware(), *_parsers(), *_signed(), *_verdicts(), *enrolment_targets())
    return {target.name: target for target in every}


def _firmware() -> Iterable[Target]:
    for parser in firmware_parsers():
        refusals = (PipelineError, Reject) if parser.name == "release" else (PipelineError,)
        yield Target(f"firmware-{parser.name}", parser.parse, refusals, parser.seeds, 256 * 1024)
    digest = "sha256:" + "0" * 64
    body = formats.statement(digest)
    bundle = formats.bundle(body, bytes(64), "hint")
    yield Target("firmware-bundle", _bundle, (Refused,), (bundle,))
    layer = formats.simple_layer(formats.simple_payload(digest, "registry.example/porch"), bytes(64))
    payload = formats.simple_payload(digest, "registry.example/porch")

    def simple(raw: bytes) -> None:
        candidate = formats.simple_candidate(layer, raw)
        if candidate is None or formats.claim_of(candidate) is None:
            raise Refused

    yield Target("firmware-simplesigning", simple, (Refused,), (payload,))


def _bundle(raw: bytes) -> None:
    candidate = formats.bundle_candidate(raw)
    if candidate is None or formats.claim_of(candidate) is None:
        raise Refused


def _parsers() -> Iterable[Target]:
    """Those that believe nothing yet."""
    phones = [Minted(alg=alg, size=size) for alg in _ALGS for size in (32, 64)]
    tokens = tuple(phone.token() for phone in phones)
    certificates = tuple(certificate for phone in phones for certificate in phone.chain())
    payloads = tuple(dumps(phone.claims()) for phone in phones)
    public = [phone.key("uds").public_key() for phone in phones]
    leaves = tuple(map(_leaf, phones))
    messages = (*_device_messages(), *payloads)

    def target(name: str, run: Callable[[bytes], object], seeds: tuple[bytes, ...]) -> Target:
        return Target(f"attestation-{name}", run, (Reject,), seeds)

    yield target("cbor", _cbor, (*certificates[:2], *payloads[:2], *messages[:3]))
    yield target("cose-sign1", lambda raw: cose.parse(raw, tagging=cose.Tagging.EITHER), (*tokens, *certificates[:2]))
    yield target("cose-key", _cose_key, tuple(map(keys.encode_cose, public)))
    yield target("pem-key", keys.from_pem, tuple(keys.to_pem(key).encode() for key in public))
    yield target("certificate", dice_cbor.parse_certificate, certificates)
    yield target("leaf-certificate", dice_cbor.parse_leaf, (*leaves, *certificates))
    x509_certificates = tuple(certificate for phone in phones for certificate in x509_chain(phone))
    x509_leaves = tuple(mint.x509_leaf(phone.key("app"), phone.key("attestation").public_key()) for phone in phones)
    yield target("x509-certificate", dice_x509.parse_certificate, x509_certificates)
    yield target("x509-leaf-certificate", dice_x509.parse_leaf, (*x509_leaves, *x509_certificates[:2]))
    yield target(
        "bootloader-config", dice_cbor.read_bootloader_config, (phones[0].bootloader_config, phones[0].config())
    )
    yield target(
        "application-config", dice_cbor.read_application_config, (phones[0].config(), phones[0].bootloader_config)
    )
    yield target("evidence-envelope", eat.parse_evidence, tuple(phone.evidence() for phone in phones[:3]))
    yield target("eat-claims", lambda raw: eat.read_token(eat.decode_claims(raw)), payloads)
    yield Target("attestation-device-info", parse_info, (DeviceError,), _device_messages())
    yield Target("attestation-device-nonce", parse_nonce, (DeviceError,), (dumps({1: bytes(16), 2: 600}),))
    yield Target("attestation-device-refusal", _refusal, (Refused,), _device_messages()[1:])
    frames = tuple(
        serial_framing.encode(serial_framing.Frame(7, kind, payload))
        for kind, payload in zip(serial_framing.Kind, payloads, strict=False)
    )
    yield Target("attestation-serial-frames", _frames, (Refused,), (*frames, b"boot log\r\n" + b"".join(frames)))


def x509_chain(phone: Minted) -> list[bytes]:
    """The chain of a device, in its X.509 form."""
    uds, boot, app = (phone.key(layer) for layer in ("uds", "boot", "app"))
    first, second = phone.layers()
    return [
        mint.x509_certificate(uds, boot.public_key(), first),
        mint.x509_certificate(boot, app.public_key(), second),
    ]


def _leaf(phone: Minted) -> bytes:
    """The certificate of an attestation key."""
    issuer, key = phone.key("app"), phone.key("attestation").public_key()
    claims: dict[int, Writable] = {
        dice_cbor.ISSUER: keys.dice_id(issuer.public_key()).hex(),
        dice_cbor.SUBJECT: keys.dice_id(key).hex(),
        dice_cbor.SUBJECT_PUBLIC_KEY: keys.encode_cose(key),
        dice_cbor.KEY_USAGE: b"\x01",
    }
    return mint.sign_certificate(claims, issuer)


def _signed() -> Iterable[Target]:
    """Those that believe a signature: nothing but the seeds themselves may pass."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    trusted = by_key_id(key.public_key())
    owner = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    (statement,) = next(parser.seeds for parser in firmware_parsers() if parser.name == "release")
    common = {
        "ueid": Minted().ueid, "device_nonce": bytes(16), "grant_id": bytes(range(16)), "fence": 3,
        "result": Digest(alg=-16, value=bytes(range(32))),
    }  # fmt: skip
    install = {"payload_sha256": bytes(32), "payload_size": 65536, "release": statement, "confirm_seconds": 300}
    granted = (
        grants.mint(grants.InstallGrant.model_validate({**common, **install}), key),
        grants.mint(grants.ConfirmGrant.model_validate({**common, "second_nonce": bytes(32)}), key),
    )
    held = {succession.Kind.RELEASE: succession.Slots(trusted), succession.Kind.GRANT: succession.Slots({})}
    follows = succession.mint(succession.Kind.RELEASE, owner, 1, key)
    yield only_seeds("succession", lambda raw: succession.take(raw, held), (follows,))
    listing = mint_listing(_listing(), key)
    text = encode_token(listing).encode()
    yield only_seeds("release", lambda raw: release.verify(raw, by_key_id(owner)), (statement,))
    yield only_seeds("grant", lambda raw: grants.check(grants.parse(raw), trusted), granted)
    yield only_seeds("listing", lambda raw: verify_listing(raw, trusted), (listing,))
    yield only_seeds("listing-text", lambda raw: verify_listing(decode_token(raw.decode("latin-1")), trusted), (text,))
    ring, ueid, audience = nonce.KeyRing(7, {7: bytes(32)}), Minted().ueid, b"task/1"
    fresh = nonce.issue(ring, ueid, audience, now=NOW, ttl=120, random=bytes(10))
    yield only_seeds("nonce", lambda raw: nonce.check(ring, raw, ueid, audience, now=NOW, ttl=120), (fresh,))


def _verdicts() -> Iterable[Target]:
    """The whole judgement, with one part of honest evidence in the attacker's hand."""
    for alg in (Alg.ES256, Alg.EDDSA):
        phone, other = Minted(alg=alg), Minted(alg=alg, seed=b"device two")
        told, token = context(phone), phone.token()
        for form, chain_of in (("", Minted.chain), ("x509-", x509_chain)):
            first, second = chain_of(phone)
            honest = phone.evidence((first, second), token)
            foreign = chain_of(other)
            parts: dict[str, tuple[Callable[[bytes], bytes], tuple[bytes, ...]]] = {
                "evidence": (lambda raw: raw, (honest, other.evidence(foreign))),
                "bootloader-certificate": (
                    partial(_with_first, phone, second, token), (first, *foreign)
                ),
                "application-certificate": (
                    partial(_with_second, phone, first, token), (second, *foreign)
                ),
            }  # fmt: skip
            if not form:
                parts["token"] = (partial(_with_token, phone, (first, second)), (token, other.token()))
            for part, (build, seeds) in parts.items():
                yield _verdict(f"attestation-verdict-{alg.name.lower()}-{form}{part}", build, seeds, told, honest)
        anchors = tuple(keys.encode_cose(each.key("uds").public_key()) for each in (phone, other))
        yield _anchor(f"attestation-verdict-{alg.name.lower()}-anchor", anchors, told, phone)


def _with_first(phone: Minted, second: bytes, token: bytes, raw: bytes) -> bytes:
    return phone.evidence((raw, second), token)


def _with_second(phone: Minted, first: bytes, token: bytes, raw: bytes) -> bytes:
    return phone.evidence((first, raw), token)


def _with_token(phone: Minted, chain: tuple[bytes, bytes], raw: bytes) -> bytes:
    return phone.evidence(chain, raw)


def _verdict(
    name: str, build: Callable[[bytes], bytes], seeds: tuple[bytes, ...], fixed: Context, honest: bytes
) -> Target:
    genuine = _substance(honest)

    def judged(raw: bytes) -> None:
        evidence = build(raw)
        if not verify(evidence, fixed).accepted:
            raise Refused
        if _substance(evidence) != genuine:
            raise Accepted(f"{name}: evidence that no device gave")

    return Target(name, judged, (Refused,), seeds, 8192)


def _substance(evidence: bytes) -> object:
    """What evidence says: its certificates, and what the token's signature covers. Tags and hints are free."""
    envelope = eat.parse_evidence(evidence)
    token = cose.parse(
        envelope.token, tagging=cose.Tagging.EITHER, protected=eat.PROTECTED_HEADERS,
        unprotected=eat.UNPROTECTED_HEADERS, limit=eat.EVIDENCE_LIMIT,
    )  # fmt: skip
    return envelope.certificates, token.protected_bytes, token.payload, token.signature


def _anchor(name: str, seeds: tuple[bytes, ...], fixed: Context, phone: Minted) -> Target:
    """Another key is enrolled; evidence names it, and is otherwise what the honest device says."""
    chain, token = phone.chain(), phone.token()

    def judged(raw: bytes) -> None:
        key = keys.from_cose(raw)
        anchor = replace(phone.anchor(), key=key)
        evidence = mint.evidence(keys.dice_id(key), chain, token)
        if not verify(evidence, replace(fixed, device=anchor)).accepted:
            raise Refused
        if keys.encode_cose(key) != seeds[0]:
            raise Accepted(f"{name}: a chain that this key did not sign")

    return Target(name, judged, (Refused, Reject), seeds, 8192)


def _cbor(raw: bytes) -> None:
    value = strict_loads(raw)
    if cbor2.loads(raw) != value:
        raise Unstable(f"cbor: cbor2 reads something else than {value!r}")
    if value is not None and strict_loads(dumps(value)) != value:
        raise Unstable(f"cbor: {value!r} reads back differently")


def _cose_key(raw: bytes) -> None:
    key = keys.from_cose(raw)
    if keys.raw(keys.from_cose(keys.encode_cose(key))) != keys.raw(key):
        raise Unstable("cose-key: the key reads back differently")


def _frames(raw: bytes) -> None:
    """A stream in two pieces gives what it gives in one."""
    whole, pieces = serial_framing.FrameReader(), serial_framing.FrameReader()
    cut = len(raw) // 2
    found = whole.feed(raw)
    if found != pieces.feed(raw[:cut]) + pieces.feed(raw[cut:]):
        raise Unstable("serial-frames: where the stream is cut decides what is read")
    if not found:
        raise Refused


def _refusal(raw: bytes) -> None:
    if refused(raw, status=422).reason == "BadReply":
        raise Refused


def _listing() -> Listing:
    phone = Minted()
    return Listing(
        ueid=phone.ueid, measurement=phone.measurement, application="porch", version="2.0.0", boot_id=bytes(16),
        evidence_sha256=bytes(32), policy_hash=bytes(32), endpoint="192.0.2.7:80", tier=RootOfTrust.SIGNED_BOOT,
    )  # fmt: skip


def _device_messages() -> tuple[bytes, ...]:
    info = Info(
        versions=[1], ueid=Minted().ueid, chip_id=9, chip_revision=2, flash_size=4 << 20, running_slot=0x10,
        slot_state=2, target_slot_size=0x1C0000, measurement=Digest(alg=-16, value=bytes(32)), name="porch",
        version="2.0.0", secure_version=1, efuse_secure_version=1, flags=Flag.SECURE_BOOT, partition_table=bytes(32),
        bootseed=bytes(16), next_offset=0, active_grant=bytes(range(16)), confirm_seconds_left=30,
    )  # fmt: skip
    return encode_info(info), encode_error(next(iter(ErrorCode)), "title", next_offset=7), dumps({1: bytes(16), 2: 600})
