# SPDX-License-Identifier: Apache-2.0
"""Platform features: the most specific build that a device can run is taken, a tie is refused, a lack is seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from firmware_pipeline import api, artifact
from firmware_pipeline.artifact import chip_entry, find_chip, pack_chip, pack_index, read_index
from firmware_pipeline.cli import app
from firmware_pipeline.config import FirmwareConfig
from firmware_pipeline.errors import Reason
from firmware_pipeline.features import best, facts_of, has, normalise_features
from firmware_pipeline.hardware import HardwareFacts
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.oci import Index, to_json
from firmware_pipeline.plan import BuildPlan
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused

MB = 1 << 20
RICH = HardwareFacts(flash_size=16 * MB, psram_size=8 * MB, psram_mode="octal", secure_boot=True)
POOR = HardwareFacts(flash_size=4 * MB, psram_size=0, secure_boot=False)
BARE = HardwareFacts()
ALL = ("flash>=8M", "psram-octal", "psram>=8M", "secure-boot-v2")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> BuildPlan:
    return builds.plan(tmp_path_factory.mktemp("build"), "esp32s3")


def index(plain: BuildPlan, *features: tuple[str, ...]) -> Index:
    plans = [plain.model_copy(update={"features": each}) for each in features]
    return read_index(pack_index(plans, [pack_chip(plan) for plan in plans]), "sha256:0")


def chosen(found: Index, facts: HardwareFacts | None) -> tuple[str, ...]:
    platform = find_chip(found, "esp32-s3", facts).platform
    return tuple(platform.os_features) if platform else ()


def test_features_of_devices() -> None:
    assert [has(feature, RICH) for feature in ALL] == [True] * 4
    assert [has(feature, POOR) for feature in ALL] == [False] * 4
    assert [has(feature, BARE) for feature in ALL] == [None] * 4
    assert (has("psram-quad", RICH), has("psram>=16M", RICH), has("flash>=16M", RICH)) == (False, False, True)


@pytest.mark.parametrize(
    ("offered", "facts", "expected"),
    [
        ([(), ALL], RICH, ALL),
        ([(), ALL], POOR, ()),
        ([(), ALL], None, ()),
        ([ALL], None, ALL),
        ([("flash>=4M",), ("flash>=8M",)], RICH, ("flash>=8M",)),
        ([("flash>=4M",), ("flash>=8M",)], POOR, ("flash>=4M",)),
        ([("flash>=8M",), ("flash>=8M", "psram-octal"), ()], RICH, ("flash>=8M", "psram-octal")),
        ([("psram-octal",), ("psram-quad",)], RICH, ("psram-octal",)),
    ],
)
def test_the_most_specific_build_that_fits_is_taken(
    plain: BuildPlan, offered: list[tuple[str, ...]], facts: HardwareFacts | None, expected: tuple[str, ...]
) -> None:
    assert chosen(index(plain, *offered), facts) == expected


def test_ties_and_builds_that_do_not_fit(plain: BuildPlan) -> None:
    tie = index(plain, ("flash>=8M",), ("psram-octal",))
    refused(Reason.PlatformAmbiguous, lambda: find_chip(tie, "esp32s3", RICH))
    refused(Reason.PlatformMissing, lambda: find_chip(tie, "esp32s3", POOR))
    refused(Reason.PlatformMissing, lambda: find_chip(tie, "esp32s3"))
    refused(Reason.PlatformMissing, lambda: find_chip(tie, "esp32c3", RICH))


def test_one_platform_twice_is_refused(plain: BuildPlan) -> None:
    refused(Reason.InputDisagrees, lambda: index(plain, ALL, ALL))
    two = index(plain, (), ALL)
    twice = two.model_copy(update={"manifests": [two.manifests[0]] * 2})
    refused(Reason.ArtifactMalformed, lambda: read_index(to_json(twice), "sha256:0"))


def test_titles_of_several_builds_do_not_collide(plain: BuildPlan) -> None:
    packed = [pack_chip(plain.model_copy(update={"features": each})) for each in ((), ("flash>=8M",), ALL)]
    titles = [title for chip in packed for title, _ in chip.blobs if "config.json" not in title]
    assert len(titles) == len(set(titles))


def test_an_artifact_with_features_goes_and_comes(tmp_path: Path) -> None:
    parts = builds.write_parts(tmp_path, "esp32s3")
    plans = [load_files(parts), load_files(parts, overrides=Overrides(features=("psram>=8M", "flash>=4M")))]
    pushed = api.push(plans, f"oci:{tmp_path}/layout:1", signer=None, release=None)
    store = LayoutStore(tmp_path / "layout")
    found = api.open_index(store, pushed.index_digest)
    entry = find_chip(found, "esp32s3", RICH)
    chip = api.open_manifest(store, entry.digest, "esp32s3")
    assert chip.config.features == ("flash>=4M", "psram>=8M")
    artifact.check_entry(entry, chip.config)


@pytest.mark.parametrize(
    "change",
    [
        {"platform": {"os_features": []}},
        {"platform": {"os": "zephyr"}},
        {"annotations": {"dev.flashjob.secure-version": "9"}},
        {"annotations": {"dev.flashjob.something": "else"}},
    ],
)
def test_rule_4_an_entry_that_says_another_platform(plain: BuildPlan, change: dict[str, Any]) -> None:
    packed = pack_chip(plain.model_copy(update={"features": ALL}))
    entry = chip_entry(packed.config, packed.manifest)
    assert entry.platform is not None
    update = dict(change)
    if "platform" in update:
        update["platform"] = entry.platform.model_copy(update=update["platform"])
    wrong = entry.model_copy(update=update)
    refused(Reason.ArtifactMalformed, lambda: artifact.check_entry(wrong, packed.config))


@pytest.mark.parametrize(
    "bad", ["psram", "psram>=8", "psram>=0M", "psram>=08M", "psram>=1025M", "gpu", "flash>=8M\n", ""]
)
def test_unknown_features(bad: str) -> None:
    refused(Reason.FeatureMalformed, lambda: normalise_features([bad]))


def test_features_have_one_order() -> None:
    assert normalise_features(["psram>=8M", "flash>=8M", "psram>=8M"]) == ("flash>=8M", "psram>=8M")
    refused(Reason.FeatureMalformed, lambda: normalise_features(f"flash>={n}M" for n in range(1, 10)))


FEATURES = st.sampled_from([*ALL, "flash>=4M", "flash>=16M", "psram>=2M", "psram-quad"])
FACTS = st.builds(
    HardwareFacts,
    flash_size=st.sampled_from([None, 4 * MB, 8 * MB, 16 * MB]),
    psram_size=st.sampled_from([None, 0, 2 * MB, 8 * MB]),
    psram_mode=st.sampled_from([None, "octal", "quad"]),
    secure_boot=st.sampled_from([None, False, True]),
)


@given(st.lists(st.frozensets(FEATURES, max_size=4), min_size=1, max_size=5, unique=True), FACTS)
def test_nothing_that_does_not_fit_is_ever_taken(offered: list[frozenset[str]], facts: HardwareFacts) -> None:
    sets = [sorted(each) for each in offered]
    found = best(sets, facts)
    assert all(has(feature, facts) for n in found for feature in sets[n])
    assert bool(found) == any(all(has(feature, facts) for feature in each) for each in sets)
    assert found == sorted(found)


def test_config_features_are_strict(plain: BuildPlan) -> None:
    config = artifact.pack_chip(plain).config
    assert FirmwareConfig.model_validate(config.model_dump() | {"features": ("flash>=8M",)}).features == ("flash>=8M",)
    with pytest.raises(ValueError, match="sorted"):
        FirmwareConfig.model_validate(config.model_dump() | {"features": ("psram-octal", "flash>=8M")})


@given(st.sets(st.sampled_from(["psram-octal", "psram>=2M", "psram>=8M", "flash>=4M", "flash>=16M", "secure-boot-v2"])))
def test_a_device_has_the_features_that_it_is_said_to_have(features: set[str]) -> None:
    facts = facts_of(features)
    assert all(has(feature, facts) for feature in features)
    assert not has("psram-quad", facts)
    assert not has("flash>=32M", facts)


@pytest.mark.parametrize("bad", [["psram-octal", "psram-quad"], ["psram>=0M"], ["usb"]])
def test_a_device_that_cannot_be(bad: list[str]) -> None:
    refused(Reason.FeatureMalformed, lambda: facts_of(bad))


@pytest.mark.parametrize(
    ("given_", "taken"),
    [((), ()), (("psram>=2M",), ()), (("psram>=16M",), ("psram>=8M",)), (("psram>=8M", "flash>=16M"), ("psram>=8M",))],
)
def test_pull_takes_the_build_that_fits_what_the_device_has(
    tmp_path: Path, plain: BuildPlan, given_: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    where = f"oci:{tmp_path}/layout:1"
    plans = [plain, plain.model_copy(update={"features": ("psram>=8M",)})]
    api.push(plans, where, signer=None, release=None)
    options = [word for feature in given_ for word in ("--platform-feature", feature)]
    words = ["pull", where, "--chip", plain.target, "-o", str(tmp_path / "out"), "--unverified", "--json", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert tuple(json.loads(done.stdout)["config"].get("features", ())) == taken


def test_pull_names_the_builds_where_none_fits(tmp_path: Path, plain: BuildPlan) -> None:
    where = f"oci:{tmp_path}/layout:1"
    plans = [plain.model_copy(update={"features": (feature,)}) for feature in ("psram-octal", "psram-quad")]
    api.push(plans, where, signer=None, release=None)
    done = CliRunner().invoke(app, ["pull", where, "--chip", plain.target, "-o", str(tmp_path / "out"), "--unverified"])
    assert done.exit_code != 0
    assert "psram-octal; psram-quad" in done.output
    assert "--platform-feature" in done.output
    assert not (tmp_path / "out").exists()
