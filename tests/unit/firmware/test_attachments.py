# SPDX-License-Identifier: Apache-2.0
"""SBOMs, provenance and other files: what is one, how it is attached, and releases minted away from the build."""

import json
from pathlib import Path, PurePath
from typing import Any

import pytest

from firmware_pipeline import api
from firmware_pipeline.attaching import ALL_CHIPS, attaching, parts
from firmware_pipeline.attachments import Document, attach, other_file
from firmware_pipeline.config import from_plan
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Manifest, parse_document
from firmware_pipeline.provenance import BUILD_TYPE, make_provenance, read_provenance
from firmware_pipeline.pushing import Release
from firmware_pipeline.releasing import release
from firmware_pipeline.sbom import CYCLONEDX_TYPE, MAX_SBOM_BYTES, SPDX_TYPE, read_sbom
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.signing.sign import sign_all
from firmware_pipeline.signing.statements import (
    CYCLONEDX_PREDICATE,
    SIGN_PREDICATE,
    SLSA_PREDICATE,
    SPDX_PREDICATE,
    write_statement,
)
from firmware_pipeline.signing.verify import gather, verify
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.signed import CYCLONEDX, ED, HOME, OTHER, P256, put_index, put_manifest, trust
from tests.unit.firmware.test_registry import store_for

PATH = PurePath("sbom.json")
BUILDER = "https://ci.example/builders/1"
SPDX_2: dict[str, Any] = {
    "spdxVersion": "SPDX-2.3",
    "SPDXID": "SPDXRef-DOCUMENT",
    "dataLicense": "CC0-1.0",
    "name": "porch-sensor",
    "documentNamespace": "https://example.org/porch-sensor",
    "creationInfo": {"created": "2026-01-31T12:00:00Z", "creators": ["Tool: x"]},
    "packages": [{"SPDXID": "SPDXRef-1", "name": "lwip"}],
}
SPDX_3: dict[str, Any] = {
    "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld",
    "@graph": [{"type": "SpdxDocument", "spdxId": "x"}, {"type": "software_Package", "name": "lwip"}],
}


def raw(document: object) -> bytes:
    return json.dumps(document).encode()


# ---- SBOM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "media_type", "predicate"),
    [
        (SPDX_2, SPDX_TYPE, SPDX_PREDICATE),
        (SPDX_2 | {"spdxVersion": "SPDX-2.2"}, SPDX_TYPE, SPDX_PREDICATE),
        (SPDX_3, SPDX_TYPE, SPDX_PREDICATE),
        (CYCLONEDX, CYCLONEDX_TYPE, CYCLONEDX_PREDICATE),
        (CYCLONEDX | {"specVersion": "1.4"}, CYCLONEDX_TYPE, CYCLONEDX_PREDICATE),
        (
            {"bomFormat": "CycloneDX", "specVersion": "1.5", "metadata": {"component": {"name": "porch"}}},
            CYCLONEDX_TYPE,
            CYCLONEDX_PREDICATE,
        ),
    ],
)
def test_every_known_form(document: dict[str, Any], media_type: str, predicate: str) -> None:
    found = read_sbom(raw(document), PurePath("build/sbom.json"))
    assert (found.media_type, found.predicate_type, found.title) == (media_type, predicate, "sbom.json")
    assert found.predicate == document


