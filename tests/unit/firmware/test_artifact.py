# SPDX-License-Identifier: Apache-2.0
"""Artifacts: pushed whole, signed before tagged, reproducible, and refused when anything in them disagrees."""

import contextlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_pipeline import api, artifact
from firmware_pipeline.config import CONFIG_MEDIA_TYPE, dumps
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.inputs.reconcile import Overrides
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Descriptor, canonical_json, sha256_digest
from firmware_pipeline.plan import BuildPlan, Role
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey
from firmware_pipeline.store import ArtifactStore, Blob
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry

SIGNER = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
TRUSTED = [TrustedKey("ci", SIGNER.public_key)]
RELEASE = api.Release(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), 21)
CHIPS = ["esp32s3", "esp32c3"]


@pytest.fixture
def plans(tmp_path: Path) -> list[BuildPlan]:
    made = []
    for chip in CHIPS:
        (tmp_path / chip).mkdir()
        made.append(builds.plan(tmp_path / chip, chip))
    return made


def pack(plans: list[BuildPlan], folder: Path, **more: Any) -> tuple[LayoutStore, api.Pushed]:
    where = f"oci:{folder}:2.1.0"
    pushed = api.push(plans, where, signer=SIGNER, release=RELEASE, **more)
    return LayoutStore(folder), pushed


