# SPDX-License-Identifier: Apache-2.0
"""The library's verbs: pull, index, copy, diff, inspect, preview. Registries are real servers, layouts real folders."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from firmware_pipeline import api
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.builder import build_app
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.http_rules import Limits
from firmware_pipeline.plan import BuildPlan
from firmware_pipeline.signing.keys import LocalSigner, TrustedKey, load_trusted_key, public_pem
from firmware_pipeline.signing.verify import gather
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry

OPTIONS = api.ClientOptions(plain_http=True, limits=Limits(first_pause_seconds=0.01))
ONE, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RELEASE = api.Release(ec.generate_private_key(ec.SECP256R1()), 21)


def trusted(key: ec.EllipticCurvePrivateKey = ONE) -> list[TrustedKey]:
    return [load_trusted_key(public_pem(key.public_key()), "ci.pub")]


@pytest.fixture
def registry() -> Iterator[HostileRegistry]:
    with HostileRegistry() as server:
        yield server


def plan(folder: Path, chip: str = "esp32c3", version: str = "2.1.0", name: str = "porch-sensor") -> BuildPlan:
    place = folder / f"{name}-{chip}-{version}"
    place.mkdir(exist_ok=True)
    return builds.plan(place, chip, app=build_app(chip, name, version, payload_size=builds.PAYLOAD))


def push(plans: list[BuildPlan], where: str, key: ec.EllipticCurvePrivateKey = ONE) -> api.Pushed:
    return api.push(plans, where, signer=LocalSigner(key), release=RELEASE, options=OPTIONS)


# ---- pull ------------------------------------------------------------------------------------------------


def test_pull_from_a_registry(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    pushed = push([plan(tmp_path), plan(tmp_path, "esp32s3")], where)
    seen: dict[str, int] = {}
    pulled = api.pull(
        where, "ESP32-C3", tmp_path / "out", keys=trusted(), options=OPTIONS,
        progress=lambda title, done, _: seen.update({title: done}),
    )  # fmt: skip
    assert pulled.reference == pushed.reference
    assert pulled.signers == ("ci.pub",)
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        "esp32c3/bootloader.bin", "esp32c3/table.bin", "esp32c3/otadata.bin", "esp32c3/app.bin",
        "esp32c3/config.json", "esp32c3/release.cose",
    }  # fmt: skip
    assert [path.stat().st_size for path in pulled.files[:4]] == [layer.image.size for layer in pulled.chip.layers]
    assert seen == {layer.title: layer.image.size for layer in pulled.chip.layers}
    assert not [s for s in registry.requests("GET", "/blobs/") if "esp32s3" in s.path]


def test_pull_asks_who_signed_before_it_fetches_images(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    push([plan(tmp_path)], where, OTHER)

    def pull(keys: list[TrustedKey] | None) -> api.Pulled:
        return api.pull(where, "esp32c3", tmp_path / "out", keys=keys, options=OPTIONS)

    refused(Reason.SignatureInvalid, lambda: pull(trusted()))
    refused(Reason.SignersNotConfigured, lambda: pull([]))
    assert not (tmp_path / "out").exists()
    assert pull(None).signers == ()


@pytest.mark.parametrize(("evil", "reason"), [("tamper", Reason.DigestMismatch), ("short", Reason.SizeMismatch)])
def test_a_wrong_image_appears_nowhere(registry: HostileRegistry, tmp_path: Path, evil: str, reason: Reason) -> None:
    where = f"{registry.host}/porch:2.1.0"
    pushed = push([plan(tmp_path)], where)
    store = api.open_store(where, OPTIONS)
    chip = api.open_chip(store, pushed.index_digest, "esp32c3")
    registry.knobs.blob = evil
    refused(reason, lambda: api.fetch_layer(store, chip.app, tmp_path / "out/app.bin"))
    refused(reason, lambda: api.pull(where, "esp32c3", tmp_path / "out", keys=None, options=OPTIONS))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_interrupted_in_the_middle_nothing_unfinished_stays(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    push([plan(tmp_path)], where)
    main = threading.current_thread()

    def interrupt(_title: str, _done: int, _total: int) -> None:
        assert threading.current_thread() is not main
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.pull(where, "esp32c3", tmp_path / "out", keys=None, options=OPTIONS, progress=interrupt)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_one_store_serves_many_threads(registry: HostileRegistry, tmp_path: Path) -> None:
    registry.knobs.auth, registry.knobs.token_seconds = "token", 0.05
    where = f"{registry.host}/porch:2.1.0"
    push([plan(tmp_path), plan(tmp_path, "esp32s3")], where)
    store = api.open_store(where, OPTIONS)

    def pull(number: int) -> api.Pulled:
        chip = ("esp32c3", "esp32s3")[number % 2]
        return api.pull(where, chip, tmp_path / str(number), keys=trusted(), store=store)

    with ThreadPoolExecutor(6) as pool:
        pulled = list(pool.map(pull, range(8)))
    assert {len(one.files) for one in pulled} == {6}
    assert {one.chip.target for one in pulled} == {"esp32c3", "esp32s3"}


# ---- index -----------------------------------------------------------------------------------------------


def test_index_joins_what_matrix_jobs_pushed(registry: HostileRegistry, tmp_path: Path) -> None:
    """One child in the same repository, one in another, one in a layout by its manifest's digest."""
    c3 = push([plan(tmp_path)], f"{registry.host}/porch:build-c3")
    push([plan(tmp_path, "esp32s3")], f"{registry.host}/jobs/s3:7")
    c6 = push([plan(tmp_path, "esp32c6")], f"oci:{tmp_path}/c6:x")
    children = [
        f"{registry.host}/jobs/s3:7",
        f"{registry.host}/porch@{c3.index_digest}",
        f"oci:{tmp_path}/c6@{c6.chips[0].manifest_digest}",
    ]
    where = f"{registry.host}/porch:2.1.0"

    def join(order: list[str]) -> api.Pushed:
        return api.index(order, where, signer=LocalSigner(OTHER), options=OPTIONS, also_tags=["stable"])

    joined = join(children)
    assert [chip.target for chip in joined.chips] == ["esp32c3", "esp32c6", "esp32s3"]
    assert joined.index_digest == join(children[::-1]).index_digest
    together = api.push(
        [plan(tmp_path, chip) for chip in ("esp32s3", "esp32c6", "esp32c3")], f"oci:{tmp_path}/all:1",
        signer=None, release=RELEASE,
    )  # fmt: skip
    assert {chip.config_digest for chip in joined.chips} == {chip.config_digest for chip in together.chips}
    assert {registry.tags["2.1.0"], registry.tags["stable"]} == {joined.index_digest}
    store = api.open_store(where, OPTIONS)
    api.verify(store, joined.index_digest, trusted(OTHER))
    for chip in joined.chips:
        assert api.pull(where, chip.target, tmp_path / "out", keys=trusted(OTHER), options=OPTIONS).chip.release_digest
        assert len(gather(store, chip.manifest_digest)) == 4, "the matrix job's signatures came along"


