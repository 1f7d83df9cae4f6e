# SPDX-License-Identifier: Apache-2.0
"""Archives: whole, reproducible, and refused when anything in them is not exactly what a layout holds."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_pipeline import api
from firmware_pipeline.archive import Chosen, Limits, export, load
from firmware_pipeline.cache import BlobCache
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.store import ArtifactStore
from firmware_pipeline.tool_files import write_esp_web_tools, write_flash_args
from tests.unit.firmware.artifacts import CHIPS, PLAIN, TRUSTED, push_to
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(an archive of one signed artifact, its index digest)"""
    folder = tmp_path_factory.mktemp("archive")
    pushed = push_to(f"oci:{folder}/layout:2.1.0")
    export([Chosen(LayoutStore(folder / "layout"), pushed.index_digest, "2.1.0")], folder / "site.tar")
    return folder / "site.tar", pushed.index_digest


@pytest.fixture
def archive(made: tuple[Path, str]) -> Path:
    return made[0]


def whole(store: ArtifactStore, digest: str) -> None:
    """Everything of it is there, signatures included."""
    assert api.verify(store, digest, TRUSTED).signers == ("ci",)
    for name in CHIPS:
        chip = api.open_chip(store, digest, name)
        assert chip.release_statement
        for layer in chip.layers:
            api.read_layer(store, layer)


def test_rule_1_to_a_layout_a_cache_and_a_registry(tmp_path: Path, made: tuple[Path, str]) -> None:
    source, digest = made
    layout = LayoutStore(tmp_path / "layout", create=True)
    cache = LayoutStore(BlobCache(tmp_path / "cache").root)
    with HostileRegistry() as registry:
        remote = api.open_store(f"{registry.host}/porch:x", PLAIN, push=True)
        for target in (layout, cache, remote):
            found = load(source, target)
            assert [(one.digest, one.tag) for one in found] == [(digest, "2.1.0")]
            assert target.resolve("2.1.0") == digest
            whole(target, digest)


def test_rule_1_the_same_artifact_gives_the_same_bytes(tmp_path: Path, made: tuple[Path, str]) -> None:
    source, digest = made
    load(source, LayoutStore(tmp_path / "layout", create=True))
    previous = os.umask(0o077)
    try:
        export([Chosen(LayoutStore(tmp_path / "layout"), digest, "2.1.0")], tmp_path / "again.tar")
    finally:
        os.umask(previous)
    assert (tmp_path / "again.tar").read_bytes() == source.read_bytes()
    with tarfile.open(source) as members:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.tar", "layout"]


def test_two_artifacts_with_one_tag_need_two_archives(tmp_path: Path, made: tuple[Path, str]) -> None:
    store = LayoutStore(tmp_path / "layout", create=True)
    load(made[0], store)
    chosen = [Chosen(store, made[1], "1"), Chosen(store, "sha256:" + "0" * 64, "1")]
    refused(Reason.ReferenceMalformed, lambda: export(chosen, tmp_path / "x.tar"))
    assert not (tmp_path / "x.tar").exists()


# ---- rule 2: strict --------------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(archive: Path) -> Members:
    with tarfile.open(archive) as source:
        return [(m, stream.read() if (stream := source.extractfile(m)) else b"") for m in source]