def test_a_chip_comes_back_as_it_was_packed(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, pushed = pack(plans, tmp_path / "layout")
    digest = api.resolve(store, f"oci:{tmp_path}/layout:2.1.0")
    assert digest == pushed.index_digest == api.resolve(store, f"oci:{tmp_path}/layout")
    verified = api.verify(store, digest, TRUSTED)
    assert verified.signers == ("ci",)
    for plan in plans:
        chip = api.open_chip(store, digest, plan.target.upper().replace("ESP32", "ESP32-"))
        assert chip.config.measurements == plan.measurements
        assert [layer.image.offset for layer in chip.layers] == sorted(file.offset for file in plan.files)
        for layer in chip.layers:
            data = next(file.data for file in plan.files if file.offset == layer.image.offset)
            target = api.fetch_layer(store, layer, tmp_path / layer.title)
            assert target.read_bytes() == data == api.read_layer(store, layer)
            assert artifact.payload_sha256(layer) == bytes.fromhex(sha256_digest(data)[7:])
        assert chip.app.image.role is Role.APP
        assert {m.value for m in measure(api.read_layer(store, chip.app))} == {
            bytes.fromhex(m.value) for m in chip.config.measurements
        }
        pushed_chip = next(c for c in pushed.chips if c.target == plan.target)
        assert (pushed_chip.manifest_digest, pushed_chip.config_digest) == (chip.manifest_digest, chip.config_digest)
        assert pushed_chip.release_digest == chip.release_digest == sha256_digest(chip.release_statement or b"")
        again = api.open_manifest(store, chip.manifest_digest, plan.target)
        assert again == chip


def test_the_index_is_what_generic_tools_expect(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, pushed = pack(plans, tmp_path / "layout", annotations={"org.example.team": "porch"})
    index = json.loads(store.get_manifest(pushed.index_digest).raw)
    assert index["artifactType"] == "application/vnd.flashjob.firmware.index.v1"
    assert [m["platform"]["variant"] for m in index["manifests"]] == ["esp32c3", "esp32s3"]
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["riscv32", "xtensa"]
    assert all("artifactType" not in m for m in index["manifests"]), "some tools drop it and change the digest"
    assert index["annotations"]["org.opencontainers.image.version"] == "2.1.0"
    assert index["annotations"]["org.example.team"] == "porch"
    titles: list[str] = []
    for entry in index["manifests"]:
        manifest = json.loads(store.get_manifest(entry["digest"]).raw)
        assert manifest["artifactType"] == "application/vnd.flashjob.firmware.v1"
        assert manifest["config"]["mediaType"] == "application/vnd.flashjob.firmware.config.v1+json"
        assert [layer["mediaType"].removeprefix(artifact.VENDOR_TREE) for layer in manifest["layers"]][-2:] == [
            ".app.v1+bin",
            ".release.v1+cose",
        ]
        titles += [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]]
    assert len(set(titles)) == len(titles)
    text = json.dumps(index)
    assert "created" not in text
    assert str(tmp_path) not in text


def test_the_same_build_gives_the_same_digest_anywhere(tmp_path: Path) -> None:
    digests, contents = set(), []
    for number, place in enumerate(("one", "two/deeper")):
        made = []
        for chip in CHIPS if number else reversed(CHIPS):
            folder = tmp_path / place / chip
            folder.mkdir(parents=True)
            made.append(builds.plan(folder, chip))
            for path in folder.iterdir():
                os.utime(path, (number * 1e8, number * 1e8))
        _, pushed = pack(made, tmp_path / place / "layout")
        digests.add(pushed.index_digest)
        blobs = tmp_path / place / "layout" / "blobs" / "sha256"
        contents.append((sorted(p.name for p in blobs.iterdir()), (blobs.parents[1] / "index.json").read_bytes()))
    assert len(digests) == 1
    assert contents[0] == contents[1], "signatures and release statements too"


def test_pushing_again_changes_nothing(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, first = pack(plans, tmp_path / "layout")
    before = {p: p.read_bytes() for p in (tmp_path / "layout").rglob("*") if p.is_file()}
    assert pack(plans, tmp_path / "layout")[1] == first
    assert {p: p.read_bytes() for p in (tmp_path / "layout").rglob("*") if p.is_file()} == before
    assert len(store.tags()) == 1 + 3


def test_pushed_to_a_registry_and_read_back(tmp_path: Path, plans: list[BuildPlan]) -> None:
    with HostileRegistry(auth="none", referrers_api=True) as registry:
        options = ClientOptions(plain_http=True)
        steps: list[tuple[str, int, int]] = []
        where = f"{registry.host}/team/porch:2.1.0"
        pushed = api.push(
            plans,
            where,
            signer=SIGNER,
            release=RELEASE,
            options=options,
            also_tags=["latest", "2.1.0"],
            progress=lambda title, done, total: steps.append((title, done, total)),
        )
        assert str(pushed.reference) == f"{registry.host}/team/porch@{pushed.index_digest}"
        assert pushed.tags == ("2.1.0", "latest")
        assert {title for title, done, total in steps if done == total} >= {"esp32s3/app.bin", "esp32c3/release.cose"}
        store = api.open_store(where, options)
        digest = api.resolve(store, where)
        assert api.verify(store, digest, TRUSTED).digest == pushed.index_digest
        registry.seen.clear()
        chip = api.open_chip(store, digest, "esp32s3")
        api.fetch_layer(store, chip.app, tmp_path / "app.bin")
        fetched = [seen.path.rsplit("/", 1)[1] for seen in registry.seen]
        assert fetched == [chip.manifest_digest, chip.config_digest, chip.release_digest, chip.app.image.digest]


def test_layout_and_registry_give_the_same_digest(tmp_path: Path, plans: list[BuildPlan]) -> None:
    with HostileRegistry() as registry:
        options = ClientOptions(plain_http=True)
        there = api.push(plans, f"{registry.host}/a:1", signer=SIGNER, release=RELEASE, options=options)
    assert pack(plans, tmp_path / "layout")[1].index_digest == there.index_digest


def test_order_tags_come_last(plans: list[BuildPlan]) -> None:
    with HostileRegistry() as registry:
        options = ClientOptions(plain_http=True)
        api.push(plans, f"{registry.host}/a:1", signer=SIGNER, release=RELEASE, options=options, also_tags=["2"])
        writes = [seen.path.rsplit("/", 1)[1] for seen in registry.seen if seen.method == "PUT"]
        index = registry.tags["1"]
        tagged = [writes.index("1"), writes.index("2")]
        assert sorted(tagged) == [len(writes) - 2, len(writes) - 1]
        assert writes.index(index) < writes.index(index.replace(":", "-") + ".sig") < min(tagged)


REFUSED = {
    "an upload": ("POST", "/blobs/uploads/"),
    "a blob": ("PUT", "/blobs/uploads/"),
    "a chip's manifest": ("PUT", "/manifests/{chip}"),
    "the index": ("PUT", "/manifests/{index}"),
    "a chip's signature": ("PUT", "/manifests/{chip_tag}.sig"),
    "the list of its signatures": ("PUT", "/manifests/{chip_tag}"),
    "the index's signature": ("PUT", "/manifests/{index_tag}.sig"),
    "the list of the index's signatures": ("PUT", "/manifests/{index_tag}"),
    "the tag": ("PUT", "/manifests/1"),
}
"""What a registry refuses to store, by the end or a part of the path."""


@pytest.mark.parametrize("what", REFUSED)
def test_whatever_fails_no_tag_moves(tmp_path: Path, plans: list[BuildPlan], what: str) -> None:
    options, (_, made) = ClientOptions(plain_http=True), pack(plans, tmp_path / "layout")
    chip = made.chips[0].manifest_digest
    names = {"chip": chip, "index": made.index_digest}
    method, path = REFUSED[what]
    path = path.format(**names, **{f"{name}_tag": digest.replace(":", "-") for name, digest in names.items()})
    hits: list[str] = []

    def refuse(handler: Any) -> bool:
        where = urlsplit(handler.path).path
        if handler.command != method or not (path in where if path.endswith("/") else where.endswith(path)):
            return False
        hits.append(where)
        handler._error(400, "BROKEN")
        return True

    with HostileRegistry() as registry:
        old = api.push(plans[:1], f"{registry.host}/old:1", signer=SIGNER, release=None, options=options)
        registry.blobs.clear()
        registry.script = refuse
        refused(
            Reason.RegistryProtocol,
            lambda: api.push(plans, f"{registry.host}/a:1", signer=SIGNER, release=RELEASE, options=options),
        )
        assert hits
        assert registry.tags["1"] == old.index_digest


# ---- what is refused when it is made ---------------------------------------------------------------------


def test_builds_that_are_no_release_together_are_refused(tmp_path: Path, plans: list[BuildPlan]) -> None:
    (tmp_path / "other").mkdir()
    other = builds.plan(
        tmp_path / "other", "esp32", app=build_app("esp32", "porch-sensor", "2.2.0", payload_size=65536)
    )
    named = builds.plan(tmp_path / "other", "esp32", app=build_app("esp32", "gate", "2.1.0", payload_size=65536))
    for made, words in (([*plans, plans[0]], "same chip"), ([*plans, other], "versions"), ([*plans, named], "names")):
        assert words in refused(Reason.InputDisagrees, lambda made=made: pack(made, tmp_path / "x")).message  # type: ignore[misc]
    refused(Reason.InputMissing, lambda: pack([], tmp_path / "x"))
    refused(Reason.InputDisagrees, lambda: pack(plans, tmp_path / "x", annotations={"dev.flashjob.offset": "0"}))
    assert not (tmp_path / "x").exists()


def test_a_reference_to_push_to_has_no_digest(tmp_path: Path, plans: list[BuildPlan]) -> None:
    where = f"oci:{tmp_path}/x:1@sha256:" + "0" * 64
    refused(Reason.ReferenceMalformed, lambda: api.push(plans, where, signer=None, release=None))
    refused(Reason.ReferenceMalformed, lambda: pack(plans, tmp_path / "x", also_tags=["no tag"]))
    assert not (tmp_path / "x").exists()


def test_files_with_the_same_name_stay_apart(tmp_path: Path) -> None:
    arguments = builds.write_parts(tmp_path)
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "app.bin").write_bytes((tmp_path / "table.bin").read_bytes())
    arguments = [a for a in arguments if "table.bin" not in a] + [f"0x8000={twin}/app.bin"]
    plan = load_files(arguments)
    twins = plan.model_copy(update={"files": tuple(f.model_copy(update={"name": "same.bin"}) for f in plan.files)})
    for made in (plan, twins):
        store, pushed = pack([made], tmp_path / "layout")
        titles = [layer.title for layer in api.open_chip(store, pushed.index_digest, "esp32c3").layers]
        assert len(set(titles)) == len(titles) == 4


# ---- what is refused when it is read ---------------------------------------------------------------------


def rewritten(
    store: LayoutStore, digest: str, chip: str, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]
) -> str:
    """The artifact with index, manifest and config changed and every digest right again: a liar with a push right."""
    index = json.loads(store.get_manifest(digest).raw)
    entry = next(m for m in index["manifests"] if m["platform"]["variant"] == chip)
    manifest = json.loads(store.get_manifest(entry["digest"]).raw)
    described = Descriptor.model_validate(manifest["config"], by_alias=True)
    config = json.loads(store.read_blob(described, max_bytes=10**6))
    change(index, manifest, config)
    blob = Blob.of(canonical_json(config))
    store.put_blob(blob)
    if "config" in manifest and manifest["config"]["digest"] == described.digest:
        manifest["config"] |= {"digest": blob.digest, "size": blob.size}
    raw = canonical_json(manifest)
    entry |= {"digest": store.put_manifest(raw, entry["mediaType"])}
    entry["size"] += len(raw) - entry["size"] if entry["size"] > 0 else 0
    return store.put_manifest(canonical_json(index), "application/vnd.oci.image.index.v1+json")


