# SPDX-License-Identifier: Apache-2.0
"""What the esptool program relies on inside esptool without a promise: a new esptool must be looked at when these fail."""

import inspect
import json
import subprocess
import sys

import pytest

esptool_loader = pytest.importorskip("esptool.loader", reason="esptool is not installed: extra 'serial'")


def test_the_fast_path_still_has_its_name() -> None:
    assert isinstance(esptool_loader.HexFormatter, type)


def test_the_words_by_which_a_lost_line_is_known_are_still_said() -> None:
    source = inspect.getsource(esptool_loader)
    for words in (
        "No serial data received",
        "Serial data stream stopped",
        "Packet content transfer stopped",
        "No more data to read",
        "Invalid head of packet",
    ):
        assert words in source, words


def test_the_words_by_which_a_failed_verification_is_known_are_still_said() -> None:
    from esptool import cmds

    assert "MD5 of file does not match" in inspect.getsource(cmds.write_flash)


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
