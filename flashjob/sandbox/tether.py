# SPDX-License-Identifier: Apache-2.0
"""Run one command that cannot outlive the process that wanted it. A program of its own: standard library only.

    python -I -S tether.py LIFELINE_FD GRACE_SECONDS FOLDER COMMAND [ARGUMENT]...

The starter holds the write end of a pipe and gives the read end as LIFELINE_FD. The kernel closes the write end
however the starter ends, so this needs no cooperation from a starter that was killed.

Rules:
1. End of file on the lifeline: SIGTERM to the command, SIGKILL after GRACE_SECONDS (0: SIGKILL at once).
2. SIGTERM, SIGINT and SIGHUP received here are passed on to the command and nothing else happens; SIGUSR1 means
   SIGKILL to the command (a SIGKILL to this process would leave the command's own children behind).
3. The command leads a session of its own, so that a terminal's Ctrl-C reaches only the starter.
4. When the command has ended, every descendant it left behind is killed (this process is their subreaper).
5. If this process itself is killed, the kernel kills the command (PR_SET_PDEATHSIG).
6. When all of it has ended, FOLDER is deleted ("": there is none), however it ended.
7. Exit code: the command's; 128 + N if signal N ended it; 127 if it could not be started.
"""

import ctypes
import os
import select
import shutil
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGUSR1: signal.SIGKILL,
}


def _start(libc: ctypes.CDLL, command: list[str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(137)
        signal.set_wakeup_fd(-1)
        for number in (*FORWARDED, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error}\n".encode())
    os._exit(127)


def _children() -> list[int]:
    """Processes whose parent is this one, orphans handed up by the kernel included."""
    me, found = str(os.getpid()), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except OSError:
                continue
            if len(fields) > 1 and fields[1] == me:
                found.append(int(entry))
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_the_rest() -> None:
    while children := _children():
        for pid in children:
            _kill(pid, signal.SIGKILL)
        for pid in children:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def main(arguments: list[str]) -> int:
    """Run the command to its end and return the exit code to leave with."""
    lifeline, grace, folder, command = int(arguments[0]), float(arguments[1]), arguments[2], arguments[3:]
    os.set_inheritable(lifeline, False)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    received: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda got, _frame: received.append(FORWARDED[signal.Signals(got)]))
    signal.signal(signal.SIGCHLD, lambda _got, _frame: None)
    child = _start(libc, command)

    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    poll.register(wake_read, select.POLLIN)
    kill_at: float | None = None
    while True:
        wait = None if kill_at is None else max(0.0, kill_at - time.monotonic()) * 1000
        ready = {descriptor for descriptor, _ in poll.poll(wait)}
        if wake_read in ready:
            os.read(wake_read, 512)
        while received:
            _kill(child, received.pop(0))
        if lifeline in ready and kill_at is None:
            poll.unregister(lifeline)
            kill_at = time.monotonic() + grace
            _kill(child, signal.SIGTERM if grace > 0 else signal.SIGKILL)
        if kill_at is not None and time.monotonic() >= kill_at:
            _kill(child, signal.SIGKILL)
        pid, status = -1, 0
        while pid not in (0, child):
            pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            break
    _kill_the_rest()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
