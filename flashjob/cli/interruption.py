# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM for a command that has much to put away.

Rules:

1. The first one says so and cancels the task that watches; that it came is known even to code that fails because its
   own child got the same Ctrl-C.
2. The second one ends the process at once. What it started hangs on lifelines and ends with it.
3. Every other command takes SIGTERM, and the SIGHUP of a terminal that closes, as it takes Ctrl-C, also where the shell
   that began it shields it from Ctrl-C: what runs is unwound, nothing of it is left behind, and the process ends with 128
   and the signal's number. What a starter had it ignore (nohup) stays ignored.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


class _Takeover:
    """Takes over signals while it is entered. `number` is the signal that came, 0 while none did."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def _take(self, each: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[each] = signal.signal(each, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)


class Interruption(_Takeover):
    """Rules 1 and 2, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        """Cancel the running task when a signal comes; at once if one came already."""
        self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        if self.number and self._task:
            self._task.cancel()

    def was_asked_for(self) -> None:
        """The signal was the expected way to go on: not an interruption."""
        self.number = 0
        if self._task:
            self._task.uncancel()

    def _came(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nstopping everything, in order; Ctrl-C again to stop at once\n")  # safe in a signal handler
        if self._loop and self._task and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def __enter__(self) -> "Interruption":
        for each in _SIGNALS:
            self._take(each, self._came)
        return self


class Termination(_Takeover):
    """Rule 3, while it is entered."""

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        interrupt = signal.getsignal(signal.SIGINT)  # asyncio.run has its own while it runs
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    def __enter__(self) -> "Termination":
        for each in _ENDS:
            if signal.getsignal(each) != signal.SIG_IGN:
                self._take(each, self._came)
        return self
