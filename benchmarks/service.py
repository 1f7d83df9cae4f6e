# SPDX-License-Identifier: Apache-2.0
"""What HTTP adds to a verdict, and whether a service that runs for long keeps its memory.

The service is `attest serve` as a program, its clients speak HTTP keep-alive from this process. CPU is the server
process's own, from /proc. A verdict over HTTP is two requests: a nonce, and a result. The anchor is the sum of

- the library, in this process and with the same caches: nonce made, device and policy looked up, evidence judged, boot
  compared with earlier ones, nonce used up, result signed (``service.judge``, which knows no HTTP), and
- two requests of the same sizes to a bare echo: an aiohttp application that reads a body and answers with one.

A second anchor is the barest program that does both at once (``_bare.py``): the same library, called by an aiohttp
application that checks, limits and counts nothing. It costs about a fifth more than the sum, because the library then shares
the processor's caches with the network: no service can be cheaper.

Short runs of all four take turns, so that other load disturbs them alike; the median over the turns is judged. How fast a
process is depends a little on where its memory happens to lie (the echo's CPU differs by a fifth from start to start), so
that the programs are started several times.

1. CPU per verdict: at most 1.3 of the sum.
2. CPU per verdict: at most 1.3 of the barest program.
3. Memory: over a million requests (nonces, good evidence, replays, garbage, malformed requests) resident memory at the end
   is at most 1.03 of what it was after a tenth. A smoke run sends 5,000, which is warming up, and reports the slope alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import aiohttp

from attestation import nonce
from attestation.service.judge import Question
from attestation.service.keyring import KeyFiles
from benchmarks.common import Report, main, median_ratio
from tests.unit.attestation.serving import AUDIENCE, Client, Device, Files, Process, judge_of, program

T = TypeVar("T")
_Turn: TypeAlias = tuple[float, float, float, float]
"""CPU seconds per verdict: of the service, of two echoes, of the library, of the library in a bare server."""
STARTS: Final = 5
TURN: Final = 100
RATIO: Final = 1.3
REQUESTS: Final = 1_000_000
SMOKE_REQUESTS: Final = 5_000
CLIENTS: Final = 8
LIFETIME_SECONDS: Final = 10
"""Of a nonce: used ones are forgotten early, so that what they take is level long before the end."""


def measure(report: Report) -> None:
    """All figures and bars."""
    asyncio.run(_measure(report))


async def _measure(report: Report) -> None:
    device = Device()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), [device], nonce_ttl_seconds=LIFETIME_SECONDS)
        arguments = [*files.arguments, "--rate", "0"]
        await _cpu_per_verdict(report, files, device, arguments)
        with program(*arguments) as server:
            await _memory(report, device, server)


@contextlib.contextmanager
def _program(name: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """One of the anchors' programs: its process id and address."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            yield started.pid, f"http://127.0.0.1:{int(started.stdout.readline())}"
        finally:
            started.terminate()


async def _cpu_per_verdict(report: Report, files: Files, device: Device, arguments: Sequence[str]) -> None:
    library = _Library(files, device)
    told = (files.trust.root, files.nonce_keys, files.ear_key, device.ueid, AUDIENCE, LIFETIME_SECONDS)
    bare_arguments = [str(part) for part in told]
    turns: list[_Turn] = []
    for _ in range(STARTS):
        with program(*arguments) as server, _program("_echo.py") as echo, _program("_bare.py", *bare_arguments) as bare:
            turns += await _turns(8 if report.smoke else 40, library, device, server, echo, bare)
    names = ("verdict over HTTP", "two bare echoes", "verdict in the library", "verdict in a bare server")
    for column, name in enumerate(names):
        report.figure(f"{name}, CPU microseconds", statistics.median(turn[column] for turn in turns) * 1e6)
    summed = median_ratio([(ours, echoes + alone) for ours, echoes, alone, _ in turns])
    report.bar("CPU per verdict, of library and two bare echoes", summed, "<=", RATIO)
    together = median_ratio([(ours, bare) for ours, _, _, bare in turns])
    report.bar("CPU per verdict, of the library in a bare server", together, "<=", RATIO)


async def _turns(
    count: int, library: _Library, device: Device, server: Process, echo: tuple[int, str], bare: tuple[int, str]
) -> list[_Turn]:
    turns: list[_Turn] = []
    async with aiohttp.ClientSession() as http:
        client = Client(http, server.url)
        for _ in range(2 + count):
            service = await _service_turn(client, device, server.popen.pid)
            echoes = await _echo_turn(Client(http, echo[1]), device, echo[0])
            turns.append((service, echoes, library.turn(), await _bare_turn(http, device, *bare)))
    return turns[2:]  # the first ones fill caches


