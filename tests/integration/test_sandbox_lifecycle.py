# SPDX-License-Identifier: Apache-2.0
"""A sandbox ends as a whole, however it is ended, pods included; a new one takes over its state."""

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

from flashjob.errors import FlashJobError
from flashjob.sandbox.main import ENTRY_POINT, Sandbox

from .conftest import POD_PROGRAM
from .processes import of_state_dir, wait_until_none

pytestmark = pytest.mark.integration
ROOT = str(Path(__file__).parents[2])
STARTER = """
import json, os, sys, time
from pathlib import Path
from flashjob.sandbox.main import Sandbox
state = Path(sys.argv[1])
pod = json.loads(sys.argv[2])
with Sandbox.up(state, os.environ, entry_points=[pod["spec"]["containers"][0]["command"][2]]) as sandbox:
    path = "/api/v1/namespaces/default/pods"
    sandbox.plane.request("POST", path, pod)
    while sandbox.plane.request("GET", f"{path}/{pod['metadata']['name']}")["status"]["phase"] != "Running":
        time.sleep(0.05)
    (state / "ready").touch()
    while True:
        time.sleep(1)
"""
STUBBORN: dict[str, Any] = {
    "metadata": {"name": "stubborn"},
    "spec": {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [
            {"name": "main", "image": "none", "command": ["python", "-m", POD_PROGRAM], "args": ["stubborn"]}
        ],
    },
}


@contextmanager
def running_starter(state_dir: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(state_dir), json.dumps(STUBBORN)],
        env={**os.environ, "PYTHONPATH": ROOT, **environ},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (state_dir / "ready").exists():
            assert starter.poll() is None, "the starter ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert any(POD_PROGRAM in line for line in of_state_dir(state_dir))
        yield starter
    finally:
        starter.kill()
        starter.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_however_it_ends(control_plane_binary: Path, tmp_path: Path, number: signal.Signals) -> None:
    state_dir = tmp_path / ("a-long-name" * 8)  # no room for a socket's path: its directory is a temporary one
    temporary = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
    try:
        with running_starter(state_dir, TMPDIR=str(temporary)) as starter:
            assert len(list(temporary.iterdir())) == 1
            starter.send_signal(number)
            starter.wait(30)
            wait_until_none(state_dir)
            assert list(temporary.iterdir()) == []
    finally:
        shutil.rmtree(temporary)


def test_one_sandbox_per_state_directory_and_a_new_one_takes_over(control_plane_binary: Path, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    with running_starter(state_dir) as starter:
        with pytest.raises(FlashJobError) as caught:
            Sandbox.up(state_dir, os.environ)
        assert caught.value.reason == "StateInUse"
        starter.kill()
        starter.wait()
        wait_until_none(state_dir)
    with Sandbox.up(state_dir, os.environ, entry_points=[ENTRY_POINT, POD_PROGRAM]) as sandbox:
        deadline = time.monotonic() + 20
        path = "/api/v1/namespaces/default/pods/stubborn"
        while (pod := sandbox.plane.request("GET", path))["status"]["phase"] != "Failed":
            assert time.monotonic() < deadline, pod["status"]
            time.sleep(0.05)
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (state["exitCode"], state["reason"]) == (137, "ContainerStatusUnknown")
        sandbox.plane.request("DELETE", path)
        while sandbox.plane.request("GET", "/api/v1/namespaces/default/pods")["items"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert of_state_dir(state_dir) == []


def test_an_agent_that_dies_is_noticed(sandbox: Sandbox) -> None:
    program = sandbox.spawn("short-lived", [sys.executable, "-c", "raise SystemExit('out of luck')"])
    try:
        program.wait(20)
        with pytest.raises(FlashJobError) as caught:
            sandbox.require_running()
        assert caught.value.reason == "ProgramEnded"
        assert "out of luck" in caught.value.message
    finally:
        sandbox.forget(program)
