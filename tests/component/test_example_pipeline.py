# SPDX-License-Identifier: Apache-2.0
"""The example firmware: built from C, and only a device that really runs it proves it."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from firmware_pipeline.esp.appdesc import parse_app_descriptor
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.inputs.detect import load_build
from flashjob.demo import example_pipeline
from flashjob.demo.example_pipeline import Shop, Unproven, compile_firmware, play
from flashjob.virtual.adversaries import make_behaviour

SOURCES = Path(__file__).parents[2] / "examples" / "firmware"
COMPILER = "riscv64-unknown-elf-gcc"
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed: apt-get install gcc-riscv64-unknown-elf"
)


def build(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": path}
    return subprocess.run(
        [sys.executable, str(SOURCES / "build.py"), *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def test_without_the_compiler_the_build_says_what_to_install(tmp_path: Path) -> None:
    done = build("thermostat", "1.0.0", str(tmp_path / "out"), path=str(tmp_path))
    assert done.returncode == example_pipeline.UNAVAILABLE
    assert "apt-get install gcc-riscv64-unknown-elf" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [("toaster", "1.0.0"), ("thermostat", "1.0"), ("thermostat", "1.0.0", "--secure-version", "17")]
)
def test_wrong_usage_builds_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = build(*arguments[:2], str(tmp_path / "out"), *arguments[2:])
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_the_build_is_a_true_one_and_the_same_anywhere(tmp_path: Path) -> None:
    for folder in ("here", "there/deep"):
        assert build("doorlock", "1.0.0", str(tmp_path / folder), "--secure-version", "3").returncode == 0
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "there" / "deep").iterdir())
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / "deep" / name).read_bytes(), name
    image = (tmp_path / "here" / "doorlock.bin").read_bytes()
    info, app = parse_image(image), parse_app_descriptor(image)
    assert (app.project_name, app.version, app.secure_version) == ("doorlock", "1.0.0", 3)
    assert app.elf_sha256.hex() == sha256(tmp_path / "here" / "doorlock.elf")
    assert info.fills_pages
    assert (info.min_rev, info.max_rev) == (3, 199)
    plan = load_build(tmp_path / "here")
    assert plan.app.project_name == "doorlock"


@needs_compiler
def test_two_versions_and_two_applications_are_three_images(tmp_path: Path) -> None:
    made = [
        compile_firmware(SOURCES, name, version, tmp_path / f"{name}{version}")
        for name, version in (("thermostat", "1.0.0"), ("thermostat", "1.1.0"), ("doorlock", "1.0.0"))
    ]
    assert len({value for each in made for value in each.measurements}) == 6
    assert len({(each.folder / "bootloader.bin").read_bytes() for each in made}) == 1


@needs_compiler
async def test_a_device_that_runs_the_old_image_proves_nothing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    shop = Shop(f"oci:{tmp_path}/layout", tmp_path, os.environ, console)
    with pytest.raises(Unproven, match=r"thermostat 1\.1\.0: MeasurementMismatch"):
        await play(SOURCES, tmp_path, shop, console, make_behaviour("RunsOldImage"))


def sha256(path: Path) -> str:

    return hashlib.sha256(path.read_bytes()).hexdigest()
