# SPDX-License-Identifier: Apache-2.0
"""Signatures in both cosign formats, and release statements: what counts, and everything that must not."""

import base64
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from attestation import release as release_checker
from attestation.errors import Reject
from attestation.keys import key_id
from firmware_pipeline.config import FirmwareConfig, from_plan
from firmware_pipeline.errors import Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import (
    EMPTY_JSON,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Index,
    Manifest,
    canonical_json,
    parse_document,
    sha256_digest,
    to_json,
)
from firmware_pipeline.referrers import fallback_tag
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.formats import Candidate
from firmware_pipeline.signing.keys import (
    LocalSigner,
    Signer,
    TrustedKey,
    VerifyKey,
    load_signer,
    load_trusted_key,
    private_pem,
    public_pem,
)
from firmware_pipeline.signing.policy import Gathered, VerificationPolicy
from firmware_pipeline.signing.policy import judge as judge_policy
from firmware_pipeline.signing.release import load_release_key, mint_release, read_sequence
from firmware_pipeline.signing.sign import sign, sign_all
from firmware_pipeline.signing.verify import gather
from firmware_pipeline.store import Blob, Progress
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.test_registry import store_for

P256 = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
P384 = LocalSigner(ec.derive_private_key(8, ec.SECP384R1()))
ED = LocalSigner(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = LocalSigner(ec.derive_private_key(9, ec.SECP256R1()))
RSA_KEY = rsa.generate_private_key(65537, 2048)


class RsaSigner:
    """A signer from elsewhere: what a key service would do."""

    @property
    def public_key(self) -> VerifyKey:
        return RSA_KEY.public_key()

    def sign(self, data: bytes, *, curve_hash: bool) -> bytes:
        return RSA_KEY.sign(data, padding.PKCS1v15(), hashes.SHA256())


SIGNERS: dict[str, Signer] = {"p256": P256, "p384": P384, "ed25519": ED, "rsa": RsaSigner()}


def trust(*signers: Signer) -> list[TrustedKey]:
    return [TrustedKey(f"key{number}", signer.public_key) for number, signer in enumerate(signers)]


def judge(candidates: Sequence[Candidate], digest: str, keys: Sequence[TrustedKey], threshold: int) -> tuple[str, ...]:
    return judge_policy(VerificationPolicy(keys, threshold), Gathered(digest, candidates)).signers


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", create=True)


def put_index(store: LayoutStore, note: str = "one") -> Descriptor:
    raw = to_json(Index(schema_version=2, manifests=[], annotations={"note": note}))
    return Descriptor(media_type=INDEX_TYPE, digest=store.put_manifest(raw, INDEX_TYPE), size=len(raw))


def both(store: LayoutStore, subject: Descriptor) -> tuple[Candidate, Candidate]:
    simple, bundle = gather(store, subject.digest)
    assert (simple.simple, bundle.simple) == (True, False)
    return simple, bundle


@pytest.mark.parametrize("kind", SIGNERS)
def test_each_format_alone_is_enough(store: LayoutStore, kind: str) -> None:
    subject, signer = put_index(store), SIGNERS[kind]
    sign(store, subject, signer, "registry.example/porch")
    for candidate in both(store, subject):
        assert judge([candidate], subject.digest, trust(signer), 1) == ("key0",)
        refused(Reason.SignatureInvalid, partial(judge, [candidate], subject.digest, trust(OTHER), 1))


def test_rule_1_somebody_must_be_trusted() -> None:
    for keys, threshold in (([], 1), (trust(P256), 0), (trust(P256), 2), (trust(P256, P256), 2)):
        refused(
            Reason.SignersNotConfigured,
            lambda keys=keys, threshold=threshold: judge([], "sha256:" + "0" * 64, keys, threshold),  # type: ignore[misc]
        )


def test_unsigned(store: LayoutStore) -> None:
    subject = put_index(store)
    refused(Reason.UnsignedArtifact, lambda: judge(gather(store, subject.digest), subject.digest, trust(P256), 1))


def test_rule_5_the_threshold_counts_distinct_keys(store: LayoutStore) -> None:
    subject = put_index(store)
    keys = [*trust(P256, ED), TrustedKey("again", P256.public_key)]
    sign(store, subject, P256, "a")
    sign(store, subject, P256, "b")
    error = refused(Reason.SignatureThreshold, lambda: judge(gather(store, subject.digest), subject.digest, keys, 2))
    assert "key0" in error.message
    sign(store, subject, ED, "a")
    assert judge(gather(store, subject.digest), subject.digest, keys, 2) == ("key0", "key1")


def test_signing_again_changes_nothing(store: LayoutStore) -> None:
    subject = put_index(store)
    sign(store, subject, P256, "a")
    before = gather(store, subject.digest)
    sign(store, subject, P256, "a")
    assert gather(store, subject.digest) == before


@pytest.mark.parametrize("tag", ["sig", "fallback"])
def test_rule_4_a_signature_moved_to_another_artifact_does_not_count(store: LayoutStore, tag: str) -> None:
    signed, victim = put_index(store, "signed"), put_index(store, "victim")
    sign(store, signed, P256, "a")
    if tag == "sig":
        manifest = store.get_manifest(formats.signature_tag(signed.digest))
        store.put_manifest(manifest.raw, MANIFEST_TYPE, tag=formats.signature_tag(victim.digest))
        reason = Reason.SignatureInvalid
    else:
        entries = store.referrers(signed.digest)
        store.put_manifest(
            to_json(Index(schema_version=2, manifests=entries)), INDEX_TYPE, tag=fallback_tag(victim.digest)
        )
        reason = Reason.UnsignedArtifact
    refused(reason, lambda: judge(gather(store, victim.digest), victim.digest, trust(P256), 1))


def resign(body: dict[str, Any], *, simple: bool) -> Candidate:
    """A signature by the right key over the wrong words."""
    raw = canonical_json(body)
    signed = raw if simple else formats.pae(raw)
    return Candidate(signed, P256.sign(signed, curve_hash=True), raw, simple)


WRONG_WORDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "another digest": lambda s, b: (
        s["critical"]["image"].update({"docker-manifest-digest": "sha256:" + "1" * 64}),
        b["subject"][0]["digest"].update(sha256="1" * 64),
    ),
    "another kind": lambda s, b: (s["critical"].update(type="atomic"), b.update(predicateType="https://slsa.dev/x")),
    "another statement": lambda s, b: (s.pop("critical"), b.update(_type="https://in-toto.io/Statement/v9")),
    "two subjects": lambda s, b: (s.update(critical=[]), b["subject"].append(b["subject"][0])),
    "no subject": lambda s, b: (s["critical"].pop("image"), b.update(subject=[])),
    "digest as a number": lambda s, b: (
        s["critical"]["image"].update({"docker-manifest-digest": 5}),
        b["subject"][0].update(digest={"sha256": 5}),
    ),
}


