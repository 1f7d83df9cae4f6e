# SPDX-License-Identifier: Apache-2.0
"""`make example-pipeline` as a user runs it: on the real registry, with the real compiler; twice; interrupted."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "flashjob.demo.example_pipeline", str(ROOT / "examples" / "firmware")]
HAS_COMPILER = shutil.which("riscv64-unknown-elf-gcc") is not None


def start(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_from_source_to_proof(tmp_path: Path) -> None:
    """Without the compiler it says what to install, and that is all it does."""
    process = start(tmp_path)
    story, _ = process.communicate()
    if not HAS_COMPILER:
        assert process.returncode == 69, story
        assert "apt-get install gcc-riscv64-unknown-elf" in story
        return
    assert process.returncode == 0, story
    proofs = re.findall(r"^(\w+): (\w+ [\d.]+) runs, (\d+) bytes written\n  measured +([0-9a-f]{128})", story, re.M)
    assert [proof[:3] for proof in proofs] == [
        ("AlreadyRunning", "thermostat 1.0.0", "0"),
        ("Proven", "thermostat 1.1.0", "69632"),
        ("Proven", "doorlock 1.0.0", "69632"),
    ]
    pushed = story[: story.index("From artifacts to proof")]
    assert all(measured in pushed for *_, measured in proofs), "proven is what inspect showed of the pushed artifact"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if "firmware-pipeline push" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())
    if not HAS_COMPILER:
        assert process.wait() == 69, rest
        return
    assert process.wait() == 130, rest
    assert "nothing is left running" in rest
