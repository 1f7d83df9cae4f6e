# SPDX-License-Identifier: Apache-2.0
"""How the programs refuse: alike, on standard error, and whole where nobody's window bounds a line."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from flashjob import terminal
from flashjob.cli.main import run


def program(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "where", "says"),
    [
        ("flashjob nothing", "flashjob", "No such command 'nothing'."),
        ("kubectl-flash nothing", "kubectl flash", "No such command 'nothing'."),
        ("flashjob device nothing", "flashjob device", "No such command 'nothing'."),
        ("flashjob flash", "flashjob flash", "Missing argument 'REF|LAYOUT'."),
        ("firmware-pipeline nothing", "firmware-pipeline", "No such command 'nothing'."),
        ("firmware-pipeline inspect --bad x", "firmware-pipeline inspect", "No such option: --bad"),
        ("firmware-pipeline verify x", "firmware-pipeline verify", "name the trusted public keys: --key FILE"),
        ("attest nothing", "attest", "No such command 'nothing'."),
        ("attest explain nowhere", "attest explain", "nowhere: No such file or directory"),
    ],
)
def test_wrong_usage_looks_alike_everywhere(words: str, where: str, says: str) -> None:
    done = program(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"WrongUsage: {where}: {says}\nNext: {where} --help\n"


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("firmware-pipeline inspect /nowhere", 2, "ReferenceMalformed"),
        ("flashjob flash x 127.0.0.1:1 --trust nowhere", 3, "TrustUnusable"),
        ("flashjob device info /dev/nothing", 1, "PortNotFound"),
        ("attest enroll list --trust nowhere", 4, "store.unavailable"),
    ],
)
def test_a_refusal_is_a_reason_and_a_next_step(words: str, code: int, reason: str) -> None:
    done = program(*words.split())
    assert (done.returncode, done.stdout) == (code, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{reason}: ")
    assert second.startswith("Next: ")


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(number: signal.Signals) -> int:
        monkeypatch.setattr("flashjob.cli.main.version", lambda _: os.kill(os.getpid(), number))
        return run("flashjob", ["--version"])

    assert told(signal.SIGINT) == 130
    before = signal.getsignal(signal.SIGTERM)
    assert told(signal.SIGTERM) == 143
    assert told(signal.SIGHUP) == 129, "the terminal was closed"
    shielded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script's background jobs are
    try:
        assert told(signal.SIGTERM) == 143
    finally:
        signal.signal(signal.SIGINT, shielded)
    assert signal.getsignal(signal.SIGTERM) is before
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert told(signal.SIGHUP) == 0
    finally:
        signal.signal(signal.SIGHUP, hung_up)


def test_a_pipe_wraps_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words, table = " ".join(["long"] * 60), Table(box=None)
    table.add_column("a")
    table.add_row("f" * 300)
    out = terminal.console()
    out.print(words)
    out.print(table)
    terminal.heading(out, "Title")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == words
    assert "f" * 300 in said[2]
    assert len(said[3]) == 100, "a heading is no line of ten thousand dashes"


def test_a_window_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Window(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", window := Window())
    monkeypatch.setenv("COLUMNS", "40")
    terminal.console().print("word " * 20)
    assert max(map(len, window.getvalue().splitlines())) <= 40
