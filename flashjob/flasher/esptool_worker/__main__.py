# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive one serial port with esptool, told by JSON lines on stdin, telling by JSON lines on stdout.

    python -m flashjob.flasher.esptool_worker

Every line in is a job ``{verb, port, chip, baud, stub, reset, regions, erase, connectAttempts}``; every job is answered
by events (``stage, progress, chip, data``) and ends with exactly one ``done`` or ``error``. The port stays open, locked
and in the loader from the first job to the end of input, so that nobody comes between a look at a chip and the write
to it. Rules:

1. `probe` names the chip (chip, revision, MAC, flash size, security) and then reads `regions`; `read` only reads.
2. `write` erases `erase`, then writes `regions` strictly in their order; each is verified by the chip's own MD5
   before the next is begun. Files are written as they are: flash mode, frequency and size are kept.
3. Sectors that the chip says to hold already are not written (flasher/changes.py). If the region as a whole is not
   right afterwards, all of it is written; if it is not right then, it is VerifyFailed.
4. `reset` makes the application run.
5. The port is opened for this program alone (flock; TIOCEXCL too on real ports, a pseudo-terminal would keep that
   beyond our end), with DTR and RTS deasserted; it waits at most 5 s for another user to let go.
6. End of input ends the program; in the middle of a job at once, as if the cable were pulled. So nothing of ours
   goes on writing when whoever started it is gone.
7. A block that the chip refuses is sent again, twice. If the line breaks while the port stays, the chip is reset into
   its loader and looked at again, twice at most and at a slower rate; the same chip (its MAC) must answer, and what it
   holds already is not written again. A port that is gone is PortVanished and never waited for: who may try again is
   decided elsewhere.
8. A faster line rate is kept only if the chip answers over it; else the next slower one is tried.
9. A chip with encrypted flash or locked download mode is never written.
10. How the chip gets into its loader: `auto` (USB-Serial-JTAG by its USB id, else DTR and RTS as usual boards wire
    them), `usb-jtag`, `classic`, `none` (somebody pressed its buttons; the loader is told to leave, not reset), or a
    sequence in esptool's own language, as ``D0|R1|W0.1|D1|R0|W0.05|D0``.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn, TextIO

from esptool.logger import log

from . import fast
from .output import JobError, Output, StderrLog
from .session import Job, Session


def jobs(stream: TextIO) -> Iterator[tuple[Job, threading.Event]]:
    """Yield each job with the event to set when it is over; leaves the process when input ends in a job (rule 6)."""
    lines: queue.SimpleQueue[tuple[str, threading.Event] | None] = queue.SimpleQueue()

    def read() -> None:
        over = threading.Event()
        over.set()
        for line in stream:
            over = threading.Event()
            lines.put((line, over))
        if not over.is_set():
            os._exit(1)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (item := lines.get()) is not None:
        yield json.loads(item[0]), item[1]


def main() -> NoReturn:
    output = Output(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    sys.stdout = sys.stderr
    log.set_logger(StderrLog())
    fast.install()
    session = Session(output)
    for job, over in jobs(sys.stdin):
        try:
            session.run(job)
            over.set()
            output.emit("done", bytesWritten=session.written)
        except JobError as error:
            over.set()
            output.emit("error", kind=error.kind, message=str(error), bytesWritten=session.written)
    session.close()
    sys.exit(0)


if __name__ == "__main__":
    main()