def test_index_refuses_what_does_not_belong_together(registry: HostileRegistry, tmp_path: Path) -> None:
    host = registry.host
    push([plan(tmp_path)], f"{host}/a:a")
    push([plan(tmp_path), plan(tmp_path, "esp32s3")], f"{host}/b:b")
    push([plan(tmp_path, "esp32s3", version="2.2.0")], f"{host}/c:c")
    push([plan(tmp_path, "esp32s3", name="gate")], f"{host}/d:d")
    before = dict(registry.tags)

    def join(*children: str, keys: list[TrustedKey] | None = None) -> api.Pushed:
        return api.index(children, f"{host}/porch:2.1.0", signer=None, keys=keys, options=OPTIONS)

    assert "esp32c3" in refused(Reason.InputDisagrees, lambda: join(f"{host}/a:a", f"{host}/b:b")).message
    assert "2.1.0, 2.2.0" in refused(Reason.InputDisagrees, lambda: join(f"{host}/a:a", f"{host}/c:c")).message
    assert "gate" in refused(Reason.InputDisagrees, lambda: join(f"{host}/a:a", f"{host}/d:d")).message
    refused(Reason.InputMissing, join)
    refused(Reason.ReferenceNotFound, lambda: join(f"{host}/a:z"))
    refused(Reason.SignatureInvalid, lambda: join(f"{host}/a:a", keys=trusted(OTHER)))
    assert registry.tags == before


