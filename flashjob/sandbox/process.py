# SPDX-License-Identifier: Apache-2.0
"""Start and stop the sandbox's programs, each behind a tether: none of them outlives its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from flashjob.errors import FlashJobError

_TETHER = Path(__file__).with_name("tether.py")
_LOG_TAIL_BYTES = 2000


class Lifeline:
    """A pipe whose write end only this process holds; when it closes, everything tethered to it is killed."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._open = True
        self._cut = False

    @property
    def descriptor(self) -> int:
        """The read end, to be inherited by a tether (`pass_fds`)."""
        return self._read

    def command(
        self, command: Sequence[str], *, orphan_grace_seconds: float = 0.0, folder: Path | None = None
    ) -> list[str]:
        """The argument list that runs `command` behind a tether on this lifeline.

        Args:
            command: what to run.
            orphan_grace_seconds: from SIGTERM to SIGKILL when this process is killed; 0 kills at once.
            folder: deleted when it has ended.
        """
        prefix = [sys.executable, "-I", "-S", str(_TETHER), str(self._read), str(orphan_grace_seconds)]
        return [*prefix, str(folder or ""), *command]

    @property
    def is_cut(self) -> bool:
        """Whether whatever hangs on it has been told to end."""
        return self._cut

    def cut(self) -> None:
        """Kill whatever hangs on the lifeline, and whatever will be started on it. May be called from any thread."""
        if not self._cut:
            self._cut = True
            os.close(self._write)

    def close(self) -> None:
        """Cut the lifeline and give its descriptors back."""
        self.cut()
        if self._open:
            self._open = False
            os.close(self._read)

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Program:
    """A running program behind a tether, its output in a log file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._terminating = False

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        lifeline: Lifeline,
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        folder: Path | None = None,
    ) -> Program:
        """Start `command`, append its output to `log`, delete `folder` when it has ended.

        Raises:
            FlashJobError: `ProgramNotStarted` if the tether itself cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    lifeline.command(command, folder=folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    pass_fds=(lifeline.descriptor,),
                    start_new_session=True,
                )
        except OSError as error:
            raise FlashJobError(
                "ProgramNotStarted", f"{name} could not be started: {error}", "free memory or processes and try again"
            ) from error
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Process id of the tether; a SIGTERM to it reaches the program."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code once it has ended, None if it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def require_running(self) -> None:
        """Raise `ProgramEnded`, with the log's last lines, if the program has ended."""
        code = self.exit_code
        if code is not None:
            raise FlashJobError(
                "ProgramEnded",
                f"{self.name} ended with exit code {code}; its log ends with:\n{self.log_tail()}",
                f"read {self.log}",
            )

    def log_tail(self) -> str:
        """The last part of the log, whole lines, at most about 2 kB."""
        try:
            data = self.log.read_bytes()[-_LOG_TAIL_BYTES:]
        except OSError as error:
            return f"(log not readable: {error})"
        return (
            data.decode(errors="replace").partition("\n")[2]
            if len(data) == _LOG_TAIL_BYTES
            else data.decode(errors="replace")
        )

    def send_signal(self, number: int) -> None:
        """Pass a signal to the program; nothing happens if it has ended."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM, once (many programs take a second one for impatience), without waiting."""
        if not self._terminating:
            self._terminating = True
            self.send_signal(signal.SIGTERM)

    def stop(self, grace_seconds: float) -> int:
        """SIGTERM, wait, then SIGKILL; returns when the program and all it started are gone."""
        self.terminate()
        code = self.wait(grace_seconds)
        if code is None:
            self.send_signal(signal.SIGUSR1)
            code = self._process.wait()
        return code
