# SPDX-License-Identifier: Apache-2.0
"""The fleet of virtual devices as a process of its own, and the line to its control socket."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from flashjob.errors import FlashJobError
from flashjob.virtual.fleet import Ready, ReadyDevice

from .materials import dump


class FleetProcess:
    """Starts at construction, ends at `stop`; it also ends by itself when this process dies (its stdin closes).

    Args:
        spec: see flashjob.virtual.fleet.
        directory: for spec and log; exists.

    Raises:
        FlashJobError: it did not come up; with the end of its log.
    """

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self._control = str(spec["control"])
        log = directory / "fleet.log"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flashjob.virtual.fleet", str(dump(directory / "fleet.json", spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            self.stop()
            raise FlashJobError(
                "FleetNotReady", f"the virtual devices did not start: {log.read_text()[-500:]}", str(log)
            )
        self.ready = Ready.model_validate_json(line)
        self.devices: dict[str, ReadyDevice] = {device.name: device for device in self.ready.devices}

    def ask(self, verb: str, device: str, **more: Any) -> Any:
        """One control request. Raises FlashJobError with the fleet's own words."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self._control)
            line.sendall(json.dumps({"do": verb, "device": device, **more}).encode() + b"\n")
            answer = json.loads(line.makefile("rb").readline())
        if isinstance(answer, dict) and "error" in answer:
            raise FlashJobError("FleetRefused", f"{verb} {device}: {answer['error']}", "see flashjob/virtual/fleet.py")
        return answer

    def counters(self, device: str) -> dict[str, Any]:
        """What really happened to a device."""
        counters: dict[str, Any] = self.ask("counters", device)
        return counters

    def stop(self) -> None:
        """End the fleet and wait for it."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> "FleetProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
