# SPDX-License-Identifier: Apache-2.0
"""Nothing outlives its starter: the rules of sandbox/tether.py, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.sandbox.process import Lifeline, Program

ROOT = str(Path(__file__).parents[3])
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
stubborn = subprocess.Popen([sys.executable, "-c", '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid()
time.sleep(600)
'''])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid} {stubborn.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(float(sys.argv[2]))
"""
STARTER = """
import sys, time
from pathlib import Path
from flashjob.sandbox.process import Lifeline, Program
lifeline = Lifeline()
Program.start("family", [sys.executable, "-c", sys.argv[2], sys.argv[1], "600"], lifeline, log=Path(sys.argv[1] + ".log"))
time.sleep(600)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def family(path: Path) -> list[int]:
    wait_until(path.exists)
    return [int(pid) for pid in path.read_text(encoding="ascii").split()]


def run(tmp_path: Path, code: str, *arguments: str) -> Program:
    return Program.start("program", [sys.executable, "-c", code, *arguments], Lifeline(), log=tmp_path / "program.log")


@pytest.mark.parametrize(("code", "expected"), [("", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", 134)])
def test_exit_code_is_the_commands(tmp_path: Path, code: str, expected: int) -> None:
    assert run(tmp_path, code).wait(20) == expected


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    program = Program.start("ghost", ["/does/not/exist"], Lifeline(), log=tmp_path / "log")
    assert program.wait(20) == 127
    with pytest.raises(FlashJobError) as caught:
        program.require_running()
    assert caught.value.reason == "ProgramEnded"
    assert "/does/not/exist" in caught.value.message


def test_sigterm_reaches_the_command_which_ends_as_it_likes(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = """
import signal, sys, time
def end(number, frame):
    print("goodbye", flush=True)
    raise SystemExit(42)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").close()
time.sleep(600)
"""
    program = run(tmp_path, code, str(ready))
    wait_until(ready.exists)
    assert program.stop(20) == 42
    assert "goodbye" in program.log_tail()


def test_what_ignores_sigterm_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
    program = run(tmp_path, code, str(pids), "600")
    members = family(pids)
    assert program.stop(0.3) == 128 + signal.SIGKILL
    assert [pid for pid in members if alive(pid)] == []


def test_leftovers_of_a_command_that_ended_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = run(tmp_path, FAMILY, str(pids), "0")
    members = family(pids)
    assert program.wait(20) == 0
    assert [pid for pid in members if alive(pid)] == []


def test_cutting_the_lifeline_ends_all(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Lifeline() as lifeline:
        program = Program.start(
            "family", [sys.executable, "-c", FAMILY, str(pids), "600"], lifeline, log=tmp_path / "log"
        )
        members = family(pids)
        assert all(alive(pid) for pid in members)
    assert program.wait(20) == 128 + signal.SIGKILL
    assert [pid for pid in members if alive(pid)] == []


def test_a_grace_period_lets_an_orphan_end_by_itself(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
open(sys.argv[1], "w").close()
time.sleep(600)
"""
    lifeline = Lifeline()
    command = [sys.executable, "-c", code, str(ready)]
    tethered = lifeline.command(command, orphan_grace_seconds=20)
    program = Program("p", subprocess.Popen(tethered, pass_fds=(lifeline.descriptor,)), tmp_path / "log")
    wait_until(ready.exists)
    lifeline.close()
    assert program.wait(10) == 3


@pytest.mark.parametrize(
    "how", ["it ends", "it is told to", "it is killed", "its starter goes", "it cannot be started"]
)
def test_its_folder_goes_with_it_however_it_ends(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    code = "" if how == "it ends" else f"open({str(folder / 'ready')!r}, 'w').close(); import time; time.sleep(600)"
    command = ["/does/not/exist"] if how == "it cannot be started" else [sys.executable, "-c", code]
    lifeline = Lifeline()
    program = Program.start("p", command, lifeline, log=tmp_path / "log", folder=folder)
    if how in ("it is told to", "it is killed", "its starter goes"):
        wait_until((folder / "ready").exists)
    if how == "it is told to":
        program.terminate()
    if how == "it is killed":
        program.send_signal(signal.SIGUSR1)
    if how == "its starter goes":
        lifeline.close()
    assert program.wait(20) is not None
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_starter_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(pids), FAMILY],
        env={**os.environ, "PYTHONPATH": ROOT},
        stderr=subprocess.DEVNULL,
    )
    members = family(pids)
    starter.send_signal(number)
    starter.wait(20)
    wait_until(lambda: not any(alive(pid) for pid in members))


def test_killing_the_tether_kills_the_command(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = run(tmp_path, FAMILY, str(pids), "600")
    command = family(pids)[0]
    others = family(pids)[1:]
    os.kill(program.pid, signal.SIGKILL)
    wait_until(lambda: not alive(command))
    for pid in others:  # no tether is left to find these; the test must not leave them either
        os.kill(pid, signal.SIGKILL)