def write(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as target:  # type: ignore[call-overload]
        for member, data in members:
            target.addfile(member, io.BytesIO(data))
    return path


def named(
    name: str, data: bytes = b"evil", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return member, data


def added(*more: tuple[tarfile.TarInfo, bytes]) -> Callable[[Members], Members]:
    return lambda members: [*members, *more]


def without(part: str) -> Callable[[Members], Members]:
    return lambda members: [one for one in members if part not in one[0].name]


def changed(part: str, change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    def apply(members: Members) -> Members:
        index = next(i for i, (m, data) in enumerate(members) if part in m.name and data)
        member, data = members[index]
        return [*members[:index], named(member.name, change(data)), *members[index + 1 :]]

    return apply


def renamed_tag(data: bytes) -> bytes:
    index = json.loads(data)
    for entry in index["manifests"]:
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == "2.1.0":
            entry["annotations"]["org.opencontainers.image.ref.name"] = "../../evil"
    return json.dumps(index).encode()


HEX = "blobs/sha256/" + digest_of(b"evil")[7:]
ZOO: dict[str, tuple[Callable[[Members], Members], Reason]] = {
    "a path that climbs": (added(named("../evil")), Reason.ArtifactMalformed),
    "an absolute path": (added(named("/etc/evil")), Reason.ArtifactMalformed),
    "a path inside that climbs": (added(named("blobs/sha256/../../../evil")), Reason.ArtifactMalformed),
    "a symlink": (added(named(HEX, kind=tarfile.SYMTYPE, link="/etc/passwd")), Reason.ArtifactMalformed),
    "a symlink for a folder": (added(named("blobs", kind=tarfile.SYMTYPE, link="/etc")), Reason.ArtifactMalformed),
    "a hard link": (added(named(HEX, kind=tarfile.LNKTYPE, link="/etc/passwd")), Reason.ArtifactMalformed),
    "a device": (added(named(HEX, kind=tarfile.CHRTYPE)), Reason.ArtifactMalformed),
    "a fifo": (added(named(HEX, kind=tarfile.FIFOTYPE)), Reason.ArtifactMalformed),
    "another folder": (added(named("elsewhere", kind=tarfile.DIRTYPE)), Reason.ArtifactMalformed),
    "another file": (added(named("README")), Reason.ArtifactMalformed),
    "another algorithm": (added(named("blobs/sha512/" + "0" * 128)), Reason.ArtifactMalformed),
    "a name in capitals": (added(named(HEX.upper())), Reason.ArtifactMalformed),
    "the same file twice": (added(named(HEX), named(HEX)), Reason.ArtifactMalformed),
    "a blob of another digest": (added(named("blobs/sha256/" + "0" * 64)), Reason.DigestMismatch),
    "a flipped bit": (changed("blobs/sha256/", lambda d: bytes([d[0] ^ 1]) + d[1:]), Reason.DigestMismatch),
    "a blob cut short": (changed("blobs/sha256/", lambda d: d[:-1]), Reason.DigestMismatch),
    "no index": (without("index.json"), Reason.ArtifactMalformed),
    "no layout file": (without("oci-layout"), Reason.ArtifactMalformed),
    "no blobs": (without("blobs"), Reason.ReferenceNotFound),
    "an index that is no JSON": (changed("index.json", lambda _: b"{"), Reason.ArtifactMalformed),
    "an index that names nothing": (
        changed("index.json", lambda _: b'{"schemaVersion":2,"manifests":[]}'),
        Reason.ArtifactMalformed,
    ),
    "an index that is too large": (changed("index.json", lambda d: d + b" " * (5 * 2**20)), Reason.ArtifactMalformed),
    "a layout of another version": (
        changed("oci-layout", lambda _: b'{"imageLayoutVersion":"9"}'),
        Reason.MediaTypeUnsupported,
    ),
    "a tag that is a path": (changed("index.json", renamed_tag), Reason.ReferenceMalformed),
}


@pytest.mark.parametrize("name", ZOO)
def test_rule_2_the_zoo(tmp_path: Path, archive: Path, name: str) -> None:
    change, reason = ZOO[name]
    bad = write(tmp_path / "bad.tar", change(members_of(archive)))
    target = LayoutStore(tmp_path / "target", create=True)
    refused(reason, lambda: load(bad, target))
    assert target.tags().get("2.1.0") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "target"]


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_rule_2_compression_is_refused(tmp_path: Path, archive: Path, mode: str) -> None:
    bad = write(tmp_path / "bad.tar", members_of(archive), mode)
    refused(Reason.ArtifactMalformed, lambda: load(bad, LayoutStore(tmp_path / "t", create=True)))


@pytest.mark.parametrize("limits", [Limits(files=3), Limits(blob_bytes=1000), Limits(total_bytes=10_000)])
def test_rule_2_limits(tmp_path: Path, archive: Path, limits: Limits) -> None:
    target = LayoutStore(tmp_path / "t", create=True)
    refused(Reason.TooLarge, lambda: load(archive, target, limits=limits))
    assert target.tags() == {}


def test_rule_2_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**33 - 1
    (tmp_path / "bad.tar").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    refused(Reason.ArtifactMalformed, lambda: load(tmp_path / "bad.tar", LayoutStore(tmp_path / "t", create=True)))


def test_a_missing_layer_moves_no_tag(tmp_path: Path, made: tuple[Path, str]) -> None:
    store = LayoutStore(tmp_path / "source", create=True)
    load(made[0], store)
    layer = api.open_chip(store, made[1], CHIPS[1]).app.descriptor.digest
    (tmp_path / "source" / "blobs" / "sha256" / layer[7:]).unlink()
    target = LayoutStore(tmp_path / "target", create=True)
    refused(Reason.ReferenceNotFound, lambda: load(tmp_path / "source", target))
    assert "2.1.0" not in target.tags()


def test_foreign_archives_with_dots_and_folders_are_read(tmp_path: Path, archive: Path) -> None:
    members = [named(f"./{m.name}", data) for m, data in members_of(archive) if not m.isdir()]
    folders = [named(name, b"", tarfile.DIRTYPE) for name in (".", "./blobs", "./blobs/sha256")]
    source = write(tmp_path / "foreign.tar", [*folders, *members])
    assert load(source, LayoutStore(tmp_path / "t", create=True))[0].tag == "2.1.0"


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_garbage_is_refused_in_our_words(
    made: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(made[0].read_bytes()[:8192])
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("garbage")
    (folder / "x.tar").write_bytes(raw)
    with pytest.raises(PipelineError):
        load(folder / "x.tar", LayoutStore(folder / "t", create=True))


# ---- other tools' files ----------------------------------------------------------------------------------


def test_files_for_other_tools(tmp_path: Path, made: tuple[Path, str]) -> None:
    store = LayoutStore(tmp_path / "layout", create=True)
    load(made[0], store)
    manifest = json.loads(write_esp_web_tools(store, made[1], tmp_path / "web").read_bytes())
    assert (manifest["name"], manifest["version"]) == ("porch-sensor", "2.1.0")
    assert {build["chipFamily"] for build in manifest["builds"]} == {"ESP32-S3", "ESP32-C3"}
    paths = write_flash_args(store, made[1], tmp_path / "args")
    assert [path.parent.name for path in paths] == sorted(CHIPS)
    for build, path in zip(manifest["builds"], paths, strict=True):
        lines = path.read_text().splitlines()
        assert lines[0] == "--flash-mode keep --flash-freq keep --flash-size keep"
        assert [int(line.split()[0], 0) for line in lines[1:]] == [part["offset"] for part in build["parts"]]
        for line, part in zip(lines[1:], build["parts"], strict=True):
            assert (path.parent / line.split()[1]).read_bytes() == (tmp_path / "web" / part["path"]).read_bytes()
