# SPDX-License-Identifier: Apache-2.0
"""Starts the esptool program on one port and talks to it in JSON lines; see flasher/esptool_worker for its rules.

What the program writes to its standard error (warnings of esptool, a traceback) never reaches the user's terminal: its
last part is kept, shown in the message of an error, and logged line by line at level debug. No job but a write may
take longer than `JOB_SECONDS`, however busily the chip goes on answering; a write is limited by whoever starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from flashjob.errors import FlashJobError
from flashjob.flasher.transports.base import Progress, problem
from flashjob.wire.esptool_lines import (
    EVENTS,
    ChipEvent,
    DataEvent,
    DoneEvent,
    ErrorEvent,
    Job,
    ProgressEvent,
    Region,
)
from flashjob.wire.reasons import Reason, known
from flashjob.wire.serial import USUAL, SerialSettings

_LINE_LIMIT = 4 * 1024 * 1024
_EXIT_SECONDS = 2.0
JOB_SECONDS = 60.0
_KEPT_BYTES = 4096
_SHOWN_CHARACTERS = 300

log = logging.getLogger(__name__)


class Esptool:
    """The program, and through it the port, from `async with` to its end.

    Leaving the block with an exception, or being cancelled, kills the program at once; it then writes nothing more.

    Args:
        port: device node, link or pyserial URL.
        settings: how the line is driven; the stub is used only where the chip allows it.
        chip: IDF target that must be found; empty: any.
        job_seconds: limit of every job that does not write.
    """

    def __init__(
        self,
        port: str,
        settings: SerialSettings = USUAL,
        *,
        chip: str = "",
        job_seconds: float = JOB_SECONDS,
    ) -> None:
        self._port, self._settings, self._chip, self._job_seconds = port, settings, chip, job_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._heard = bytearray()
        self.bytes_written = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "flashjob.flasher.esptool_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            env={**os.environ, "ESPTOOL_CFGFILE": os.devnull},
            process_group=0,  # Ctrl-C is for whoever started it: it ends the program, and knows what was written
        )
        if self._process.stderr is not None:
            self._listener = asyncio.create_task(self._listen(self._process.stderr))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(kill=error is not None)

    async def probe(self, *regions: Region) -> tuple[ChipEvent, dict[int, bytes]]:
        """Identify the chip and read `regions`; returns (chip, offset -> bytes)."""
        chip, data = await self._soon("probe", regions)
        if chip is None:
            raise problem(Reason.INTERNAL_ERROR, "the esptool program named no chip")
        return chip, data

    async def read(self, *regions: Region) -> dict[int, bytes]:
        """Read `regions`: offset -> bytes."""
        return (await self._soon("read", regions))[1]

    async def write(self, regions: list[Region], erase: list[Region], progress: Progress) -> None:
        """Erase, then write and verify `regions` in their order; what is there already is not written.

        `bytes_written` grows meanwhile, and stays when this fails. `progress` hears of bytes of the first region.
        """
        await self._run("write", regions=tuple(regions), erase=tuple(erase), progress=progress)

    async def reset(self) -> None:
        """Start the application."""
        await self._soon("reset")

    async def close(self, *, kill: bool = False) -> None:
        """End the program, which releases the port. Closing twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        if not kill and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_SECONDS):
                    await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        await self._hear_out()

    @property
    def heard(self) -> str:
        """The end of what the program said on its standard error, in one line; "" if it said nothing."""
        lines = self._heard.decode("utf-8", "replace").split("\n")
        return " | ".join(line.strip() for line in lines if line.strip())[-_SHOWN_CHARACTERS:]

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while said := await stream.read(_KEPT_BYTES):
            log.debug("%s: %s", self._port, said.decode("utf-8", "replace").rstrip())
            self._heard += said
            del self._heard[:-_KEPT_BYTES]

    async def _hear_out(self) -> None:
        """The program has ended, and with it its standard error: let the rest arrive."""
        if self._listener is not None:
            await asyncio.wait([self._listener], timeout=_EXIT_SECONDS)
            self._listener.cancel()
            self._listener = None

    async def _soon(self, verb: str, regions: tuple[Region, ...] = ()) -> tuple[ChipEvent | None, dict[int, bytes]]:
        try:
            async with asyncio.timeout(self._job_seconds):
                return await self._run(verb, regions=regions)
        except TimeoutError as error:
            await self.close(kill=True)
            message = f"{self._port}: {verb} is not done after {self._job_seconds:g} s, though the chip answers"
            raise problem(Reason.TRANSPORT_LOST, self._with_heard(message)) from error

    def _with_heard(self, message: str) -> str:
        return f"{message} (esptool said: {self.heard})" if self.heard else message

    async def _run(
        self,
        verb: str,
        *,
        regions: tuple[Region, ...] = (),
        erase: tuple[Region, ...] = (),
        progress: Progress | None = None,
    ) -> tuple[ChipEvent | None, dict[int, bytes]]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise problem(Reason.INTERNAL_ERROR, "the esptool program is not running")
        job = Job.model_validate(
            {
                **self._settings.model_dump(),
                "verb": verb,
                "port": self._port,
                "chip": self._chip,
                "regions": regions,
                "erase": erase,
            }
        )
        with contextlib.suppress(ConnectionError):  # an ended program shows below, by its missing answer
            process.stdin.write(job.model_dump_json(by_alias=True).encode() + b"\n")
            await process.stdin.drain()
        chip: ChipEvent | None = None
        data: dict[int, bytes] = {}
        before = self.bytes_written
        while line := await _line(process.stdout):
            event = _parse(line)
            if isinstance(event, ProgressEvent):
                self.bytes_written = before + event.written
                if progress is not None and event.region == 0:
                    progress(event.done, event.total)
            elif isinstance(event, ChipEvent):
                chip = event
            elif isinstance(event, DataEvent):
                data[event.offset] = event.data
            elif isinstance(event, DoneEvent):
                self.bytes_written = before + event.bytes_written
                return chip, data
            elif isinstance(event, ErrorEvent):
                self.bytes_written = before + event.bytes_written
                reason = known(event.kind)
                message = self._with_heard(event.message)
                raise FlashJobError(event.kind, message, reason.next_step if reason else "see the pod's log")
        await self._hear_out()
        message = f"the esptool program ended in the middle of {verb} on {self._port}"
        raise problem(Reason.TRANSPORT_LOST, self._with_heard(message))


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError as error:  # longer than the limit
        raise problem(Reason.TRANSPORT_LOST, f"the esptool program wrote a line of over {_LINE_LIMIT} bytes") from error


def _parse(line: bytes) -> object:
    try:
        return EVENTS.validate_json(line)
    except ValidationError as error:
        raise problem(Reason.INTERNAL_ERROR, f"the esptool program wrote an unknown line: {line[:200]!r}") from error