class _Library:
    """The same verdicts without HTTP: the service's own judge, called in this process."""

    def __init__(self, files: Files, device: Device) -> None:
        self._device, self._ueid = device, device.minted.ueid
        self._keys = KeyFiles(files.nonce_keys, files.ear_key).read()
        self._judge = judge_of(files)

    def turn(self) -> float:
        """CPU seconds per verdict of this process."""
        begin = time.process_time_ns()
        nonces = [self._issue(int(time.time())) for _ in range(TURN)]
        spent = time.process_time_ns() - begin
        answers = [(value, self._device.answer(value.hex())) for value in nonces]
        begin = time.process_time_ns()
        results = [
            self._judge.result(Question(self._ueid, AUDIENCE, value), evidence, self._keys)
            for value, evidence in answers
        ]
        spent += time.process_time_ns() - begin
        if not all(result.verdict.proven_at_tier for result in results):
            raise RuntimeError(f"the evidence of the benchmark is refused: {results[0].verdict.message}")
        return spent / TURN / 1e9

    def _issue(self, now: int) -> bytes:
        random = os.urandom(nonce.RANDOM_SIZE)
        audience = AUDIENCE.encode()
        return nonce.issue(self._keys.ring, self._ueid, audience, now=now, ttl=LIFETIME_SECONDS, random=random)


async def _service_turn(client: Client, device: Device, pid: int) -> float:
    begin = _cpu_ns(pid)
    nonces = await _at_once(client.nonce(device.ueid) for _ in range(TURN))
    spent = _cpu_ns(pid) - begin
    answers = [(value, device.answer(value)) for value in nonces]
    begin = _cpu_ns(pid)
    replies = await _at_once(client.verify(evidence, device.ueid, value) for value, evidence in answers)
    if any(reply.status != 200 for reply in replies):
        raise RuntimeError(f"the service refuses the benchmark: {replies[0].body!r}")
    return (spent + _cpu_ns(pid) - begin) / TURN / 1e9


async def _echo_turn(bare: Client, device: Device, pid: int) -> float:
    asked = json.dumps({"ueid": device.ueid, "audience": AUDIENCE}).encode()
    evidence = device.answer("00" * 32)
    begin = _cpu_ns(pid)
    for body in (asked, evidence):
        await _at_once(bare.post("/", body) for _ in range(TURN))
    return (_cpu_ns(pid) - begin) / TURN / 1e9


async def _bare_turn(http: aiohttp.ClientSession, device: Device, pid: int, url: str) -> float:
    asked = json.dumps({"ueid": device.ueid, "audience": AUDIENCE}).encode()

    async def post(path: str, body: bytes, **headers: str) -> bytes:
        async with http.post(url + path, data=body, headers=headers) as response:
            response.raise_for_status()
            return await response.read()

    begin = _cpu_ns(pid)
    nonces = await _at_once(post("/nonce", asked) for _ in range(TURN))
    spent = _cpu_ns(pid) - begin
    answers = [(value.hex(), device.answer(value.hex())) for value in nonces]
    begin = _cpu_ns(pid)
    await _at_once(post("/result", evidence, Nonce=value) for value, evidence in answers)
    return (spent + _cpu_ns(pid) - begin) / TURN / 1e9


async def _at_once(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All calls, by as many clients as there are connections."""
    waiting = iter(calls)
    done: list[T] = []

    async def client() -> None:
        for call in waiting:
            done.append(await call)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done


async def _memory(report: Report, device: Device, server: Process) -> None:
    requests = SMOKE_REQUESTS if report.smoke else REQUESTS
    begin, sent, seen = time.monotonic(), 0, []
    async with aiohttp.ClientSession() as http:
        client = Client(http, server.url)
        while sent < requests:
            sent += await _mixture(client, device)
            seen.append((sent / 1e6, _resident_mb(server.popen.pid)))
    seconds = time.monotonic() - begin
    settled = seen[len(seen) // 10 :]
    slope, _ = statistics.linear_regression(*zip(*settled, strict=True))
    report.figure("requests of a mixture", sent)
    report.figure("requests per second", sent / seconds)
    report.figure("seconds of the mixture", seconds)
    report.figure("resident MB, after a tenth and at the end", [settled[0][1], settled[-1][1]])
    report.figure("resident MB per million requests, slope from a tenth on", slope)
    if not report.smoke:
        report.bar("resident memory at the end, of that after a tenth", settled[-1][1] / settled[0][1], "<=", 1.03)


async def _mixture(client: Client, device: Device) -> int:
    """One batch; how many requests it was. Every answer is checked."""
    nonces = await _at_once(client.nonce(device.ueid) for _ in range(TURN))
    good = [(value, device.answer(value)) for value in nonces]
    judged = [(device.ueid, value, evidence) for value, evidence in (*good, *good)]  # each twice: a replay
    judged += [(device.ueid, value, os.urandom(random.randrange(4096))) for value in nonces]
    judged += [(os.urandom(33).hex(), value, evidence) for value, evidence in good]
    replies = await _at_once(client.verify(evidence, ueid, value) for ueid, value, evidence in judged)
    wrong = await _at_once(client.post("/v1/nonce", os.urandom(64), "application/json") for _ in range(TURN))
    if {reply.status for reply in replies} != {200} or {reply.status for reply in wrong} != {400}:
        raise RuntimeError("the service answers what it must not")
    return len(nonces) + len(replies) + len(wrong)


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu_ns(pid: int) -> int:
    """CPU time of another process, all threads: its clock as clock_gettime(2) names it."""
    return time.clock_gettime_ns((~pid << 3) | 2)


if __name__ == "__main__":
    sys.exit(main("service", measure))
