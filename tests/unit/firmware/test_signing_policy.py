# SPDX-License-Identifier: Apache-2.0
"""What a policy accepts, and a zoo of artifacts that it must not, each with its reason."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Descriptor, canonical_json
from firmware_pipeline.provenance import BUILD_TYPE
from firmware_pipeline.signing import formats
from firmware_pipeline.signing.formats import Candidate
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey, key_hint, signature_holds
from firmware_pipeline.signing.policy import Gathered, VerificationPolicy, judge
from firmware_pipeline.signing.sign import attest, sign
from firmware_pipeline.signing.statements import (
    CYCLONEDX_PREDICATE,
    SIGN_PREDICATE,
    SLSA_PREDICATE,
    SPDX_PREDICATE,
    write_statement,
)
from firmware_pipeline.signing.verify import MAX_GATHERED_BYTES, verify
from tests.unit.firmware.builds import refused
from tests.unit.firmware.signed import CYCLONEDX, ED, HOME, OTHER, P256, P384, put_bundle, put_index, put_simple, trust

BUILDER = "https://ci.example/builders/1"
PROVENANCE = {
    "buildDefinition": {"buildType": BUILD_TYPE, "externalParameters": {}},
    "runDetails": {"builder": {"id": BUILDER}},
}


@dataclass
class Scene:
    """An artifact with two chips, in a layout directory."""

    store: LayoutStore
    index: Descriptor
    chips: list[Descriptor]
    policy: VerificationPolicy = field(default_factory=lambda: VerificationPolicy(trust(P256)))

    def sign(self, signer: LocalSigner = P256, identity: str = HOME, **annotations: str) -> Any:
        sign(self.store, self.index, signer, identity, annotations)

    def attest(self, kind: str, predicate: Mapping[str, Any], signer: LocalSigner = P256, *on: Descriptor) -> Any:
        attest(self.store, on or [self.index], signer, HOME, kind, dict(predicate))

    def simple(self, change: Callable[[dict[str, Any]], object], signer: LocalSigner = P256) -> Any:
        """A signature in the older format, by a good key over changed words."""
        document = json.loads(formats.simple_payload(self.index.digest, HOME))
        change(document)
        payload = canonical_json(document)
        put_simple(self.store, self.index.digest, payload, signer.sign(payload, curve_hash=False))

    def bundle(
        self, body: bytes | None = None, signer: LocalSigner = P256, change: Callable[[Any], object] | None = None
    ) -> Any:
        """A bundle by a good key; `change` acts on the finished document."""
        body = formats.statement(self.index.digest) if body is None else body
        raw = formats.bundle(body, signer.sign(formats.pae(body), curve_hash=True), key_hint(signer.public_key))
        if change is not None:
            document = json.loads(raw)
            change(document)
            raw = canonical_json(document)
        put_bundle(self.store, self.index, raw)

    def verify(self) -> tuple[str, ...]:
        return verify(self.store, self.index.digest, self.policy).signers


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    store = LayoutStore(tmp_path / "layout", create=True)
    index, chips = put_index(store, chips=["esp32c3", "esp32s3"])
    return Scene(store, index, chips)


def demand(scene: Scene, **changes: Any) -> Any:
    scene.policy = replace(scene.policy, **changes)


# ---- what is accepted ------------------------------------------------------------------------------------


def test_all_that_is_demanded_and_there(scene: Scene) -> None:
    demand(
        scene,
        keys=trust(P256, ED, OTHER),
        threshold=2,
        annotations={"stage": "prod"},
        sbom=True,
        builders=frozenset({BUILDER}),
    )
    scene.sign(P256, stage="prod")
    scene.sign(ED, stage="prod", extra="1")
    scene.attest(SPDX_PREDICATE, {"spdxVersion": "SPDX-2.3"}, ED)
    scene.attest(SLSA_PREDICATE, PROVENANCE)
    assert scene.verify() == ("key0", "key1")


def test_rule_5_one_sbom_for_each_chip_will_do_as_well(scene: Scene) -> None:
    scene.sign()
    demand(scene, sbom=True)
    scene.attest(CYCLONEDX_PREDICATE, CYCLONEDX, P256, scene.chips[0])
    refused(Reason.SbomMissing, scene.verify)
    scene.attest(CYCLONEDX_PREDICATE, CYCLONEDX, P256, scene.chips[1])
    assert scene.verify() == ("key0",)


def test_rule_6_one_statement_about_index_and_chips_counts_for_each(scene: Scene) -> None:
    scene.sign()
    scene.attest(SLSA_PREDICATE, PROVENANCE, P256, scene.index, *scene.chips)
    policy = VerificationPolicy(trust(P256), provenance=True)
    for subject in scene.chips:
        sign(scene.store, subject, P256, HOME)
        assert verify(scene.store, subject.digest, policy).signers == ("key0",)


def test_a_signature_of_the_chips_manifest_alone_counts_for_whoever_pins_that(scene: Scene) -> None:
    sign(scene.store, scene.chips[0], P256, HOME)
    assert verify(scene.store, scene.chips[0].digest, scene.policy).signers == ("key0",)
    refused(Reason.UnsignedArtifact, scene.verify)
    refused(Reason.UnsignedArtifact, partial(verify, scene.store, scene.chips[1].digest, scene.policy))


def test_while_a_key_is_replaced_both_are_listed(scene: Scene) -> None:
    demand(scene, keys=trust(P256, P384))
    scene.sign(P384)
    assert scene.verify() == ("key1",)


def test_rule_4_either_format_may_carry_the_annotations(scene: Scene) -> None:
    demand(scene, annotations={"stage": "prod"})
    scene.simple(lambda d: d.update(optional={"stage": "prod", "creator": "x", "timestamp": 5}))
    assert scene.verify() == ("key0",)


@pytest.mark.parametrize("prefix", [HOME, "registry.example/team", "registry.example/team/", "registry.example"])
def test_rule_4_the_repository_or_a_part_of_its_path(scene: Scene, prefix: str) -> None:
    scene.sign()
    demand(scene, identity_prefix=prefix)
    assert scene.verify() == ("key0",)


# ---- the zoo ---------------------------------------------------------------------------------------------


def _sig(document: Any) -> Any:
    return document["dsseEnvelope"]["signatures"]


def _statement(scene: Scene, **changes: Any) -> bytes:
    document = json.loads(formats.statement(scene.index.digest))
    document.update(changes)
    return canonical_json(document)


def _other_digest() -> str:
    return "sha256:" + "1" * 64


def _twice(scene: Scene) -> bytes:
    """A statement with a key twice; the second one is right."""
    body = formats.statement(scene.index.digest)
    return b'{"subject":[],' + body[1:]


def _gather_too_much(scene: Scene) -> None:
    scene.sign()
    demand(scene, sbom=True)
    for number in range(MAX_GATHERED_BYTES // (7 * 1024 * 1024) + 1):
        put_bundle(scene.store, scene.index, bytes([65 + number]) * (7 * 1024 * 1024))


def _key_twice(scene: Scene) -> None:
    scene.sign()
    demand(scene, keys=[*trust(P256), TrustedKey("again", P256.public_key)], threshold=2)


ZOO: dict[str, tuple[Reason, Callable[[Scene], object]]] = {
    "nothing at all": (Reason.UnsignedArtifact, lambda s: None),
    "nobody is trusted": (Reason.SignersNotConfigured, lambda s: (s.sign(), demand(s, keys=[]))),
    "threshold of none": (Reason.SignersNotConfigured, lambda s: (s.sign(), demand(s, threshold=0))),
    "threshold above the keys": (Reason.SignersNotConfigured, lambda s: (s.sign(), demand(s, threshold=2))),
    "one key under two names": (Reason.SignersNotConfigured, _key_twice),
    "another key": (Reason.SignatureInvalid, lambda s: s.sign(OTHER)),
    "one of two": (Reason.SignatureThreshold, lambda s: (s.sign(), demand(s, keys=trust(P256, ED), threshold=2))),
    "one twice of two": (
        Reason.SignatureThreshold,
        lambda s: (s.sign(), s.sign(P256, "elsewhere"), demand(s, keys=trust(P256, ED), threshold=2)),
    ),
    "simple: another digest": (
        Reason.SignatureInvalid,
        lambda s: s.simple(lambda d: d["critical"]["image"].update({"docker-manifest-digest": _other_digest()})),
    ),
    "simple: digest in capitals": (
        Reason.SignatureInvalid,
        lambda s: s.simple(lambda d: d["critical"]["image"].update({"docker-manifest-digest": s.index.digest.upper()})),
    ),
    "simple: another type": (
        Reason.SignatureInvalid,
        lambda s: s.simple(lambda d: d["critical"].update(type="atomic container signature")),
    ),
    "simple: no identity": (
        Reason.SignatureInvalid,
        lambda s: s.simple(lambda d: d["critical"].pop("identity")),
    ),
    "simple: no critical part": (Reason.SignatureInvalid, lambda s: s.simple(lambda d: d.pop("critical"))),
    "simple: not JSON": (
        Reason.SignatureInvalid,
        lambda s: put_simple(s.store, s.index.digest, b"hello", P256.sign(b"hello", curve_hash=False)),
    ),
    "simple: an array": (
        Reason.SignatureInvalid,
        lambda s: put_simple(s.store, s.index.digest, b"[]", P256.sign(b"[]", curve_hash=False)),
    ),
    "simple: no signature": (
        Reason.UnsignedArtifact,
        lambda s: put_simple(s.store, s.index.digest, formats.simple_payload(s.index.digest, HOME), b""),
    ),
    "simple: rubbish for a signature": (
        Reason.SignatureInvalid,
        lambda s: put_simple(s.store, s.index.digest, formats.simple_payload(s.index.digest, HOME), b"rubbish"),
    ),
    "simple: the signature of a bundle": (
        Reason.SignatureInvalid,
        lambda s: put_simple(
            s.store,
            s.index.digest,
            formats.simple_payload(s.index.digest, HOME),
            P256.sign(formats.pae(formats.statement(s.index.digest)), curve_hash=True),
        ),
    ),
    "bundle: another digest": (Reason.SignatureInvalid, lambda s: s.bundle(formats.statement(_other_digest()))),
    "bundle: two subjects": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(write_statement([s.index.digest, _other_digest()], SIGN_PREDICATE, {})),
    ),
    "bundle: no subject": (Reason.SignatureInvalid, lambda s: s.bundle(_statement(s, subject=[]))),
    "bundle: subject by SHA-512 alone": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(_statement(s, subject=[{"digest": {"sha512": s.index.digest[7:] * 2}}])),
    ),
    "bundle: subject is a text": (Reason.SignatureInvalid, lambda s: s.bundle(_statement(s, subject=["x"]))),
    "bundle: an attestation for a signature": (
        Reason.SignatureInvalid,
        lambda s: s.attest(SPDX_PREDICATE, {"spdxVersion": "SPDX-2.3"}),
    ),
    "bundle: an unknown predicate": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(_statement(s, predicateType="https://example/x")),
    ),
    "bundle: predicate is a list": (Reason.SignatureInvalid, lambda s: s.bundle(_statement(s, predicate=[]))),
    "bundle: an unknown statement": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(_statement(s, _type="https://in-toto.io/Statement/v9")),
    ),
    "bundle: a key twice": (Reason.SignatureInvalid, lambda s: s.bundle(_twice(s))),
    "bundle: payload type of another kind": (
        Reason.UnsignedArtifact,
        lambda s: s.bundle(change=lambda d: d["dsseEnvelope"].update(payloadType="text/plain")),
    ),
    "bundle: payload exchanged": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(
            formats.statement(_other_digest()),
            change=lambda d: d["dsseEnvelope"].update(
                payload=base64.b64encode(formats.statement(s.index.digest)).decode()
            ),
        ),
    ),
    "bundle: signature over the bare payload": (
        Reason.SignatureInvalid,
        lambda s: s.bundle(
            change=lambda d: _sig(d)[0].update(
                sig=base64.b64encode(P256.sign(formats.statement(s.index.digest), curve_hash=True)).decode()
            )
        ),
    ),
    "bundle: two signatures": (
        Reason.UnsignedArtifact,
        lambda s: s.bundle(change=lambda d: _sig(d).append(_sig(d)[0])),
    ),
    "bundle: no signature": (Reason.UnsignedArtifact, lambda s: s.bundle(change=lambda d: _sig(d).clear())),
    "bundle: base64 with a line break": (
        Reason.UnsignedArtifact,
        lambda s: s.bundle(change=lambda d: _sig(d)[0].update(sig=_sig(d)[0]["sig"] + "\n")),
    ),
    "bundle: of another version": (
        Reason.UnsignedArtifact,
        lambda s: s.bundle(change=lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle.v0.9+json")),
    ),
    "bundle: larger than is read": (
        Reason.UnsignedArtifact,
        lambda s: s.bundle(_statement(s, predicate={"x": "x" * formats.MAX_SIGNED_BYTES})),
    ),
    "bundle: as something else": (
        Reason.UnsignedArtifact,
        lambda s: put_bundle(
            s.store,
            s.index,
            formats.bundle(
                formats.statement(s.index.digest),
                P256.sign(formats.pae(formats.statement(s.index.digest)), curve_hash=True),
                "",
            ),
            artifact_type="application/spdx+json",
        ),
    ),
    "bundle: for the chip only": (
        Reason.UnsignedArtifact,
        lambda s: sign(s.store, s.chips[0], P256, HOME),
    ),
    "more than anyone reads": (Reason.TooLarge, _gather_too_much),
    "annotation missing": (
        Reason.AnnotationMissing,
        lambda s: (s.sign(), demand(s, annotations={"stage": "prod"})),
    ),
    "annotation with another value": (
        Reason.AnnotationMissing,
        lambda s: (s.sign(stage="test"), demand(s, annotations={"stage": "prod"})),
    ),
    "annotations on two signatures, never on one": (
        Reason.AnnotationMissing,
        lambda s: (s.sign(a="1"), s.sign(b="2"), demand(s, annotations={"a": "1", "b": "2"})),
    ),
    "annotated by one of two": (
        Reason.AnnotationMissing,
        lambda s: (
            s.sign(stage="prod"),
            s.sign(ED),
            demand(s, keys=trust(P256, ED), threshold=2, annotations={"stage": "prod"}),
        ),
    ),
    "annotated by another key": (
        Reason.AnnotationMissing,
        lambda s: (s.sign(), s.sign(OTHER, stage="prod"), demand(s, annotations={"stage": "prod"})),
    ),
    "another repository": (
        Reason.IdentityMismatch,
        lambda s: (s.sign(identity="registry.example/team/other"), demand(s, identity_prefix=HOME)),
    ),
    "a repository that only begins alike": (
        Reason.IdentityMismatch,
        lambda s: (s.sign(identity=HOME + "-evil"), demand(s, identity_prefix=HOME)),
    ),
    "a format that names no repository": (
        Reason.IdentityMismatch,
        lambda s: (s.bundle(), demand(s, identity_prefix=HOME)),
    ),
    "no SBOM": (Reason.SbomMissing, lambda s: (s.sign(), demand(s, sbom=True))),
    "SBOM by another key": (
        Reason.SbomMissing,
        lambda s: (s.sign(), s.attest(SPDX_PREDICATE, {}, OTHER), demand(s, sbom=True)),
    ),
    "SBOM of one chip of two": (
        Reason.SbomMissing,
        lambda s: (s.sign(), s.attest(SPDX_PREDICATE, {}, P256, s.chips[0]), demand(s, sbom=True)),
    ),
    "provenance for an SBOM": (
        Reason.SbomMissing,
        lambda s: (s.sign(), s.attest(SLSA_PREDICATE, PROVENANCE), demand(s, sbom=True)),
    ),
    "SBOM, but no signature": (
        Reason.SignatureInvalid,
        lambda s: (s.attest(SPDX_PREDICATE, {}), demand(s, sbom=True)),
    ),
    "no provenance": (Reason.ProvenanceMissing, lambda s: (s.sign(), demand(s, provenance=True))),
    "no provenance, builder named": (
        Reason.ProvenanceMissing,
        lambda s: (s.sign(), demand(s, builders=frozenset({BUILDER}))),
    ),
    "provenance by another key": (
        Reason.ProvenanceMissing,
        lambda s: (s.sign(), s.attest(SLSA_PREDICATE, PROVENANCE, OTHER), demand(s, provenance=True)),
    ),
    "another builder": (
        Reason.BuilderNotTrusted,
        lambda s: (
            s.sign(),
            s.attest(SLSA_PREDICATE, PROVENANCE),
            demand(s, builders=frozenset({"https://x.example"})),
        ),
    ),
    "provenance without a builder": (
        Reason.BuilderNotTrusted,
        lambda s: (
            s.sign(),
            s.attest(SLSA_PREDICATE, {"runDetails": {"builder": [BUILDER]}}),
            demand(s, builders=frozenset({BUILDER})),
        ),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(scene: Scene, name: str) -> None:
    reason, make = ZOO[name]
    make(scene)
    refused(reason, scene.verify)


def test_what_stands_under_the_chip_is_not_read_where_nobody_asks(scene: Scene) -> None:
    scene.sign()
    for number in range(70):
        put_bundle(scene.store, scene.chips[0], b"%d" % number)
    assert scene.verify() == ("key0",)
    demand(scene, sbom=True)
    refused(Reason.TooLarge, scene.verify)


# ---- properties ------------------------------------------------------------------------------------------

DIGESTS = ["sha256:" + digit * 64 for digit in "ab"]
SIGNERS = (P256, P384, ED, OTHER)
REFUSALS = {
    Reason.SignersNotConfigured,
    Reason.UnsignedArtifact,
    Reason.SignatureInvalid,
    Reason.SignatureThreshold,
    Reason.AnnotationMissing,
}


def _candidate(signer: LocalSigner, digest: str, simple: bool, good: bool, stage: str) -> Candidate:
    notes = {"stage": stage} if stage else None
    body = formats.simple_payload(digest, HOME, notes) if simple else formats.statement(digest, notes)
    signed = body if simple else formats.pae(body)
    signature = signer.sign(signed, curve_hash=not simple)
    return Candidate(signed, signature if good else signature[:-1] + bytes([signature[-1] ^ 1]), body, simple)


_CANDIDATES = {
    (index, digest, simple, good, stage): _candidate(SIGNERS[index], digest, simple, good, stage)
    for index in range(len(SIGNERS))
    for digest in DIGESTS
    for simple in (True, False)
    for good in (True, False)
    for stage in ("", "prod")
}


@given(
    chosen=st.lists(st.sampled_from(sorted(_CANDIDATES)), max_size=8),
    keys=st.lists(st.sampled_from(range(len(SIGNERS))), min_size=1, max_size=5),
    threshold=st.integers(0, 4),
    stage=st.sampled_from(["", "prod"]),
)
def test_accept_implies_distinct_trusted_keys_over_exactly_this_digest(
    chosen: list[tuple[int, str, bool, bool, str]], keys: list[int], threshold: int, stage: str
) -> None:
    trusted = [TrustedKey(f"name{number}", SIGNERS[key].public_key) for number, key in enumerate(keys)]
    policy = VerificationPolicy(trusted, threshold, {"stage": stage} if stage else {})
    entitled = {
        index
        for index, digest, _, good, said in chosen
        if index in keys and good and digest == DIGESTS[0] and said in ((stage,) if stage else ("", "prod"))
    }
    refusal: PipelineError | None = None
    try:
        signers = judge(policy, Gathered(DIGESTS[0], [_CANDIDATES[c] for c in chosen])).signers
    except PipelineError as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason in REFUSALS
        assert threshold < 1 or threshold > len(set(keys)) or len(entitled) < threshold
        return
    assert 1 <= threshold <= len(set(keys))
    assert len(entitled) >= threshold
    assert len(signers) == len(entitled)
    for name in signers:
        key = next(key for key in trusted if key.name == name).key
        assert any(
            signature_holds(key, _CANDIDATES[c].signature, _CANDIDATES[c].signed) and c[1] == DIGESTS[0] for c in chosen
        )


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_signed_rubbish_is_refused_with_a_reason(body: bytes) -> None:
    for simple in (True, False):
        signed = body if simple else formats.pae(body)
        candidate = Candidate(signed, ED.sign(signed, curve_hash=False), body, simple)
        refused(
            Reason.SignatureInvalid,
            lambda c=candidate: judge(VerificationPolicy(trust(ED)), Gathered(DIGESTS[0], [c])),  # type: ignore[misc]
        )