BAD_SBOMS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "white space": (b" \n", "it is empty"),
    "too large": (b"{" + b" " * MAX_SBOM_BYTES, "bytes"),
    "tag-value": (b"SPDXVersion: SPDX-2.3\n", "only JSON"),
    "a key twice": (b'{"bomFormat":"CycloneDX","bomFormat":"CycloneDX"}', "only JSON"),
    "not UTF-8": (b"\xff\xfe{}", "only JSON"),
    "an array": (b"[]", "only JSON"),
    "something else": (b'{"a":1}', "neither"),
    "SPDX 2.1": (raw(SPDX_2 | {"spdxVersion": "SPDX-2.1"}), "its version"),
    "SPDX of another id": (raw(SPDX_2 | {"SPDXID": "SPDXRef-1"}), "SPDXRef-DOCUMENT"),
    "SPDX without namespace": (raw(SPDX_2 | {"documentNamespace": ""}), "documentNamespace"),
    "SPDX without creators": (raw(SPDX_2 | {"creationInfo": {"created": "x"}}), "creators"),
    "SPDX without packages": (raw(SPDX_2 | {"packages": []}), "packages"),
    "SPDX with texts for packages": (raw(SPDX_2 | {"packages": ["lwip"]}), "packages"),
    "SPDX 3 of another context": (raw(SPDX_3 | {"@context": "https://example.org"}), "@context"),
    "SPDX 3 without document": (raw(SPDX_3 | {"@graph": [{"type": "x"}]}), "SpdxDocument"),
    "SPDX 3 without graph": (raw({"@context": SPDX_3["@context"]}), "@graph"),
    "CycloneDX 1.3": (raw(CYCLONEDX | {"specVersion": "1.3"}), "specVersion"),
    "CycloneDX of another format": (raw(CYCLONEDX | {"bomFormat": "Other"}), "bomFormat"),
    "CycloneDX without components": (raw(CYCLONEDX | {"components": []}), "components"),
    "CycloneDX with one component for all": (raw(CYCLONEDX | {"components": {}}), "components"),
}


@pytest.mark.parametrize("name", BAD_SBOMS)
def test_what_is_no_sbom(name: str) -> None:
    content, said = BAD_SBOMS[name]
    assert said in refused(Reason.SbomMalformed, lambda: read_sbom(content, PATH)).message


# ---- provenance ------------------------------------------------------------------------------------------

PREDICATE: dict[str, Any] = {
    "buildDefinition": {"buildType": BUILD_TYPE, "externalParameters": {}},
    "runDetails": {"builder": {"id": BUILDER}},
}


def test_provenance_says_what_went_where_and_nothing_of_the_machine(tmp_path: Path) -> None:
    plan = builds.plan(tmp_path)
    build = plan.build.model_copy(
        update={
            "source": "https://ci:secret@git.example/porch",
            "revision": "0123456789abcdef" * 2 + "01234567",
            "framework_version": "v5.5.1",
        }
    )
    config = from_plan(plan.model_copy(update={"build": build}))
    environment = {"GITHUB_SHA": "abc", "HOME": "/home/somebody", "HOSTNAME": "machine", "AWS_SECRET": "s3cret"}
    document = make_provenance([config], BUILDER, environment)
    definition = document.predicate["buildDefinition"]
    assert definition["externalParameters"]["environment"] == {"GITHUB_SHA": "abc"}
    files = definition["externalParameters"]["chips"]["esp32c3"]["files"]
    assert [file["digest"] for file in files] == [image.digest for image in config.images]
    source, framework = sorted(definition["resolvedDependencies"], key=lambda entry: "name" in entry)
    assert source["digest"] == {"gitCommit": build.revision}
    assert source["uri"] == f"git+https://git.example/porch@{build.revision}"
    assert framework["uri"].endswith("@v5.5.1")
    assert document.predicate["runDetails"]["builder"]["id"] == BUILDER
    text = document.data.decode()
    for secret in (str(tmp_path), "somebody", "machine", "s3cret", "ci:secret"):
        assert secret not in text
    assert make_provenance([config], BUILDER, environment) == document
    assert read_provenance(document.data, PATH, ["sha256:" + "0" * 64]).predicate == document.predicate


def test_a_statement_must_name_what_it_is_attached_to() -> None:
    digests = ["sha256:" + digit * 64 for digit in "ab"]
    statement = write_statement(digests, SLSA_PREDICATE, PREDICATE)
    assert read_provenance(statement, PATH, digests).predicate == PREDICATE
    error = refused(
        Reason.ProvenanceMalformed, lambda: read_provenance(statement, PATH, [*digests, "sha256:" + "c" * 64])
    )
    assert "c" * 64 in error.message


BAD_PROVENANCE: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"x",
    "an array": b"[]",
    "no definition": raw({"runDetails": PREDICATE["runDetails"]}),
    "no build type": raw(PREDICATE | {"buildDefinition": {"externalParameters": {}}}),
    "no parameters": raw(PREDICATE | {"buildDefinition": {"buildType": "x"}}),
    "no builder": raw(PREDICATE | {"runDetails": {}}),
    "builder that is no URI": raw(PREDICATE | {"runDetails": {"builder": {"id": "me"}}}),
    "builder that is a number": raw(PREDICATE | {"runDetails": {"builder": {"id": 5}}}),
    "SLSA 0.2": raw(
        {"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v0.2"}
    ),
    "statement of no version": raw({"_type": "x", "predicateType": SLSA_PREDICATE, "predicate": PREDICATE}),
    "statement without subject": raw(
        {"_type": "https://in-toto.io/Statement/v1", "predicateType": SLSA_PREDICATE, "predicate": PREDICATE}
    ),
}


