# SPDX-License-Identifier: Apache-2.0
"""The last lines that an attempt's log wrote, kept for its result. What is logged within an attempt's asyncio task, its
threads included, belongs to that attempt; nothing outside reads another's lines.
"""

from __future__ import annotations

import logging
from collections import deque
from contextvars import ContextVar
from typing import Final, TextIO

from flashjob.wire.gateway import LOG_LIMIT

_LINES: Final = 40
_current: ContextVar[Tail | None] = ContextVar("flashjob_attempt", default=None)


class Tail:
    """The last lines of one attempt. `begin` in the task that carries it out."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._lines: deque[str] = deque(maxlen=_LINES)

    def begin(self) -> None:
        """From here on what this task logs is kept."""
        _current.set(self)

    def add(self, line: str) -> None:
        """Keep one line."""
        self._lines.append(line)

    @property
    def text(self) -> str:
        """The newest whole lines that fit into a result."""
        kept: list[str] = []
        room = LOG_LIMIT
        for line in reversed(self._lines):
            room -= len(line) + 1
            if room < 0:
                break
            kept.append(line)
        return "\n".join(reversed(kept))


class TailHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, each line under the task's name, and keeps it for the attempt that it was logged in."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        """One record as it is written."""
        line = super().format(record)
        tail = _current.get()
        if tail is None:
            return line
        tail.add(line)
        return f"{tail.task}: {line}"
