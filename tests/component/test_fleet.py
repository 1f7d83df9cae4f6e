# SPDX-License-Identifier: Apache-2.0
"""The process that hosts devices: its ready line, its control socket, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from attestation import keys
from attestation.device_http import HttpDevice
from attestation.device_serial import SerialDevice
from attestation.serial_port import open_port
from firmware_pipeline.esp.builder import build_app

from .bench import GRANT_KEY, RELEASE_KEY, public_hex


class Fleet:
    """A running fleet process."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.devices = {device["name"]: device for device in ready["devices"]}

    async def ask(self, **request: object) -> dict[str, Any]:
        """One control request."""
        reader, writer = await asyncio.open_unix_connection(self.ready["control"])
        writer.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        return answer


async def start(tmp_path: Path, *, follow_stdin: bool = False) -> Fleet:
    app = tmp_path / "app.bin"
    app.write_bytes(build_app("esp32s3", "porch", "1.0.0", payload_size=64 * 1024))
    spec = {
        "directory": str(tmp_path / "ports"),
        "control": str(tmp_path / "control"),
        "grantKeys": [public_hex(GRANT_KEY)],
        "releaseKeys": [public_hex(RELEASE_KEY)],
        "followStdin": follow_stdin,
        "devices": [
            {"name": "porch-1", "chip": "esp32s3", "app": str(app)},
            {"name": "porch-2", "chip": "esp32s3", "app": str(app), "transport": "network"},
            {"name": "blank", "chip": "esp32", "tier": "SelfReported"},
            {"name": "lab-1", "chip": "esp32s3", "tier": "SelfReported", "app": str(app), "line": "socket"},
            {"name": "lab-2", "chip": "esp32s3", "tier": "SelfReported", "app": str(app), "line": "rfc2217"},
        ],
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "flashjob.virtual.fleet",
        str(file),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return Fleet(process, json.loads(await process.stdout.readline()))


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = await start(tmp_path)
    yield fleet
    with contextlib.suppress(ProcessLookupError):
        fleet.process.terminate()
    await fleet.process.wait()


async def test_ready_line_says_how_to_reach_and_enrol(fleet: Fleet) -> None:
    serial, network = fleet.devices["porch-1"], fleet.devices["porch-2"]
    assert Path(serial["link"]).resolve() == Path(serial["tty"])
    over_serial = SerialDevice(await open_port(serial["link"]))
    over_http = HttpDevice(*_address(network))
    try:
        infos = [await over_serial.info(), await over_http.info()]
    finally:
        await over_serial.close()
        await over_http.close()
    for device, info in zip((serial, network), infos, strict=True):
        assert info.ueid.hex() == device["ueid"]
        assert keys.ueid(keys.from_cose(bytes.fromhex(device["publicKey"]))).hex() == device["ueid"]
        assert (info.version, info.chip_revision, info.flash_size) == ("1.0.0", device["revision"], device["flashSize"])
    assert fleet.devices["blank"]["chip"] == "esp32"
    assert fleet.devices["lab-1"]["tty"].startswith("socket://127.0.0.1:")
    assert fleet.devices["lab-2"]["tty"].startswith("rfc2217://127.0.0.1:")
    assert fleet.devices["lab-2"]["link"] == ""


async def test_control_counts_resets_and_injects(fleet: Fleet) -> None:
    before = await fleet.ask(do="counters", device="porch-1")
    assert (before["mode"], before["boots"], before["installs"]) == ("Running", 1, 0)
    assert await fleet.ask(do="reset", device="porch-1") == {"ok": True}
    async with asyncio.timeout(5):
        while (await fleet.ask(do="counters", device="porch-1"))["boots"] != 2:
            await asyncio.sleep(0.02)
    assert await fleet.ask(do="unplug", device="porch-1") == {"ok": True}
    assert not os.path.lexists(fleet.devices["porch-1"]["link"])
    assert await fleet.ask(do="replug", device="porch-1") == {"ok": True}
    assert (await fleet.ask(do="status", device="porch-1"))["tty"].startswith("/dev/pts/")
    fault = {"kind": "CablePulled", "percent": 30}
    assert await fleet.ask(do="fault", device="porch-1", fault=fault) == {"ok": True}
    assert await fleet.ask(do="behave", device="porch-2", behaviour="RunsOldImage") == {"ok": True}
    lends = {"kind": "OtherDevicesEvidence", "device": "porch-1"}
    assert await fleet.ask(do="behave", device="porch-2", behaviour=lends) == {"ok": True}
    loses = {"kind": "LosesConfirm", "times": 3}
    assert await fleet.ask(do="behave", device="porch-2", behaviour=loses) == {"ok": True}


async def test_wrong_control_requests_are_answered_with_an_error(fleet: Fleet) -> None:
    wrong: list[dict[str, Any]] = [
        {"do": "counters", "device": "nobody"},
        {"do": "explode", "device": "porch-1"},
        {"do": "fault", "device": "porch-1", "fault": {"kind": "Meteor"}},
        {"do": "fault", "device": "porch-1", "fault": {"kind": "BitFlips", "color": "red"}},
        {"do": "behave", "device": "porch-1", "behaviour": "Nice"},
        {"do": "behave", "device": "porch-1", "behaviour": {"kind": "LosesConfirm", "often": 3}},
        {"do": "behave", "device": "porch-1"},
        {"do": "behave", "device": "porch-1", "behaviour": "OtherDevicesEvidence"},
        {"do": "behave", "device": "porch-1", "behaviour": {"kind": "ReplaysEvidence", "first": "x"}},
    ]
    for request in wrong:
        assert set(await fleet.ask(**request)) == {"error"}, request


@pytest.mark.parametrize("how", ["terminate", "control", "stdin"])
async def test_nothing_is_left_behind(tmp_path: Path, how: str) -> None:
    fleet = await start(tmp_path, follow_stdin=how == "stdin")
    if how == "terminate":
        fleet.process.terminate()
    elif how == "control":
        await fleet.ask(do="stop")
    else:
        assert fleet.process.stdin is not None
        fleet.process.stdin.close()
    async with asyncio.timeout(5):
        assert await fleet.process.wait() == 0
    assert list((tmp_path / "ports").iterdir()) == []
    assert not (tmp_path / "control").exists()


async def test_wrong_spec_is_one_clear_line_and_exit_2(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text('{"directory": "x", "devices": [{"name": "a", "chip": "esp32", "tier": "SignedBoot"}]}')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flashjob.virtual.fleet", str(file), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"eFuse HMAC key" in said


def _address(device: dict[str, Any]) -> tuple[str, int]:
    host, port = device["address"].rsplit(":", 1)
    return host, int(port)