def set_in(where: str, *path: Any) -> Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]:
    """A change of one value: set_in("manifest", "config", "mediaType", "text/plain")."""
    *keys, last, value = path

    def change(index: dict[str, Any], manifest: dict[str, Any], config: dict[str, Any]) -> None:
        target: Any = {"index": index, "manifest": manifest, "config": config}[where]
        for key in keys:
            target = target[key]
        target[last] = value

    return change


LIES: dict[str, tuple[Reason, Any]] = {
    "rule 1: another index": (Reason.ArtifactMalformed, set_in("index", "artifactType", "application/x")),
    "rule 2: a chip twice": (
        Reason.ArtifactMalformed,
        lambda i, m, c: i["manifests"].append(json.loads(json.dumps(i["manifests"][1]))),
    ),
    "rule 1: chip not there": (
        Reason.PlatformMissing,
        lambda i, m, c: [entry["platform"].pop("variant") for entry in i["manifests"]],
    ),
    "rule 3: another artifact": (Reason.ArtifactMalformed, set_in("manifest", "artifactType", "application/x")),
    "rule 3: another config type": (Reason.ArtifactMalformed, set_in("manifest", "config", "mediaType", "a/b")),
    "rule 3: huge config": (
        Reason.TooLarge,
        set_in(
            "manifest",
            "config",
            {"mediaType": CONFIG_MEDIA_TYPE, "digest": "sha256:" + "1" * 64, "size": 10**9},
        ),
    ),
    "rule 3: two releases": (
        Reason.ArtifactMalformed,
        lambda i, m, c: m["layers"].append(m["layers"][-1]),
    ),
    "rule 4: config of another chip": (
        Reason.WrongChip,
        lambda i, m, c: c["chip"].update(target="esp32c3", chipId=5),
    ),
    "rule 4: no such chip": (Reason.ConfigMalformed, set_in("config", "chip", "chipId", 4711)),
    "rule 5: a layer too many": (Reason.ArtifactMalformed, lambda i, m, c: m["layers"].insert(0, m["layers"][0])),
    "rule 5: a layer too few": (Reason.ArtifactMalformed, lambda i, m, c: m["layers"].pop(0)),
    "rule 5: layers in another order": (
        Reason.ArtifactMalformed,
        lambda i, m, c: m["layers"].insert(0, m["layers"].pop(1)),
    ),
    "rule 5: another role": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "mediaType", artifact.layer_type(Role.DATA)),
    ),
    "rule 5: another digest": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "digest", "sha256:" + "1" * 64),
    ),
    "rule 5: another size": (Reason.ArtifactMalformed, set_in("manifest", "layers", 0, "size", 1)),
    "rule 5: another offset for people": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "annotations", artifact.OFFSET, "0x1"),
    ),
    "rule 5: offset only in the config": (Reason.ArtifactMalformed, set_in("config", "images", 0, "offset", 0x4000)),
    "rule 6: a title that climbs": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "annotations", artifact.TITLE, "esp32s3/../../etc/passwd"),
    ),
    "rule 6: a title of another chip": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "annotations", artifact.TITLE, "esp32/bootloader.bin"),
    ),
    "rule 6: a title twice": (
        Reason.ArtifactMalformed,
        set_in("manifest", "layers", 0, "annotations", artifact.TITLE, "esp32s3/table.bin"),
    ),
    "release of another version": (Reason.ReleaseInvalid, set_in("config", "app", "version", "2.1.1")),
    "release of another measurement": (
        Reason.ReleaseInvalid,
        set_in("config", "measurements", 0, "value", "00" * 64),
    ),
    "release of another secure version": (Reason.ReleaseInvalid, set_in("config", "app", "secureVersion", 3)),
    "config with an unknown key": (Reason.ConfigMalformed, set_in("config", "surprise", 1)),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_artifact_that_contradicts_itself_is_refused(tmp_path: Path, plans: list[BuildPlan], lie: str) -> None:
    store, pushed = pack(plans, tmp_path / "layout")
    reason, change = LIES[lie]
    digest = rewritten(store, pushed.index_digest, "esp32s3", change)
    assert digest != pushed.index_digest
    refused(reason, lambda: api.open_chip(store, digest, "esp32s3"))
    refused(Reason.UnsignedArtifact, lambda: api.verify(store, digest, TRUSTED))


