# SPDX-License-Identifier: Apache-2.0
"""`flashjob virtual` as a process, and what `flashjob sandbox up` tells people."""

from __future__ import annotations

import json
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flashjob.cli.main import run
from flashjob.cli.sandbox import _login, default_state, instructions
from flashjob.demo.materials import Materials


def test_virtual_devices_run_until_they_are_told_to_stop(tmp_path: Path) -> None:
    spec = tmp_path / "fleet.json"
    devices = [{"name": "one"}, {"name": "two", "chip": "esp32c3", "transport": "network"}]
    spec.write_text(json.dumps({"directory": str(tmp_path), "devices": devices}))
    command = [sys.executable, "-m", "flashjob.cli", "virtual", str(spec)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fleet:
        try:
            assert fleet.stdout is not None
            ready = json.loads(fleet.stdout.readline())
            assert [device["name"] for device in ready["devices"]] == ["one", "two"]
            assert (tmp_path / "one").exists()
        finally:
            fleet.send_signal(signal.SIGINT)
        assert fleet.wait(20) == 0
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(("text", "said"), [("{", "JSON"), ('{"directory": "d", "devices": []}', "devices")])
def test_a_wrong_spec_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (tmp_path / "spec").write_text(text)
    assert run("flashjob", ["virtual", str(tmp_path / "spec")]) == 1
    error = capsys.readouterr().err
    assert "SpecInvalid" in error
    assert said in error


def test_a_wrong_spec_names_the_fields_and_nothing_of_the_parser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec").write_text('{"directory": "d", "devices": [{"name": "x", "chpi": "esp32"}]}')
    assert run("flashjob", ["virtual", str(tmp_path / "spec")]) == 1
    error = capsys.readouterr().err
    assert "devices.0.chpi: " in error
    assert "pydantic" not in error


def test_a_spec_that_is_not_there_is_not_called_wrong_in_a_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("flashjob", ["virtual", str(tmp_path / "none")]) == 1
    assert "Next: name a file that can be read" in capsys.readouterr().err


def test_sandbox_rule_2_instructions_can_be_pasted(tmp_path: Path) -> None:
    odd = tmp_path / "a b"
    text = instructions(
        kubectl=odd / "controlplane",
        kubeconfig=odd / "admin.yaml",
        registry="127.0.0.1:5000",
        docker=odd / "docker",
        keys=Materials(odd),
        namespace="lab",
    )
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    assert ["export", f"KUBECONFIG={odd / 'admin.yaml'}"] in commands
    (alias,) = [command for command in commands if command[0] == "alias"]
    assert shlex.split(alias[1].removeprefix("kubectl=")) == [str(odd / "controlplane"), "kubectl"]
    (push,) = [command for command in commands if command[0] == "firmware-pipeline"]
    assert push[push.index("--sign") + 1] == str(odd / "keys" / "signer.key")


def test_sandbox_rule_3_the_password_stays(tmp_path: Path) -> None:
    first = _login(tmp_path)
    assert _login(tmp_path) == first
    assert len(first.password) >= 24
    assert stat.S_IMODE((tmp_path / "registry-password").stat().st_mode) == 0o600


def test_sandbox_state_has_a_place_of_its_own() -> None:
    assert default_state({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/flashjob/sandbox")
    assert default_state({"HOME": "/h"}) == Path("/h/.local/state/flashjob/sandbox")
