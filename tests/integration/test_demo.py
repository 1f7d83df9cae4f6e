# SPDX-License-Identifier: Apache-2.0
"""`flashjob demo` as a process: what a stranger runs first. Right outcomes, clear refusals, and nothing left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .processes import of_state_dir, wait_until_none

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SMALL = ("--scenario", "update", "--devices", "4")
MOMENTS = {"bench": "Act 1", "sandbox": "Act 2", "enrolment": "device enroll", "job": "kubectl apply"}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The demo's TMPDIR: a short path, since sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="fjd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def demo(temporary: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "flashjob.cli", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@contextmanager
def running_until(temporary: Path, words: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, as soon as it has said these words; it leads a process group, as at a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flashjob.cli", "demo", *SMALL],
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = next((line for line in process.stdout if words in line), None)
        assert said, f"it ended without saying {words!r}"
        yield process
    finally:
        process.kill()
        process.wait()


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What was found, by scenario and subject; all of it as expected."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"] is True
    assert all(one["expected"] == one["found"] for one in report["outcomes"])
    return {f"{one['scenario']} {one['what']}": one["found"] for one in report["outcomes"]}


def test_update_has_the_outcomes_it_must_have(temporary: Path) -> None:
    done = demo(temporary, "--json", *SMALL)
    found = outcomes(done)
    assert found["bench bench-liar"] == "MeasurementMismatch"
    ends = {name: found[f"update {name}"] for name in ("classic", "porch-s2", "yard-s3", "yard-c3")}
    assert ends == {
        "classic": "Unproven RootOfTrustTooLow",
        "porch-s2": "Succeeded Proven",
        "yard-s3": "Succeeded Proven",
        "yard-c3": "Succeeded Proven",
    }
    assert list(temporary.iterdir()) == []
    assert of_state_dir(temporary) == []


@pytest.mark.slow
def test_all_scenarios_with_real_firmware(temporary: Path, firmware_dir: Path) -> None:
    done = demo(temporary, "--json", "--firmware", str(firmware_dir))
    found = outcomes(done)
    assert "real firmware for esp32c3" in done.stderr
    assert found["update yard-c3"] == found["update porch-c3"] == "Succeeded Proven"
    tasks = {task["device"]: task for job in json.loads(done.stdout)["jobs"] for task in job["devices"]}
    assert tasks["yard-c3"]["application"] == "unnamed"  # as certified, whatever the artifact is called


@pytest.mark.parametrize(
    ("moment", "number", "whole_group"),
    [
        ("job", signal.SIGINT, True),
        ("job", signal.SIGKILL, False),
        pytest.param("bench", signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param("bench", signal.SIGKILL, False, marks=pytest.mark.slow),
        pytest.param("sandbox", signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("sandbox", signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param("enrolment", signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param("enrolment", signal.SIGKILL, False, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_an_interrupted_demo(
    temporary: Path, moment: str, number: signal.Signals, whole_group: bool
) -> None:
    with running_until(temporary, MOMENTS[moment]) as process:
        if whole_group:
            os.killpg(process.pid, number)  # Ctrl-C at a terminal reaches everything in the foreground
        else:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert rest.rstrip().endswith("stopped; nothing is left running")
        assert "Traceback" not in rest
    wait_until_none(temporary, 20)
    deadline = time.monotonic() + 20
    while left := list(temporary.iterdir()):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--scenario", "nonsense"), 1, "UnknownScenario: 'nonsense' is none of update, repurpose, adversary, all"),
        (("--devices", "1"), 2, "'--devices': Input should be greater than or equal to 4"),
        (("--firmware", "/does/not/exist"), 1, "FirmwareNotFound: --firmware /does/not/exist is not a directory"),
        (("--firmware", str(Path(__file__).parent)), 1, "has no application image (*-app.bin)"),
    ],
)
def test_wrong_arguments_get_one_clear_answer(
    temporary: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = demo(temporary, *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(temporary.iterdir()) == []


def test_a_file_that_is_no_firmware_is_named(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "broken-app.bin").write_bytes(b"\xe9 and nothing more")
    done = demo(temporary, "--firmware", str(tmp_path))
    assert done.returncode == 1
    assert f"FirmwareUnusable: {tmp_path / 'broken-app.bin'}: " in done.stderr
    assert "Next: " in done.stderr


def test_a_cache_that_cannot_be_written_is_said(temporary: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    done = demo(temporary, *SMALL, XDG_CACHE_HOME=str(nowhere))
    assert done.returncode == 1
    assert f"CacheNotWritable: compiled programs are kept in {nowhere}/flashjob, which cannot be written" in done.stderr
    assert "Next: set XDG_CACHE_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(temporary.iterdir()) == []
    assert of_state_dir(temporary) == []
