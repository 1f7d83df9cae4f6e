# SPDX-License-Identifier: Apache-2.0
"""What runs in a flashing pod: `python -m flashjob.flasher`. All it is told stands in its environment (wire/pod.py).

Exit codes (wire/exit_codes.py; no verdict rests on them):

    0    every attempt was walked to its verdict
    1    at least one attempt failed after its first byte, or could not be carried out
    2    the environment is wrong
    3    nothing was written: every attempt was refused before its first byte
    143  told to stop (SIGTERM): writers were killed and ports released first
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from firmware_pipeline import api
from firmware_pipeline.credentials import load_credentials
from firmware_pipeline.errors import PipelineError
from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch, nearest
from flashjob.flasher.gateway_client import GatewayClient
from flashjob.flasher.judge import Judge
from flashjob.flasher.run import Attempt, Firmware
from flashjob.flasher.transports.base import Transport, problem
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.wire import pod
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, PodResult, Progress, Stage
from flashjob.wire.pod import Assignment, Assignments, TransportKind
from flashjob.wire.reasons import Reason
from flashjob.wire.target import Target

ENV_BAUD = "FLASHJOB_BAUD"
"""Line rate of serial transfers in baud; default 460800."""
_DEFAULT_BAUD = 460_800


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
    baud: int


def read_environment(environment: Mapping[str, str]) -> Settings:
    """Read and check the environment. Raises FlashJobError InternalError naming the variable."""
    try:
        assignments = Assignments.model_validate_json(environment.get(pod.ENV_ASSIGNMENTS, ""))
        baud = int(environment.get(ENV_BAUD, _DEFAULT_BAUD))
    except (ValidationError, ValueError) as error:
        raise problem(Reason.INTERNAL_ERROR, f"{pod.ENV_ASSIGNMENTS} or {ENV_BAUD}: {error}"[:900]) from error
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
        baud=baud,
    )


class Fetcher:
    """Fetches each target once, however many devices of the pod want it."""

    def __init__(self, work_dir: Path, environment: Mapping[str, str]) -> None:
        self._work_dir, self._environment = work_dir, environment
        self._running: dict[str, asyncio.Task[Firmware]] = {}

    async def get(self, assignment: Assignment) -> Firmware:
        """The firmware of an assignment. Raises FlashJobError; FetchTimeout after the assignment's fetch_seconds."""
        target, seconds = assignment.target, assignment.timeouts.fetch_seconds
        task = self._running.get(target.manifest_digest)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._fetch, target))
            self._running[target.manifest_digest] = task
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise problem(Reason.FETCH_TIMEOUT, f"{target.repository}: not fetched after {seconds} s") from error

    def _fetch(self, target: Target) -> Firmware:
        try:
            credentials = load_credentials(self._environment)
            options = api.ClientOptions(credentials=credentials, plain_http=target.plain_http)
            store = api.open_store(f"{target.repository}@{target.index_digest}", options)
        except PipelineError as error:
            raise FlashJobError(Reason.REGISTRY_UNAUTHORIZED.value, error.message, error.next_step) from error
        near = nearest(store, target, self._environment.get(pod.ENV_CACHE_DIR), self._environment.get(pod.ENV_MIRROR))
        return fetch(near, target, self._work_dir)


async def run_pod(settings: Settings, environment: Mapping[str, str]) -> list[DeviceResult]:
    """Carry out all attempts, side by side; returns their results in the assignments' order."""
    fetcher = Fetcher(settings.work_dir, environment)
    async with GatewayClient(settings.gateway_url, settings.token_file, settings.ca_file) as gateway:
        attempts = [_attempt(settings, fetcher, gateway.judge(item.task), item) for item in settings.assignments.items]
        return await asyncio.gather(*attempts)


async def _attempt(settings: Settings, fetcher: Fetcher, judge: Judge, assignment: Assignment) -> DeviceResult:
    try:
        await judge.progress(Progress(attempt=assignment.attempt, stage=Stage.FETCHING))
        firmware = await fetcher.get(assignment)
        transport = _transport(settings, assignment)
    except FlashJobError as error:
        result = DeviceResult.model_validate(
            {
                "task": assignment.task,
                "attempt": assignment.attempt,
                "stage": Stage.FETCHING,
                "ok": False,
                "reason": error.reason,
                "message": error.message[:1024],
            }
        )
        try:
            await judge.result(result)
        except FlashJobError as unreported:
            sys.stderr.write(f"{assignment.task}: result not reported: {unreported}\n")
        return result
    return await Attempt(assignment, firmware, transport, judge).run()


def _transport(settings: Settings, assignment: Assignment) -> Transport:
    if assignment.transport is TransportKind.SERIAL and settings.port:
        return SerialTransport(settings.port, settings.work_dir, baud=settings.baud)
    if assignment.transport is TransportKind.NETWORK and assignment.address:
        return NetworkTransport(assignment.address)
    raise problem(Reason.TRANSPORT_UNSUPPORTED, f"{assignment.transport.value}: no port or address is given")


def termination_message(results: list[DeviceResult]) -> str:
    """The pod's last words within Kubernetes' limit.

    What does not fit goes in this order: hardware and timings, the ends of messages, whole messages, the last devices.
    """
    return next(text for text in _ever_shorter(results) if len(text.encode()) <= pod.TERMINATION_LIMIT)


def _ever_shorter(results: list[DeviceResult]) -> Iterator[str]:
    yield _words(results)
    slim = [result.model_copy(update={"hardware": None, "seconds": {}}) for result in results]
    for length in (1024, 200, 60, 0):
        yield _words([item.model_copy(update={"message": item.message[:length]}) for item in slim])
    for count in range(len(slim) - 1, 0, -1):
        yield _words([item.model_copy(update={"message": ""}) for item in slim[:count]])


def _words(items: list[DeviceResult]) -> str:
    return PodResult(items=tuple(items)).model_dump_json(by_alias=True, exclude_defaults=True)


def exit_code(results: list[DeviceResult]) -> ExitCode:
    """The process's end, by the table in this module's docstring."""
    if all(result.ok for result in results):
        return ExitCode.DONE
    refused = all(result.ok or (result.bytes_written == 0 and result.stage in _BEFORE) for result in results)
    return ExitCode.REFUSED if refused else ExitCode.FAILED


_BEFORE = (Stage.STARTING, Stage.FETCHING, Stage.PREFLIGHT)


async def _until_stopped(settings: Settings, environment: Mapping[str, str]) -> list[DeviceResult] | None:
    """Results, or None when SIGTERM or SIGINT came first; the attempts were then cancelled and cleaned up."""
    work = asyncio.create_task(run_pod(settings, environment))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        return None


def main(environment: Mapping[str, str] | None = None) -> int:
    """Entry point; returns the exit code."""
    environment = os.environ if environment is None else environment
    try:
        settings = read_environment(environment)
    except FlashJobError as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.USAGE
    try:
        results = asyncio.run(_until_stopped(settings, environment))
    except FlashJobError as error:
        sys.stderr.write(f"{error}\n")
        return ExitCode.FAILED
    if results is None:
        return ExitCode.STOPPED
    for result in results:
        sys.stderr.write(f"{result.task}: {result.stage.value}: {result.reason}: {result.message}\n")
    try:
        settings.termination_file.write_text(termination_message(results))
    except OSError as error:
        sys.stderr.write(f"termination message not written: {error}\n")
    return exit_code(results)