@pytest.mark.parametrize("name", BAD_PROVENANCE)
def test_what_is_no_provenance(name: str) -> None:
    digest = "sha256:" + "a" * 64
    refused(Reason.ProvenanceMalformed, lambda: read_provenance(BAD_PROVENANCE[name], PATH, [digest]))


# ---- attaching -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", create=True)


def types(store: LayoutStore, digest: str) -> list[str]:
    manifests = (parse_document(Manifest, store.get_manifest(e.digest).raw, "x") for e in store.referrers(digest))
    return sorted(manifest.artifact_type or "" for manifest in manifests)


def test_a_signed_sbom_is_there_for_generic_tools_and_as_a_statement(store: LayoutStore) -> None:
    subject = put_manifest(store)
    digests = attach(store, [subject], read_sbom(raw(CYCLONEDX), PATH), P256, HOME)
    assert attach(store, [subject], read_sbom(raw(CYCLONEDX), PATH), P256, HOME) == digests, "again changes nothing"
    assert types(store, subject.digest) == [
        "application/vnd.cyclonedx+json",
        "application/vnd.dev.sigstore.bundle.v0.3+json",
    ]
    plain = parse_document(Manifest, store.get_manifest(digests[0]).raw, "x")
    assert store.read_blob(plain.layers[0], max_bytes=1 << 20) == raw(CYCLONEDX)
    assert plain.layers[0].annotations["org.opencontainers.image.title"] == "sbom.json"


def test_an_unsigned_document_counts_for_nothing(store: LayoutStore) -> None:
    index, _ = put_index(store)
    sign_all(store, [index], P256, HOME)
    attach(store, [index], read_sbom(raw(SPDX_2), PATH), None, HOME)
    attach(store, [index], read_provenance(raw(PREDICATE), PATH, []), None, HOME)
    assert len(types(store, index.digest)) == 3
    refused(Reason.SbomMissing, lambda: verify(store, index.digest, VerificationPolicy(trust(P256), sbom=True)))
    refused(
        Reason.ProvenanceMissing, lambda: verify(store, index.digest, VerificationPolicy(trust(P256), provenance=True))
    )


def test_another_file_is_signed_as_what_it_is(store: LayoutStore) -> None:
    subject = put_manifest(store)
    [digest] = attach(store, [subject], other_file(b"ELF", "app.elf", "application/vnd.example.debug.v1"), ED, HOME)
    assert verify(store, digest, VerificationPolicy(trust(ED))).signers == ("key0",)
    assert gather(store, subject.digest) == [], "it is no signature of its subject"


@pytest.mark.parametrize(
    "media_type", ["", "text", "text/plain; charset=x", "application/vnd.dev.sigstore.bundle.v0.3+json"]
)
def test_other_files_need_a_type_of_their_own(media_type: str) -> None:
    refused(Reason.ReferenceMalformed, lambda: other_file(b"x", "x", media_type))


def test_a_statement_that_nobody_would_read_is_not_made(store: LayoutStore) -> None:
    subject = put_manifest(store)
    huge = Document("application/spdx+json", "x", b"", SPDX_PREDICATE, {"x": "x" * (8 << 20)})
    refused(Reason.TooLarge, lambda: attach(store, [subject], huge, P256, HOME))


# ---- with a push -----------------------------------------------------------------------------------------


def push(where: str, tmp_path: Path, sboms: list[tuple[str, Document]], **more: Any) -> api.Pushed:
    plans = []
    for chip in ("esp32c3", "esp32s3"):
        (tmp_path / chip).mkdir(exist_ok=True)
        plans.append(builds.plan(tmp_path / chip, chip))
    callback = attaching(sboms, BUILDER, {}, P256)
    return api.push(plans, where, signer=P256, release=None, attach=callback, **more)


