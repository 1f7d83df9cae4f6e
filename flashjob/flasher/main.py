# SPDX-License-Identifier: Apache-2.0
"""What runs in a flashing pod: `python -m flashjob.flasher`. All it is told stands in its environment (wire/pod.py).

Exit codes (wire/exit_codes.py; no verdict rests on them):

    0    every attempt was walked to its verdict
    1    at least one attempt failed after its first byte, or could not be carried out
    2    the environment is wrong
    3    nothing was written: every attempt was refused before its first byte
    143  told to stop (SIGTERM): what was written was proven first where there was time, else it was stopped (pod.py)
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import Fetcher
from flashjob.flasher.gateway_client import GatewayClient
from flashjob.flasher.pod import BEFORE_BYTE_ONE, Pod
from flashjob.flasher.tail import TailHandler
from flashjob.flasher.transports.base import Transport, problem
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.wire import pod
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, PodResult
from flashjob.wire.pod import Assignment, Assignments, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import USUAL


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment, read once."""

    assignments: Assignments
    gateway_url: str
    token_file: Path
    ca_file: Path | None
    work_dir: Path
    termination_file: Path
    port: str | None


def read_environment(environment: Mapping[str, str]) -> Settings:
    """Read and check the environment. Raises FlashJobError InternalError naming the variable."""
    try:
        assignments = Assignments.model_validate_json(environment.get(pod.ENV_ASSIGNMENTS, ""))
    except ValidationError as error:
        raise problem(Reason.INTERNAL_ERROR, f"{pod.ENV_ASSIGNMENTS}: {error}"[:900]) from error
    missing = [
        name for name in (pod.ENV_GATEWAY_URL, pod.ENV_TOKEN_FILE, pod.ENV_WORK_DIR) if not environment.get(name)
    ]
    port = environment.get(pod.ENV_PORT)
    if any(item.transport is TransportKind.SERIAL for item in assignments.items) and not port:
        missing.append(pod.ENV_PORT)
    if missing:
        raise problem(Reason.INTERNAL_ERROR, f"not set: {', '.join(missing)}")
    ca_file = environment.get(pod.ENV_CA_FILE)
    return Settings(
        assignments=assignments,
        gateway_url=environment[pod.ENV_GATEWAY_URL],
        token_file=Path(environment[pod.ENV_TOKEN_FILE]),
        ca_file=Path(ca_file) if ca_file else None,
        work_dir=Path(environment[pod.ENV_WORK_DIR]),
        termination_file=Path(environment.get(pod.ENV_TERMINATION_FILE, pod.TERMINATION_FILE)),
        port=port,
    )


def termination_message(results: list[DeviceResult]) -> str:
    """The pod's last words within Kubernetes' limit.

    What does not fit goes in this order: logs of what went well, the beginnings of the other logs, all logs with hardware
    and timings, the ends of messages, whole messages, the last devices.
    """
    return next(text for text in _ever_shorter(results) if len(text.encode()) <= pod.TERMINATION_LIMIT)


def _ever_shorter(results: list[DeviceResult]) -> Iterator[str]:
    yield _words(results)
    failed = [item if not item.ok else item.model_copy(update={"log": ""}) for item in results]
    yield _words(failed)
    yield _words([item.model_copy(update={"log": item.log[-300:]}) for item in failed])
    slim = [result.model_copy(update={"hardware": None, "seconds": {}, "log": ""}) for result in results]
    for length in (1024, 200, 60, 0):
        yield _words([item.model_copy(update={"message": item.message[:length]}) for item in slim])
    for count in range(len(slim) - 1, 0, -1):
        yield _words([item.model_copy(update={"message": ""}) for item in slim[:count]])


def _words(items: list[DeviceResult]) -> str:
    return PodResult(items=tuple(items)).model_dump_json(by_alias=True, exclude_defaults=True)


def exit_code(results: list[DeviceResult]) -> ExitCode:
    """The process's end, by the table in this module's docstring."""
    if any(result.reason == Reason.STOPPED for result in results):
        return ExitCode.STOPPED
    if all(result.ok for result in results):
        return ExitCode.DONE
    refused = all(result.ok or (result.bytes_written == 0 and result.stage in BEFORE_BYTE_ONE) for result in results)
    return ExitCode.REFUSED if refused else ExitCode.FAILED


async def _carry_out(settings: Settings, environment: Mapping[str, str]) -> list[DeviceResult]:
    """Run the pod; SIGTERM and SIGINT ask it to stop."""
    fetcher = Fetcher(settings.work_dir, environment)
    async with GatewayClient(settings.gateway_url, settings.token_file, settings.ca_file) as gateway:
        ways = partial(_transport, settings)
        pod = Pod(settings.assignments.items, fetcher.get, gateway.judge, ways, delta=fetcher.delta)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, pod.stop)
        return await pod.run()


def _transport(settings: Settings, assignment: Assignment) -> Transport:
    if assignment.transport is TransportKind.SERIAL and settings.port:
        return SerialTransport(settings.port, settings.work_dir, assignment.serial or USUAL)
    if assignment.transport is TransportKind.NETWORK and assignment.address:
        return NetworkTransport(assignment.address)
    raise problem(Reason.TRANSPORT_UNSUPPORTED, f"{assignment.transport.value}: no port or address is given")


def main(environment: Mapping[str, str] | None = None) -> int:
    """Entry point; returns the exit code."""
    environment = os.environ if environment is None else environment
    logging.basicConfig(level=logging.WARNING, handlers=[TailHandler(sys.stderr)])
    logging.getLogger("flashjob").setLevel(logging.INFO)
    try:
        settings = read_environment(environment)
    except FlashJobError as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.USAGE
    try:
        results = asyncio.run(_carry_out(settings, environment))
    except FlashJobError as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.FAILED
    for result in results:
        sys.stderr.write(f"{result.task}: {result.stage.value}: {result.reason}: {result.message}\n")
    try:
        settings.termination_file.write_text(termination_message(results))
    except OSError as error:
        sys.stderr.write(f"termination message not written: {error}\n")
    return exit_code(results)