@pytest.mark.parametrize("change", WRONG_WORDS)
def test_rule_4_what_is_signed_must_be_this_digest(change: str) -> None:
    digest = "sha256:" + "a" * 64
    simple, bundle = json.loads(formats.simple_payload(digest, "x")), json.loads(formats.statement(digest))
    good = [resign(simple, simple=True), resign(bundle, simple=False)]
    assert all(judge([candidate], digest, trust(P256), 1) for candidate in good)
    WRONG_WORDS[change](simple, bundle)
    for candidate in (resign(simple, simple=True), resign(bundle, simple=False)):
        refused(Reason.SignatureInvalid, partial(judge, [candidate], digest, trust(P256), 1))


def test_any_flipped_bit_of_a_signature_ends_it(store: LayoutStore) -> None:
    subject = put_index(store)
    sign(store, subject, ED, "a")
    for candidate in both(store, subject):
        for field in ("signed", "signature"):
            value = getattr(candidate, field)
            for position in range(len(value)):
                flipped = value[:position] + bytes([value[position] ^ 1 << position % 8]) + value[position + 1 :]
                bad = Candidate(**{name: getattr(candidate, name) for name in Candidate.__slots__} | {field: flipped})
                refused(Reason.SignatureInvalid, lambda bad=bad: judge([bad], subject.digest, trust(ED), 1))  # type: ignore[misc]


def test_a_flipped_bit_of_a_bundle_ends_it_or_changes_only_the_hint() -> None:
    digest = "sha256:" + "a" * 64
    body = formats.statement(digest)
    raw = formats.bundle(body, ED.sign(formats.pae(body), curve_hash=True), "HINTHINT")
    good = formats.bundle_candidate(raw)
    material = raw.index(b"verificationMaterial")
    for position in range(len(raw)):
        for bit in range(8):
            bad = raw[:position] + bytes([raw[position] ^ 1 << bit]) + raw[position + 1 :]
            candidate = formats.bundle_candidate(bad)
            if candidate == good:
                assert position >= material
            elif candidate is not None:
                refused(Reason.SignatureInvalid, lambda c=candidate: judge([c], digest, trust(ED), 1))  # type: ignore[misc]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}',
        b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"payload":5,"signatures":[]}}',
        b'{"dsseEnvelope":{"payload":"YQ==","payloadType":"x","signatures":[{"sig":"YQ=="}]},"mediaType":"x"}',
    ],
)
def test_rubbish_is_no_bundle(raw: bytes) -> None:
    assert formats.bundle_candidate(raw) is None