# ---- copy ------------------------------------------------------------------------------------------------


def test_copy_round_trip_keeps_digest_and_signatures(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    pushed = push([plan(tmp_path), plan(tmp_path, "esp32s3")], where)
    layout = f"oci:{tmp_path}/carried:2.1.0"
    out = api.copy(where, layout, keys=trusted(), options=OPTIONS)
    assert out.reference.digest == pushed.index_digest
    assert out.signers == ("ci.pub",)
    with HostileRegistry(referrers_api=True, answer_subject=True) as inside:
        there = f"{inside.host}/mirror/porch:2.1.0"
        back = api.copy(layout, there, options=OPTIONS, also_tags=["latest"])
        assert back.reference.digest == pushed.index_digest
        assert set(back.tags) == {"2.1.0", "latest"}
        assert back.sent_bytes > 2 * builds.PAYLOAD
        again = api.copy(where, there, options=OPTIONS)
        assert (again.sent_bytes, again.moved) == (0, {})
        store = api.open_store(there, OPTIONS)
        for digest in (pushed.index_digest, *(chip.manifest_digest for chip in pushed.chips)):
            assert len(gather(store, digest)) == 2
        for blob in ("esp32c3", "esp32s3"):
            api.pull(there, blob, tmp_path / "out", keys=trusted(), options=OPTIONS)


def test_copy_joins_signatures_with_those_that_are_there(registry: HostileRegistry, tmp_path: Path) -> None:
    one = push([plan(tmp_path)], f"oci:{tmp_path}/one:1")
    other = push([plan(tmp_path)], f"oci:{tmp_path}/other:1", OTHER)
    assert one.index_digest == other.index_digest
    for name in ("one", "other"):
        api.copy(f"oci:{tmp_path}/{name}", f"{registry.host}/porch:1", options=OPTIONS)
    store = api.open_store(f"{registry.host}/porch", OPTIONS)
    both = [load_trusted_key(public_pem(key.public_key()), name) for key, name in ((ONE, "one"), (OTHER, "other"))]
    assert api.verify(store, one.index_digest, both, 2).signers == ("one", "other")
    simple = [found for found in gather(store, one.index_digest) if found.simple]
    assert len(simple) == 2


def test_copy_refuses_before_anything_is_copied(registry: HostileRegistry, tmp_path: Path) -> None:
    pushed = push([plan(tmp_path)], f"oci:{tmp_path}/one:1")
    target = f"{registry.host}/porch:1"

    def copy(target: str = target, keys: list[TrustedKey] | None = None) -> api.Copied:
        return api.copy(f"oci:{tmp_path}/one:1", target, keys=keys, options=OPTIONS)

    refused(Reason.SignatureInvalid, lambda: copy(keys=trusted(OTHER)))
    refused(Reason.DigestMismatch, lambda: copy(f"{registry.host}/porch@sha256:{64 * '0'}"))
    for blob in (tmp_path / "one/blobs/sha256").iterdir():
        if blob.stat().st_size > builds.PAYLOAD:
            blob.chmod(0o644)
            blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    refused(Reason.DigestMismatch, copy)
    assert registry.tags == {}
    assert pushed.index_digest not in registry.manifests


def test_a_tag_that_moves_is_told(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:stable"
    old = push([plan(tmp_path)], where)
    assert old.moved == {}
    preview = api.preview([plan(tmp_path, version="2.2.0")], where, release=RELEASE, options=OPTIONS)
    assert preview.moved == {"stable": old.index_digest}
    assert registry.tags["stable"] == old.index_digest
    new = push([plan(tmp_path, version="2.2.0")], where)
    assert new.moved == {"stable": old.index_digest}
    assert new.index_digest == preview.reference.digest
    assert push([plan(tmp_path, version="2.2.0")], where).moved == {}


def test_a_preview_stores_nothing(registry: HostileRegistry, tmp_path: Path) -> None:
    preview = api.preview([plan(tmp_path)], f"{registry.host}/porch:1", release=None, options=OPTIONS)
    assert {seen.method for seen in registry.seen} <= {"HEAD", "GET"}
    assert preview.new_bytes > builds.PAYLOAD
    api.push([plan(tmp_path)], f"{registry.host}/porch:1", signer=None, release=None, options=OPTIONS)
    after = api.preview([plan(tmp_path)], f"{registry.host}/porch:1", release=None, options=OPTIONS)
    assert after.new_bytes == 0
    assert after.total_bytes == preview.total_bytes
    absent = tmp_path / "not-there"
    assert api.preview([plan(tmp_path)], f"oci:{absent}:1", release=None).new_bytes == preview.new_bytes
    assert not absent.exists()


# ---- diff, inspect ---------------------------------------------------------------------------------------


def test_diff_names_every_difference(tmp_path: Path) -> None:
    push([plan(tmp_path), plan(tmp_path, "esp32c6")], f"oci:{tmp_path}/old:1")
    new = [plan(tmp_path, version="2.2.0"), plan(tmp_path, "esp32s3", version="2.2.0")]
    api.push(new, f"oci:{tmp_path}/new:1", signer=None, release=api.Release(RELEASE.key, 22))
    changes = api.diff(f"oci:{tmp_path}/old", f"oci:{tmp_path}/new")
    c3 = {change.path: (change.old, change.new) for change in changes if change.chip == "esp32c3"}
    assert c3["app.version"] == ("2.1.0", "2.2.0")
    assert c3["release.sequence"] == (21, 22)
    assert set(c3) == {
        "app.version", "app.elfSha256", "release.sequence", "images[app@0x20000].digest",
        "measurements[esp-image-16].value", "measurements[esp-image-44].value",
    }  # fmt: skip
    assert {change.kind for change in changes if change.chip == "esp32c6"} == {"removed"}
    assert {change.kind for change in changes if change.chip == "esp32s3"} == {"added"}
    assert api.diff(f"oci:{tmp_path}/old", f"oci:{tmp_path}/old:1") == []


def test_inspect_tells_everything(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    build = plan(tmp_path)
    push([build], where)
    report = api.inspect(where, options=OPTIONS).to_json()
    (chip,) = report["chips"]
    assert (chip["chip"], chip["chipId"], chip["projectName"]) == ("esp32c3", 5, "porch-sensor")
    assert (chip["version"], chip["secureVersion"], chip["release"]["sequence"]) == ("2.1.0", 0, 21)
    measured = {image["role"]: image["measurements"] for image in chip["images"] if image["measurements"]}
    for role in ("app", "bootloader"):
        (file,) = (file for file in build.files if file.role == role)
        assert measured[role] == [
            {"scheme": entry.scheme, "alg": entry.alg, "value": entry.value.hex()} for entry in measure(file.data)
        ]
    assert {(signature["format"], signature["judged"]) for signature in report["signatures"]} == {
        ("simple", False), ("bundle", False),
    }  # fmt: skip
    assert [signature["key"] for signature in report["signatures"] if "key" in signature]
    assert len(chip["signatures"]) == 2
    assert json.loads(json.dumps(report)) == report


def test_rubbish_that_others_attached_stops_neither_inspect_nor_copy(registry: HostileRegistry, tmp_path: Path) -> None:
    where = f"{registry.host}/porch:2.1.0"
    pushed = push([plan(tmp_path)], where)
    tag = pushed.index_digest.replace(":", "-") + ".sig"
    registry.manifests[registry.tags[tag]] = ("application/vnd.oci.image.manifest.v1+json", b'{"layers": 7}')
    with pytest.raises(PipelineError):
        api.open_store(where, OPTIONS).get_manifest(tag)
    assert [s.format for s in api.inspect(where, options=OPTIONS).signatures] == ["bundle"]
    copied = api.copy(where, f"oci:{tmp_path}/copy:1", keys=trusted(), options=OPTIONS)
    assert copied.reference.digest == pushed.index_digest
    assert len(copied.referrers) == 3, "both signatures of the chip, one of the index"
