# SPDX-License-Identifier: Apache-2.0
"""What the esptool program relies on inside esptool without a promise: a new esptool must be looked at when these fail."""

import inspect
import json
import subprocess
import sys

import pytest
import serial

esptool_loader = pytest.importorskip("esptool.loader", reason="esptool is not installed: extra 'serial'")


def test_the_names_that_are_replaced_are_still_what_esptool_uses() -> None:
    assert isinstance(esptool_loader.HexFormatter, type)
    assert "slip_reader(self._port" in inspect.getsource(esptool_loader.ESPLoader.flush_input)
    assert "custom_reset_sequence" in inspect.getsource(esptool_loader.ESPLoader._construct_reset_strategy_sequence)
    assert esptool_loader.cfg is not None


def test_the_fast_path_still_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpatched, esptool formats every packet as a hex dump though nobody traces."""
    dumped = []

    def count(data: bytes, _split: bool = True) -> str:
        dumped.append(len(data))
        return ""

    monkeypatch.setattr(esptool_loader, "HexFormatter", count)
    loader = esptool_loader.ESPLoader(serial.serial_for_url("loop://"))
    loader.write(b"x" * 1024)
    assert dumped == [1026]


def test_the_replaced_checksum_is_the_roms() -> None:
    """In a process of its own: the program is run and not imported."""
    script = (
        "import random\n"
        "from esptool.loader import ESPLoader\n"
        "from flashjob.flasher.esptool_worker.fast import checksum\n"
        "r = random.Random(7)\n"
        "for size in (0, 1, 2, 3, 4, 5, 63, 64, 65, 1000, 1024, 16384):\n"
        "    data = r.randbytes(size)\n"
        "    assert checksum(data) == ESPLoader.checksum(data), size\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_words_by_which_an_answered_error_is_known_are_still_said() -> None:
    from esptool.util import FatalError

    error = FatalError.WithResult("Failed to write block 3", b"\x01\x06")
    assert "result was" in str(error)


def test_a_job_for_a_port_that_is_not_there_gets_one_error_and_the_program_goes_on() -> None:
    job = {
        "verb": "probe", "port": "/dev/nothing-there", "chip": "", "baud": 115200, "stub": True,
        "reset": "auto",
        "connectAttempts": 1, "regions": [], "erase": [],
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "flashjob.flasher.esptool_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        for _ in range(2):
            program.stdin.write(json.dumps(job) + "\n")
            program.stdin.flush()
            event = {"event": "stage"}
            while event["event"] == "stage":
                event = json.loads(program.stdout.readline())
            assert (event["event"], event["kind"]) == ("error", "PortNotFound")
        program.stdin.close()
        assert program.wait(timeout=10) == 0