# ---- gathering (rules 2 and 6) ---------------------------------------------------------------------------


def attach_bundle(store: LayoutStore, subject: Descriptor, layer: bytes, artifact_type: str) -> None:
    empty, blob = Blob.of(b"{}"), Blob.of(layer)
    store.put_blob(empty)
    store.put_blob(blob)
    manifest = Manifest(
        schema_version=2,
        artifact_type=artifact_type,
        config=Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=empty.digest, size=2),
        layers=[Descriptor(media_type=formats.BUNDLE_TYPE, digest=blob.digest, size=blob.size)],
        subject=subject,
    )
    store.put_manifest(to_json(manifest), MANIFEST_TYPE)


def test_rule_6_rubbish_beside_a_good_signature_does_no_harm(store: LayoutStore, tmp_path: Path) -> None:
    subject = put_index(store)
    attach_bundle(store, subject, b"rubbish", formats.BUNDLE_TYPE)
    attach_bundle(store, subject, b"an SBOM", "application/spdx+json")
    attach_bundle(store, subject, b"gone", formats.BUNDLE_TYPE)
    (tmp_path / "layout/blobs/sha256" / sha256_digest(b"gone")[7:]).unlink()
    sign(store, subject, P256, "a")
    tag = formats.signature_tag(subject.digest)
    layers = parse_document(Manifest, store.get_manifest(tag).raw, "x").layers
    missing = Descriptor(media_type=formats.SIMPLE_TYPE, digest="sha256:" + "1" * 64, size=5)
    bare = Descriptor(media_type=formats.SIMPLE_TYPE, digest=layers[0].digest, size=layers[0].size)
    manifest, config = formats.simple_manifest([missing, bare, *layers])
    store.put_blob(Blob.of(config))
    store.put_manifest(manifest, MANIFEST_TYPE, tag=tag)
    assert len(gather(store, subject.digest)) == 2
    assert judge(gather(store, subject.digest), subject.digest, trust(P256), 1) == ("key0",)


def test_rule_2_entries_that_are_described_wrongly_are_opened(store: LayoutStore) -> None:
    with HostileRegistry(referrers_api=True) as registry:
        remote = store_for(registry, push=True)
        raw = to_json(Index(schema_version=2, manifests=[]))
        subject = Descriptor(media_type=INDEX_TYPE, digest=remote.put_manifest(raw, INDEX_TYPE), size=len(raw))
        sign(remote, subject, P256, "a")
        assert remote.referrers(subject.digest)[0].artifact_type == "wrong/type"
        bundles = [c for c in gather(remote, subject.digest) if not c.simple]
        assert judge(bundles, subject.digest, trust(P256), 1) == ("key0",)


def test_rule_6_more_than_anyone_needs_is_refused(store: LayoutStore) -> None:
    subject = put_index(store)
    payload = formats.simple_payload(subject.digest, "a")
    store.put_blob(Blob.of(payload))
    layers = [formats.simple_layer(payload, bytes([number])) for number in range(formats.MAX_SIGNATURES + 1)]
    manifest, config = formats.simple_manifest(layers)
    store.put_blob(Blob.of(config))
    store.put_manifest(manifest, MANIFEST_TYPE, tag=formats.signature_tag(subject.digest))
    refused(Reason.TooLarge, lambda: gather(store, subject.digest))


def test_trouble_on_the_way_is_not_taken_for_unsigned() -> None:
    with HostileRegistry(busy=99, busy_status=503, retry_after=None) as registry:
        refused(Reason.RegistryUnreachable, lambda: gather(store_for(registry), "sha256:" + "a" * 64))


def test_both_signers_of_a_release_may_push_to_a_registry_without_referrers() -> None:
    with HostileRegistry() as registry:
        remote = store_for(registry, push=True)
        raw = to_json(Index(schema_version=2, manifests=[]))
        subject = Descriptor(media_type=INDEX_TYPE, digest=remote.put_manifest(raw, INDEX_TYPE), size=len(raw))
        for signer in (P256, ED, P384):
            sign(remote, subject, signer, remote.name)
        candidates = gather(remote, subject.digest)
        assert len(candidates) == 6
        assert len(judge(candidates, subject.digest, trust(P256, ED, P384), 3)) == 3