def test_an_unchanged_rewrite_is_the_same_artifact(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, pushed = pack(plans, tmp_path / "layout")
    assert rewritten(store, pushed.index_digest, "esp32s3", lambda i, m, c: None) == pushed.index_digest


def test_a_manifest_of_another_size_than_the_index_says(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, pushed = pack(plans, tmp_path / "layout")
    entry = artifact.find_chip(api.open_index(store, pushed.index_digest), "esp32s3")
    refused(Reason.ArtifactMalformed, lambda: api.open_manifest(store, entry.digest, "esp32s3", size=entry.size + 1))
    refused(Reason.WrongChip, lambda: api.open_manifest(store, entry.digest, "esp32c3"))
    refused(Reason.PlatformMissing, lambda: api.open_chip(store, pushed.index_digest, "esp32p4"))
    refused(Reason.ArtifactMalformed, lambda: api.open_chip(store, entry.digest, "esp32s3"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    document=st.sampled_from(["index", "manifest", "config"]),
    position=st.integers(0, 10**6),
    byte=st.binary(max_size=3),
)
def test_a_changed_byte_ends_in_no_error_but_ours(
    packed: tuple[str, bytes, bytes, bytes], document: str, position: int, byte: bytes
) -> None:
    digest, *raw = packed
    number = ["index", "manifest", "config"].index(document)
    at = position % len(raw[number])
    changed = list(raw)
    changed[number] = raw[number][:at] + byte + raw[number][at + 1 :]
    with contextlib.suppress(PipelineError):
        artifact.find_chip(artifact.read_index(changed[0], digest), "esp32c3")
        artifact.read_chip(artifact.read_manifest(changed[1], digest), changed[2], "esp32c3", None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes, bytes, bytes]:
    """(digest, index, manifest, config) of a one-chip artifact without release statement."""
    folder = tmp_path_factory.mktemp("packed")
    plan = builds.plan(folder)
    chip = artifact.pack_chip(plan)
    index = artifact.pack_index([plan], [chip])
    return sha256_digest(index), index, chip.manifest, dumps(chip.config)


# ---- layout directories ----------------------------------------------------------------------------------


def blob_path(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), Reason.DigestMismatch),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), Reason.SizeMismatch),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), Reason.SizeMismatch),
        (lambda path: path.unlink(), Reason.ReferenceNotFound),
    ],
)
def test_a_layout_is_checked_like_a_registry(
    tmp_path: Path, plans: list[BuildPlan], damage: Callable[[Path], object], reason: Reason
) -> None:
    store, pushed = pack(plans, tmp_path / "layout")
    chip = api.open_chip(store, pushed.index_digest, "esp32s3")
    damage(blob_path(tmp_path / "layout", chip.app.image.digest))
    refused(reason, lambda: api.fetch_layer(store, chip.app, tmp_path / "out" / "app.bin"))
    assert list((tmp_path / "out").iterdir()) == []


