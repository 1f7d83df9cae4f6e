# SPDX-License-Identifier: GPL-2.0-or-later
"""What the program says: events for its starter on the real stdout, warnings of esptool on stderr."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from esp_pylib.logger import EspLogBase


class JobError(Exception):
    """A job that failed: `kind` is the reason code of the flasher's wire format."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Output:
    """Writes events; the only user of the real stdout."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, event: str, **fields: object) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()


class StderrLog(EspLogBase):  # type: ignore[misc]
    """esptool's logger: warnings and errors go to stderr; what is said to a person at a terminal goes nowhere."""

    def progress_bar(
        self, cur_iter: int, total_iters: int, prefix: str = "", suffix: str = "", bar_length: int = 30
    ) -> None:
        pass

    def print(self, *args: object, **_: object) -> None:
        pass

    def err(self, *args: object, suggestion: str | None = None) -> None:
        self._say("error", *args)

    def warn(self, *args: object, suggestion: str | None = None) -> None:
        self._say("warning", *args)

    def note(self, *args: object) -> None:
        pass

    def hint(self, *args: object) -> None:
        pass

    def debug(self, *args: object) -> None:
        pass

    def set_verbosity(self, mode: int | str) -> None:
        pass

    @staticmethod
    def _say(level: str, *args: object) -> None:
        sys.stderr.write(f"esptool {level}: {' '.join(map(str, args))}\n")
