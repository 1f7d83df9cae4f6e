# SPDX-License-Identifier: Apache-2.0
"""The same inputs give the same index digest, wherever, whenever and by whomever they are packed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.unit.firmware import builds

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    builds.write_espidf(folder)
    (folder / "c3").mkdir()
    builds.write_parts(folder / "c3")
    return folder


PROGRAM = """
import os, sys
import firmware_pipeline.cli.pack
user = int(sys.argv.pop(1))
if user:
    os.setuid(user)  # only now: another user may not reach the interpreter's own files
firmware_pipeline.cli.app(sys.argv[1:])
"""


def pack(folder: Path, out: Path, *, umask: int = 0o022, user: int = 0, **environment: str) -> str:
    """Index digest, as a process of its own packs it; `user` 0 = whoever runs the tests."""
    offsets = {"app.bin": "0x20000", "bootloader.bin": "0x0", "otadata.bin": "0xd000", "table.bin": "0x8000"}
    parts = [f"esp32c3:{offset}=c3/{name}" for name, offset in offsets.items()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(user), "pack", ".", *parts, "-o", str(out), "--quiet"],
        cwd=folder,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("@")[2]


def test_packed_elsewhere_at_another_time_by_another_user(source: Path, tmp_path: Path) -> None:
    first = pack(source, tmp_path / "first", TZ="UTC", PYTHONHASHSEED="1", LC_ALL="C")
    elsewhere = tmp_path / "another place"
    shutil.copytree(source, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (86_400, 86_400))
        path.chmod(0o777)
    second = pack(
        elsewhere, tmp_path / "second", umask=0o077,
        TZ="Pacific/Kiritimati", PYTHONHASHSEED="2", LC_ALL="tr_TR.UTF-8", HOME="/nonexistent", USER="somebody",
    )  # fmt: skip
    assert second == first
    blobs = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "blobs/sha256").iterdir()}
        for name in ("first", "second")
    ]
    assert blobs[0] == blobs[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can pack as another user")
def test_packed_by_nobody(source: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # a test's own folder is closed to others
        place = Path(name)
        place.chmod(0o777)
        shutil.copytree(source, place / "source")
        assert pack(place / "source", place / "out", user=NOBODY) == pack(source, tmp_path / "root")
        assert (place / "out/index.json").stat().st_uid == NOBODY


def test_a_time_is_there_only_when_it_is_given(source: Path, tmp_path: Path) -> None:
    plain = pack(source, tmp_path / "plain")
    first, second, later = (
        pack(source, tmp_path / str(number), SOURCE_DATE_EPOCH=epoch, TZ=zone)
        for number, (epoch, zone) in enumerate(
            (("1700000000", "UTC"), ("1700000000", "Asia/Tokyo"), ("1700000001", "UTC"))
        )
    )
    assert first == second
    assert len({plain, first, later}) == 3
