# SPDX-License-Identifier: Apache-2.0
"""One write of one file to one port: by the plain esptool command line, and by our esptool program."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BAUD: Final = 921_600
_ENVIRONMENT: Final = {"ESPTOOL_CFGFILE": os.devnull, "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Write:
    """Wall-clock seconds of the whole program and from first byte to verified; bytes written (-1: not told)."""

    whole: float
    write: float
    written: int = -1


def child_cpu() -> float:
    """CPU seconds of all ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def plain(port: str, offset: int, file: Path) -> Write:
    """By esptool's own command line."""
    begun, first, verified, said = time.monotonic(), 0.0, 0.0, b""
    arguments = ["--port", port, "--baud", str(BAUD), "write-flash", hex(offset), str(file)]
    process = await _start("esptool", *arguments)
    assert process.stdout is not None
    while part := await process.stdout.read(4096):
        said += part
        first = first or (time.monotonic() if b"Writing at" in said else 0.0)
        verified = verified or (time.monotonic() if b"Hash of data verified" in said else 0.0)
    if await process.wait() or not verified:
        raise RuntimeError(f"esptool exits with {process.returncode}: {said.decode()[-800:]}")
    return Write(time.monotonic() - begun, verified - first)


async def ours(port: str, offset: int, file: Path) -> Write:
    """By the program that a flashing pod starts, told to write one region."""
    begun, first = time.monotonic(), 0.0
    region = {"offset": offset, "file": str(file), "size": 0}
    job = {"verb": "write", "port": port, "chip": "", "baud": BAUD, "stub": True, "reset": "auto"}
    job |= {"erase": [], "regions": [region], "connectAttempts": 3}
    process = await _start("flashjob.flasher.esptool_worker")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job).encode() + b"\n")
    event: dict[str, Any] = {"event": ""}
    while event["event"] not in ("done", "error"):
        event = json.loads(await process.stdout.readline())
        first = first or (time.monotonic() if event["event"] == "progress" else 0.0)
    verified = time.monotonic()
    process.stdin.close()
    await process.wait()
    if event["event"] == "error":
        raise RuntimeError(f"our program ends with {event}")
    return Write(time.monotonic() - begun, verified - first, event["bytesWritten"])


async def _start(module: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL if module != "esptool" else asyncio.subprocess.STDOUT,
        env={**os.environ, **_ENVIRONMENT},
    )
