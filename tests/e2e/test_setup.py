# SPDX-License-Identifier: Apache-2.0
"""`./demo` and `make` on machines that lack something: one clear line and exit code 2, before anything is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the set-up needs of a clone."""
    place = tmp_path / "clone"
    for name in ("scripts/setup.sh", "demo", "requirements/dev.txt", "pyproject.toml", "README.md"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    return place


def program(place: Path, name: str, text: str) -> Path:
    """A stand-in for one of the machine's programs."""
    path = place / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def start(tree: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "./demo"], cwd=tree, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )


OLD = 'case "$*" in *version_info*) exit 1;; -V) echo Python 3.9.2;; esac'
NO_VENV = 'case "$*" in *ensurepip*) exit 1;; esac'


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, "FlashJob needs Python 3.11 or newer: apt-get install python3 python3-venv"),
        (OLD, "is Python 3.9.2: set PYTHON to a newer one"),
        (NO_VENV, "FlashJob needs Python's venv module: apt-get install python3-venv"),
    ],
)
def test_what_python_lacks(tree: Path, tmp_path: Path, python: str | None, words: str) -> None:
    path = program(tmp_path, "python", python) if python else tmp_path / "none"
    done = start(tree, PYTHON=str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tree / ".venv").exists()


def test_a_small_disk(tree: Path, tmp_path: Path) -> None:
    fake = program(tmp_path / "bin", "df", 'printf "header\\nx 100 70 30 70% /\\n"').parent
    done = start(tree, PATH=f"{fake}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "30 MB are free" in done.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_tree_of_somebody_else(tree: Path) -> None:
    tree.chmod(0o555)
    done = start(tree)
    tree.chmod(0o755)
    assert done.returncode == 2
    assert "clone it into a directory of yours" in done.stderr


def test_no_package_index(tree: Path) -> None:
    done = start(tree, PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="")
    assert done.returncode == 2
    assert "check the network, PIP_INDEX_URL or the disk" in done.stderr.splitlines()[-1]
    assert not (tree / ".venv" / ".flashjob-stamp").exists()