def test_layouts_that_are_none(tmp_path: Path, plans: list[BuildPlan]) -> None:
    refused(Reason.ReferenceNotFound, lambda: LayoutStore(tmp_path / "nothing"))
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"9"}')
    refused(Reason.MediaTypeUnsupported, lambda: LayoutStore(tmp_path))
    (tmp_path / "oci-layout").write_text("{")
    refused(Reason.ArtifactMalformed, lambda: LayoutStore(tmp_path))
    store, _ = pack(plans, tmp_path / "layout")
    refused(Reason.ReferenceNotFound, lambda: store.resolve("9"))
    (tmp_path / "layout" / "index.json").write_text("[]")
    refused(Reason.ArtifactMalformed, lambda: store.resolve("2.1.0"))


def test_a_layout_of_two_artifacts_must_be_asked_by_tag(tmp_path: Path, plans: list[BuildPlan]) -> None:
    store, _ = pack(plans, tmp_path / "layout")
    second = api.push(plans[:1], f"oci:{tmp_path}/layout:other", signer=None, release=None)
    refused(Reason.ReferenceMalformed, lambda: api.resolve(store, f"oci:{tmp_path}/layout"))
    assert api.resolve(store, f"oci:{tmp_path}/layout:other") == second.index_digest
    assert api.locate(f"{tmp_path}/layout:other") == parse_reference(f"oci:{tmp_path}/layout:other")


