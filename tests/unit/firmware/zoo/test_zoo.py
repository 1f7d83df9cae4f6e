# SPDX-License-Identifier: Apache-2.0
"""The zoo: every bad build is refused for its own reason; nothing of it is stored and the tag stays where it was."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from firmware_pipeline import api
from firmware_pipeline.cli import app
from firmware_pipeline.errors import Reason
from firmware_pipeline.exit_codes import exit_code
from firmware_pipeline.inputs.build_list import load_builds
from firmware_pipeline.inputs.claims import Overrides
from firmware_pipeline.layout import LayoutStore
from firmware_pipeline.signing.keys import LocalSigner
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused
from tests.unit.firmware.zoo.specimens import SPECIMENS, Specimen, Wish

SIGNER = LocalSigner(ec.derive_private_key(7, ec.SECP256R1()))
BY_HAND = [SPECIMENS[0].name, "folder_of_two_build_systems", "two_builds_for_one_chip", "mcuboot_image_for_other_ram"]


def content(folder: Path) -> dict[str, str]:
    """Every file below, by its hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout that holds a good artifact under the tag."""
    folder = tmp_path_factory.mktemp("good")
    plans = [builds.plan(folder, "esp32c3")]
    api.push(plans, f"oci:{folder}/layout:2.1.0", signer=SIGNER, release=None)
    return folder / "layout"


def store(wish: Wish, layout: Path) -> object:
    """What a push does: read the builds, then store them."""
    plans = load_builds(wish.inputs, kind=wish.kind, overrides=Overrides(features=wish.features))
    return api.push(plans, f"oci:{layout}:2.1.0", signer=SIGNER, release=None)


@pytest.mark.parametrize("specimen", SPECIMENS, ids=[specimen.name for specimen in SPECIMENS])
def test_refused_and_nothing_stored(specimen: Specimen, tmp_path: Path, layout: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    wish = specimen.make(folder)
    tags, before = LayoutStore(layout).tags(), content(layout)
    error = refused(specimen.reason, lambda: store(wish, layout))
    assert len(error.message) > 20
    assert LayoutStore(layout).tags() == tags
    assert content(layout) == before


@pytest.mark.parametrize("specimen", [s for s in SPECIMENS if s.name in BY_HAND], ids=lambda s: s.name)
def test_the_command_says_it_and_leaves_nothing(specimen: Specimen, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    wish = specimen.make(folder)
    command = [
        "pack",
        *wish.inputs,
        "-o",
        str(tmp_path / "out"),
        "--tag",
        "1",
        "--digest-file",
        str(tmp_path / "digest"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == exit_code(specimen.reason), result.output
    assert specimen.reason.value in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "digest").exists()
    assert not (tmp_path / "out").exists()


def test_the_zoo_is_large_and_no_name_stands_twice() -> None:
    names = [specimen.name for specimen in SPECIMENS]
    assert len(names) == len(set(names)) >= 80
    assert len({specimen.reason for specimen in SPECIMENS}) >= 25
    assert {Reason.InputAmbiguous, Reason.ImageHashMissing, Reason.FeatureMalformed} <= {s.reason for s in SPECIMENS}
