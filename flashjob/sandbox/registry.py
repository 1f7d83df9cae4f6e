# SPDX-License-Identifier: Apache-2.0
"""A real OCI registry on loopback: file storage, deletion enabled, with a password or without."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import requests

from flashjob.errors import FlashJobError

from .pki import write_private
from .ports import ADDRESS_IN_USE, PORT_ATTEMPTS, free_port
from .process import Lifeline, Program

READY_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of a registry; the password is random unless given."""

    user: str = "flashjob"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)


class Registry:
    """A running registry. Make one with `start`; end it with `stop` or as a context manager."""

    def __init__(self, state_dir: Path, binary: Path, login: Login | None, host: str) -> None:
        self.host = host
        """host:port, as the first part of a reference; plain HTTP."""
        self.login = login
        self._state_dir = state_dir
        self._binary = binary
        self._lifeline = Lifeline()
        self._config = _configuration(state_dir, host, _password_file(state_dir, binary, login) if login else None)
        self.program = self._serve()

    @classmethod
    def start(cls, state_dir: Path, *, binary: Path, login: Login | None = None) -> Registry:
        """Start a registry and return when it answers.

        Args:
            state_dir: where blobs, the password file and the log are kept; an earlier state is continued.
            binary: the program (`toolchain.build(programs.REGISTRY, ...)`).
            login: who may push and pull; None: everybody on this machine.

        Raises:
            FlashJobError: `RegistryNotReady` or `ProgramEnded`, with the end of the log.
        """
        state_dir = state_dir.resolve()
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(PORT_ATTEMPTS):
            registry = cls(state_dir, binary, login, f"127.0.0.1:{free_port()}")
            try:
                registry._wait_ready()
            except FlashJobError as error:
                registry.stop()
                if attempt + 1 == PORT_ATTEMPTS or ADDRESS_IN_USE not in error.message:
                    raise
            except BaseException:
                registry.stop()
                raise
            else:
                return registry
        raise AssertionError("the last attempt returns or raises")

    def _serve(self) -> Program:
        log = self._state_dir / "registry.log"
        log.unlink(missing_ok=True)
        command = [str(self._binary), "serve", str(self._config)]
        return Program.start("registry", command, self._lifeline, log=log, cwd=self._state_dir)

    def halt(self) -> None:
        """Go down, as a registry in maintenance does; `resume` brings it back under the same address."""
        self.program.stop(_STOP_SECONDS)

    def resume(self) -> None:
        """Come back after `halt`; returns when it answers."""
        self.program = self._serve()
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        wanted = 401 if self.login else 200
        with requests.Session() as session:
            session.trust_env = False
            while True:
                self.program.require_running()
                try:
                    answer = str(session.get(f"http://{self.host}/v2/", timeout=2).status_code)
                except requests.RequestException as error:
                    answer = str(error)
                if answer == str(wanted):
                    return
                if time.monotonic() > deadline:
                    raise FlashJobError(
                        "RegistryNotReady", f"{self.host}: {wanted} expected, got {answer}", f"read {self.program.log}"
                    )
                time.sleep(_POLL_SECONDS)

    def docker_config(self, path: Path) -> Path:
        """Write a Docker `config.json` with this registry's login (mode 0600) and return its path."""
        auths: dict[str, Any] = {}
        if self.login is not None:
            auths[self.host] = {"username": self.login.user, "password": self.login.password}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps({"auths": auths}).encode())
        return path

    def stop(self) -> None:
        """Stop it; returns when it is gone."""
        self.program.stop(_STOP_SECONDS)
        self._lifeline.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _password_file(state_dir: Path, binary: Path, login: Login) -> Path:
    made = subprocess.run(
        [binary, "htpasswd", login.user], input=login.password, capture_output=True, text=True, check=False, timeout=30
    )
    if made.returncode != 0:
        raise FlashJobError("RegistryNotReady", f"htpasswd: {made.stderr.strip()}", "choose another user or password")
    path = state_dir / "htpasswd"
    write_private(path, made.stdout.encode())
    return path


def _configuration(state_dir: Path, host: str, password_file: Path | None) -> Path:
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(state_dir / "blobs")},
            "delete": {"enabled": True},
        },
        "http": {"addr": host, "relativeurls": True},
    }
    if password_file is not None:
        config["auth"] = {"htpasswd": {"realm": "flashjob", "path": str(password_file)}}
    path = state_dir / "config.yml"
    write_private(path, json.dumps(config).encode())  # JSON is YAML
    return path
