# SPDX-License-Identifier: Apache-2.0
"""The rules of demo/workplace.py, with the real sweeper."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashjob.demo import workplace
from flashjob.demo.workplace import Workplace
from flashjob.errors import FlashJobError

USER = """
import sys, tempfile
from flashjob.demo.workplace import Workplace
with Workplace() as place:
    tempfile.mkdtemp()
    print(place.directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fjw-", dir="/tmp") as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(path)


def test_rules_1_3_5_private_its_own_temporary_files_and_gone_at_the_end(temporary: Path) -> None:
    with Workplace() as place:
        assert place.directory.stat().st_mode & 0o777 == 0o700
        assert Path(tempfile.mkdtemp()).is_relative_to(place.directory)
        assert Path(os.environ["TMPDIR"]).is_relative_to(place.directory)
    assert list(temporary.iterdir()) == []
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(temporary)


def test_rule_2_a_socket_has_room_wherever_tmpdir_is(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = temporary / ("a-long-name" * 9)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Workplace() as place, socket.socket(socket.AF_UNIX) as line:
        (place.directory / "fleet").mkdir()
        line.bind(str(place.directory / "fleet" / "control"))
    assert not place.directory.exists()


def test_rule_3_of_a_failure_the_logs_are_left(temporary: Path) -> None:
    with Workplace() as place:
        for name, text in {"keys/signer.key": "secret", "a/b/run.log": "why", "a/empty.log": "", "c/d/x": ""}.items():
            (place.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (place.directory / name).write_text(text)
        (place.directory / "link.log").symlink_to("/etc/hostname")
        (place.directory / "dir").symlink_to("/etc")
        assert place.keep_logs() == place.directory
    assert [str(path.relative_to(place.directory)) for path in place.directory.rglob("*")] == [
        "a",
        "a/b",
        "a/b/run.log",
    ]
    assert Path("/etc").exists()


def test_rule_3_no_logs_nothing_left(temporary: Path) -> None:
    with Workplace() as place:
        (place.directory / "key").write_text("secret")
        assert place.keep_logs() is None
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_rule_4_nothing_is_left_of_a_killed_demo(temporary: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", USER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert directory.parent == temporary
        process.send_signal(number)
    deadline = time.monotonic() + 15
    while directory.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_disk_is_said(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(FlashJobError) as caught:
        Workplace()
    assert caught.value.reason == "DiskTooSmall"
    assert "TMPDIR" in caught.value.next_step
    assert list(temporary.iterdir()) == []