def test_layout_writers_do_not_lose_each_others_tags(tmp_path: Path) -> None:
    store = LayoutStore(tmp_path / "layout", create=True)
    raw = canonical_json({"manifests": [], "mediaType": "application/vnd.oci.image.index.v1+json", "schemaVersion": 2})

    def write(number: int) -> None:
        LayoutStore(tmp_path / "layout").put_manifest(raw, "application/vnd.oci.image.index.v1+json", tag=f"t{number}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.tags()) == {f"t{number}" for number in range(12)}


def test_every_store_offers_the_same(tmp_path: Path) -> None:
    wanted = {name for name in vars(ArtifactStore) if not name.startswith("_")}
    assert wanted <= set(dir(LayoutStore))
    assert wanted <= set(dir(RegistryStore))


def test_real_firmware_makes_the_round_trip(tmp_path: Path, firmware_dir: Path) -> None:
    image = firmware_dir / "micropython-esp32c3-2023-06-10-app.bin"
    plan = load_files([f"0x10000={image}"], overrides=Overrides("micropython", "1.20.0"))
    store, pushed = pack([plan], tmp_path / "layout")
    chip = api.open_chip(store, pushed.index_digest, "esp32c3")
    assert api.read_layer(store, chip.app) == image.read_bytes()
    assert chip.config.app.version == "1.20.0"
