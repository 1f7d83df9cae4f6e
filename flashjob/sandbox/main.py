# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a whole: control plane, registry, and for each node a node agent and a stand-in Akri agent.

Everything runs as a program of its own behind a tether, every identity has its own kubeconfig, and all state is below
one directory. `Sandbox.down`, Ctrl-C, or the death of this process leave nothing running.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from flashjob.errors import FlashJobError

from . import programs
from .akri.handlers import SOCKET_NAME
from .apply import SYSTEM_NAMESPACE, install
from .launcher import ControlPlane
from .process import Program
from .registry import Login, Registry
from .toolchain import Progress, build, silent

NODE_NAME: Final = "sandbox"
ENTRY_POINT: Final = "flashjob.flasher"
_PACKAGE_ROOT: Final = str(Path(str(files("flashjob"))).parent)
_AGENT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_SOCKET_PATH_LIMIT: Final = 100
_STOP_SECONDS: Final = 8.0


class Sandbox:
    """A running sandbox. Make one with `up`; end it with `down` or as a context manager."""

    def __init__(self, state_dir: Path, plane: ControlPlane, registry: Registry, environ: Mapping[str, str]) -> None:
        self.state_dir = state_dir
        self.plane = plane
        self.registry = registry
        self._environ = environ
        self._programs: list[Program] = []
        self._akri_directories: dict[str, Path] = {}
        self._temporary: list[Path] = []
        self._lock: IO[str] | None = None

    @classmethod
    def up(
        cls,
        state_dir: Path,
        environ: Mapping[str, str],
        *,
        nodes: Sequence[str] = (NODE_NAME,),
        job_namespaces: Sequence[str] = ("default",),
        login: Login | None = None,
        audit_log: Path | None = None,
        entry_points: Sequence[str] = (ENTRY_POINT,),
        progress: Progress = silent,
    ) -> Sandbox:
        """Build what is not built yet, start everything, install FlashJob's manifests, wait until the nodes are ready.

        Args:
            state_dir: where all state is kept (mode 0700); one sandbox at a time; an earlier state is continued.
            environ: the environment that builds and agents inherit.
            nodes: names of the nodes.
            job_namespaces: namespaces that shall hold FlashJobs.
            login: user and password of the registry; None: no password.
            audit_log: where to write one line per API request.
            entry_points: modules that pods may run.
            progress: told about the steps of a build.

        Raises:
            FlashJobError: what could not be started, why, and what to do.
        """
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context(_lock(state_dir))
            registry_binary = build(programs.REGISTRY, environ, progress)
            binary = build(programs.CONTROL_PLANE, environ, progress)
            plane = undo.enter_context(
                ControlPlane.start(state_dir / "control-plane", binary=binary, audit_log=audit_log)
            )
            registry = Registry.start(state_dir / "registry", binary=registry_binary, login=login)
            sandbox = undo.enter_context(cls(state_dir, plane, undo.enter_context(registry), environ))
            install(plane, job_namespaces=tuple(job_namespaces))
            for node in nodes:
                sandbox._start_node(node, entry_points)
            for node in nodes:
                sandbox._wait_for_node(node)
            sandbox._lock = lock
            undo.pop_all()
        return sandbox

    def _start_node(self, node: str, entry_points: Sequence[str]) -> None:
        kubeconfig = self.identity("node-agent")
        allowed = [argument for module in entry_points for argument in ("--entry-point", module)]
        root = self.state_dir / "nodes" / node
        certificate, key = self.plane.authority.issue(f"node-{node}", f"node-{node}", hosts=["127.0.0.1"], server=True)
        logs = ["--serving-certificate", str(certificate), "--serving-key", str(key), "--client-ca", str(self.plane.ca)]
        arguments = ["--kubeconfig", str(kubeconfig), "--name", node, "--root", str(root), *logs, *allowed]
        self.spawn(f"node-agent-{node}", [sys.executable, "-m", "flashjob.sandbox.node", *arguments])
        kubeconfig, temporary = self.identity("akri-agent"), None
        directory = self.state_dir.resolve() / "akri" / node
        if len(str(directory / SOCKET_NAME)) > _SOCKET_PATH_LIMIT:
            directory = temporary = Path(tempfile.mkdtemp(prefix="flashjob-akri-"))
            self._temporary.append(temporary)
        self._akri_directories[node] = directory
        arguments = ["--kubeconfig", str(kubeconfig), "--node", node, "--directory", str(directory)]
        command = [sys.executable, "-m", "flashjob.sandbox.akri", *arguments]
        self.spawn(f"akri-agent-{node}", command, folder=temporary)  # it goes even when this process is killed

    def _wait_for_node(self, node: str) -> None:
        """Ready: the node is schedulable and its Akri agent takes registrations."""
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            self.require_running()
            try:
                item = self.plane.request("GET", f"/api/v1/nodes/{node}")
            except FlashJobError:
                item = {"spec": {"taints": ["not registered yet"]}}
            if not item["spec"].get("taints") and (self._akri_directories[node] / SOCKET_NAME).exists():
                return
            if time.monotonic() > deadline:
                raise FlashJobError(
                    "NodeNotReady",
                    f"node {node} is not ready within {_AGENT_SECONDS:.0f} s; taints: {item['spec'].get('taints')}",
                    f"read the logs in {self.log_directory}",
                )
            time.sleep(_POLL_SECONDS)

    @property
    def log_directory(self) -> Path:
        """Where programs started with `spawn` write their output; the components' logs are in control-plane/logs."""
        return self.state_dir / "logs"

    def identity(self, name: str, namespace: str = SYSTEM_NAMESPACE) -> Path:
        """The kubeconfig of service account `flashjob-NAME`."""
        return self.plane.service_account_kubeconfig(namespace, f"flashjob-{name}")

    def akri_directory(self, node: str = NODE_NAME) -> Path:
        """Where discovery handlers of a node find the registration socket and make their own."""
        return self._akri_directories[node]

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
    ) -> Program:
        """Start a further program that lives no longer than the sandbox.

        Args:
            name: names the log.
            command: what to run.
            env: added to the sandbox's environment.
            folder: deleted when it has ended.
        """
        log = self.log_directory / f"{name}.log"
        log.unlink(missing_ok=True)
        # The programs must find the very package that starts them, installed or not.
        python_path = os.pathsep.join([_PACKAGE_ROOT, *filter(None, [self._environ.get("PYTHONPATH")])])
        full = {**self._environ, "PYTHONPATH": python_path, **(env or {})}
        program = Program.start(name, command, self.plane.lifeline, log=log, env=full, folder=folder)
        self._programs.append(program)
        return program

    def forget(self, program: Program) -> None:
        """Stop a spawned program; its end is no failure from now on."""
        self._programs.remove(program)
        program.stop(_STOP_SECONDS)

    def require_running(self) -> None:
        """Raise `ProgramEnded` if a component or an agent has ended by itself."""
        self.plane.require_running()
        for program in (self.registry.program, *self._programs):
            program.require_running()

    def down(self) -> None:
        """Stop everything, in the reverse order of starting; returns when all of it is gone."""
        spawned, self._programs = self._programs, []
        for program in spawned:
            program.terminate()
        for program in reversed(spawned):
            program.stop(_STOP_SECONDS)
        for folder in self._temporary:  # one whose agent did not come to start
            shutil.rmtree(folder, ignore_errors=True)
        self.registry.stop()
        self.plane.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _lock(state_dir: Path) -> IO[str]:
    lock = (state_dir / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise FlashJobError(
            "StateInUse", f"another sandbox runs in {state_dir}", "end it, or use another state directory"
        ) from error
    os.set_inheritable(lock.fileno(), False)
    return lock