def test_everything_is_attached_before_a_tag_names_it(tmp_path: Path) -> None:
    sbom = read_sbom(raw(SPDX_2), PATH)
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        seen: list[int] = []
        registry.on_tag = lambda tag: seen.append(_documents(registry)) if tag == "1" else None
        pushed = push(f"{registry.host}/team/porch:1", tmp_path, [("esp32c3", sbom), ("esp32-s3", sbom)], store=store)
        assert seen == [2 * 2 + 3], "two SBOMs, each with its statement, and provenance for index and chips"
        policy = VerificationPolicy(trust(P256), sbom=True, builders=frozenset({BUILDER}))
        assert api.verify_policy(store, pushed.index_digest, policy).signers == ("key0",)


def _documents(registry: HostileRegistry) -> int:
    """How many manifests refer to another one, signatures aside."""
    found = [json.loads(content) for _, content in registry.manifests.values()]
    kinds = [m.get("annotations", {}).get("dev.sigstore.bundle.predicateType") for m in found if "subject" in m]
    return sum(kind != SIGN_PREDICATE for kind in kinds)


def test_a_failed_attachment_leaves_the_tag_alone(tmp_path: Path) -> None:
    where = f"oci:{tmp_path}/layout:1"
    refused(Reason.PlatformMissing, lambda: push(where, tmp_path, [("esp32h2", read_sbom(raw(SPDX_2), PATH))]))
    assert LayoutStore(tmp_path / "layout").tags().get("1") is None
    push(where, tmp_path, [(ALL_CHIPS, read_sbom(raw(SPDX_2), PATH))])
    store = LayoutStore(tmp_path / "layout")
    policy = VerificationPolicy(trust(P256), sbom=True, provenance=True)
    assert verify(store, store.resolve("1"), policy).signers == ("key0",)


# ---- releases minted elsewhere ---------------------------------------------------------------------------


def test_packed_here_released_there_signed_and_pushed(tmp_path: Path) -> None:
    pushed = push(f"oci:{tmp_path}/layout:1", tmp_path, [])
    store = LayoutStore(tmp_path / "layout")
    done = release(store, pushed.index_digest, Release(OTHER.private_key, 7), None, ["1"])
    assert done.chips == ("esp32c3", "esp32s3")
    assert store.resolve("1") == done.digest != pushed.index_digest
    refused(Reason.UnsignedArtifact, lambda: verify(store, done.digest, VerificationPolicy(trust(P256))))
    subjects, identity = parts(store, done.digest, None)
    assert identity == "porch-sensor"
    sign_all(store, subjects, P256, identity)
    verified = api.verify(store, done.digest, trust(P256))
    for chip in done.chips:
        before, after = (api.open_chip(store, digest, chip) for digest in (pushed.index_digest, verified.digest))
        assert (before.release_statement, before.config, before.layers) == (None, after.config, after.layers)
        assert after.release_statement is not None
    with HostileRegistry() as registry:
        remote = store_for(registry, push=True)
        api.copy(f"oci:{tmp_path}/layout:1", f"{registry.host}/team/porch:1", keys=trust(P256), options=_plain())
        assert api.verify(remote, remote.resolve("1"), trust(P256)).digest == done.digest


def test_a_release_is_the_same_as_if_it_had_been_pushed_so(tmp_path: Path) -> None:
    """Whether the owner's key was there at the push or later: the same bytes, and a new sequence replaces the old."""
    owner = OTHER.private_key
    at_once = push(f"oci:{tmp_path}/one:1", tmp_path, [])
    plans = [builds.plan(tmp_path / chip, chip) for chip in ("esp32c3", "esp32s3")]
    at_push = api.push(plans, f"oci:{tmp_path}/two:1", signer=None, release=Release(owner, 7))
    store = LayoutStore(tmp_path / "one")
    first = release(store, at_once.index_digest, Release(owner, 6), None, [])
    assert release(store, first.digest, Release(owner, 7), None, []).digest == at_push.index_digest


def test_what_is_no_artifact_of_ours_is_not_released(store: LayoutStore) -> None:
    index, _ = put_index(store, chips=["esp32c3"])
    with pytest.raises(PipelineError):
        release(store, index.digest, Release(OTHER.private_key, 1), None, [])


def _plain() -> api.ClientOptions:
    return api.ClientOptions(plain_http=True)