def test_what_several_signatures_have_in_common_is_sent_before_them(tmp_path: Path) -> None:
    """Distribution's registry empties a link while it writes it anew, and refuses the manifest that is put meanwhile."""
    sent: list[tuple[str, bool]] = []

    class Watched(LayoutStore):
        def put_blob(self, blob: Blob, progress: Progress | None = None) -> None:
            sent.append((blob.digest, threading.current_thread() is threading.main_thread()))
            super().put_blob(blob, progress)

    store = Watched(tmp_path / "layout", create=True)
    sign_all(store, [put_index(store, note) for note in ("one", "two", "three")], P256, "x")
    before = sent[: next(number for number, (_, alone) in enumerate(sent) if not alone)]
    assert (sha256_digest(EMPTY_JSON), True) in before


# ---- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [P256, P384, ED])
def test_keys_survive_their_files(signer: LocalSigner) -> None:
    again = load_signer(private_pem(signer.private_key), "x")
    assert load_trusted_key(public_pem(again.public_key), "x").id == TrustedKey("y", signer.public_key).id
    assert "PRIVATE" not in repr(again)


def pem(key: Any, *, password: bytes | None = None) -> bytes:
    wrap: Any = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, wrap))


BAD_SIGNERS = {
    "nothing": b"",
    "text": b"hello",
    "public": public_pem(P256.public_key),
    "encrypted": pem(P256.private_key, password=b"x"),
    "cosign": b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\neyJrZGYi\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----",
    "rsa": pem(RSA_KEY),
    "k1": pem(ec.generate_private_key(ec.SECP256K1())),
}
BAD_TRUSTED = {
    "nothing": b"",
    "private": private_pem(P256.private_key),
    "weak": public_pem(rsa.generate_private_key(65537, 1024).public_key()),
    "k1": public_pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
}


@pytest.mark.parametrize("kind", BAD_SIGNERS)
def test_bad_private_keys(kind: str) -> None:
    error = refused(Reason.KeyMalformed, lambda: load_signer(BAD_SIGNERS[kind], "FILE"))
    assert "FILE" in error.message
    assert base64.b64encode(b"x").decode() not in error.message


@pytest.mark.parametrize("kind", BAD_TRUSTED)
def test_bad_public_keys(kind: str) -> None:
    refused(Reason.KeyMalformed, lambda: load_trusted_key(BAD_TRUSTED[kind], "FILE"))


# ---- release statements ----------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> FirmwareConfig:
    return from_plan(builds.plan(tmp_path))


@pytest.mark.parametrize("signer", [P256, ED])
def test_a_release_is_what_devices_and_gateways_check(config: FirmwareConfig, signer: LocalSigner) -> None:
    key = signer.private_key
    statement = mint_release(config, 21, key)
    assert statement == mint_release(config, 21, key), "the same release has the same bytes"
    found = release_checker.verify(statement, {key_id(key.public_key()): key.public_key()})
    assert (found.name, found.version, found.sequence) == ("porch-sensor", "2.1.0", 21)
    assert (found.chip_id, found.secure_version) == (config.chip.chip_id, config.app.secure_version)
    assert found.image_size == config.app_image.size
    assert {(m.alg, m.value.hex()) for m in found.measurements} == {(m.alg, m.value) for m in config.measurements}
    assert found.accepts_revision(0)
    assert found.accepts_revision(65535)
    assert read_sequence(statement, config, key.public_key()) == 21
    refused(Reason.ReleaseInvalid, lambda: read_sequence(statement, config, OTHER.private_key.public_key()))
    with pytest.raises(Reject):
        release_checker.verify(statement, {key_id(key.public_key()): OTHER.private_key.public_key()})


def test_a_release_of_something_else_is_refused(config: FirmwareConfig) -> None:
    statement = mint_release(config, 21, P256.private_key)
    for change in (
        {"app": config.app.model_copy(update={"version": "2.1.1"})},
        {"chip": config.chip.model_copy(update={"min_rev": 100})},
        {"measurements": config.measurements[:1]},
    ):
        other = config.model_copy(update=change)
        refused(Reason.ReleaseInvalid, lambda other=other: read_sequence(statement, other))  # type: ignore[misc]
    for bad in (b"", b"\xa0", statement[:-1], statement + b"\0", bytes(769)):
        refused(Reason.ReleaseInvalid, lambda bad=bad: read_sequence(bad, config))  # type: ignore[misc]


def test_releases_that_no_device_could_check_are_not_minted(config: FirmwareConfig) -> None:
    refused(Reason.ReleaseInvalid, lambda: mint_release(config, -1, P256.private_key))
    refused(Reason.ReleaseInvalid, lambda: mint_release(config, 2**63, P256.private_key))
    refused(Reason.ReleaseInvalid, lambda: mint_release(config, 1, P384.private_key))
    refused(Reason.KeyMalformed, lambda: load_release_key(b"no key", "FILE"))
    refused(Reason.KeyMalformed, lambda: load_release_key(pem(RSA_KEY), "FILE"))
