# SPDX-License-Identifier: Apache-2.0
"""What the esptool program says on its standard error: kept, bounded, shown where it helps and nowhere else."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool

NOISY = """#!{python}
import json, sys
for line in sys.stdin:
    verb = json.loads(line)["verb"]
    sys.stderr.write("esptool warning: Chip was NOT reset. Do it by hand.\\n")
    if verb == "reset":
        sys.stderr.write("x" * 100_000 + " the last words\\n")
        sys.exit(1)
    print(json.dumps({{"event": "done", "bytesWritten": 0}} if verb == "read" else
        {{"event": "error", "kind": "TransportLost", "message": "gone", "bytesWritten": 7}}), flush=True)
"""


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the worker's place that warns at every job, fails a write and breaks down at a reset."""
    program = tmp_path / "program"
    program.write_text(NOISY.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))


@pytest.mark.usefixtures("noisy")
async def test_warnings_stay_off_the_terminal_and_go_to_the_debug_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "flashjob.flasher.esptool"):
        async with Esptool("/dev/port") as tool:
            assert await tool.read() == {}
    assert capfd.readouterr().err == ""
    assert "/dev/port: esptool warning: Chip was NOT reset" in caplog.text


@pytest.mark.usefixtures("noisy")
async def test_a_program_that_breaks_down_has_its_last_words_in_the_message() -> None:
    with pytest.raises(FlashJobError) as lost:
        async with Esptool("/dev/port") as tool:
            await tool.reset()
    assert lost.value.reason == "TransportLost"
    assert lost.value.message.startswith("the esptool program ended in the middle of reset on /dev/port (esptool said:")
    assert "the last words" in lost.value.message
    assert len(lost.value.message) < 500, "not all of it"


@pytest.mark.usefixtures("noisy")
async def test_an_error_tells_what_was_warned_of_before() -> None:
    async with Esptool("/dev/port") as tool:
        await tool.read()
        with pytest.raises(FlashJobError) as error:
            await tool.write([], [], lambda _done, _total: None)
    assert error.value.message.startswith("gone (esptool said: esptool warning: Chip was NOT reset")
    assert tool.bytes_written == 7
