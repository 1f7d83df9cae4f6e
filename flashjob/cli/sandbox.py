# SPDX-License-Identifier: Apache-2.0
"""`flashjob sandbox up`: a real control plane, a registry and FlashJob on this machine, until Ctrl-C.

Rules (tests name them):

1. It runs in the foreground and ends everything it started: at Ctrl-C, at SIGTERM, or when one of its programs ends by
   itself, which is an error and names the program.
2. No kubeconfig but its own is read or written. What is needed to use it is printed.
3. State is kept: the next `up` with the same directory continues it, with the same keys and the same password.
"""

import os
import secrets
import shlex
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer

from flashjob import terminal
from flashjob.demo.materials import Materials
from flashjob.sandbox.main import Sandbox
from flashjob.sandbox.progress import build_progress
from flashjob.sandbox.registry import Login
from flashjob.sandbox.stack import Stack

_LOOK_EVERY_SECONDS: Final = 1.0

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def sandbox() -> None:
    """FlashJob on a real control plane of its own, without root or containers."""


def default_state(environ: Mapping[str, str]) -> Path:
    """$XDG_STATE_HOME/flashjob/sandbox, else ~/.local/state/flashjob/sandbox."""
    home = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME") or "/", ".local", "state")
    return Path(home) / "flashjob" / "sandbox"


@app.command()
def up(
    state: Annotated[
        Path | None, typer.Option(help="Where all state is kept; default $XDG_STATE_HOME/flashjob/sandbox.")
    ] = None,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="The namespace for jobs and devices.")
    ] = "default",
) -> None:
    """Start everything and keep it running; the first time compiles it, which is cached."""
    console = terminal.console()
    where = (state or default_state(os.environ)).absolute()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    _interrupt_once()
    keys = Materials.make(where / "materials")
    with build_progress(console) as progress:
        running = Sandbox.up(where, os.environ, job_namespaces=(namespace,), login=_login(where), progress=progress)
    with running:
        console.print("control plane and registry run; starting FlashJob", highlight=False)
        stack = Stack(running, keys.key("grant"), keys.key("listing"), job_namespace=namespace)
        stack.up()
        docker = running.registry.docker_config(where / "docker" / "config.json")
        text = instructions(
            kubectl=running.plane.binary,
            kubeconfig=running.plane.kubeconfig,
            registry=running.registry.host,
            docker=docker.parent,
            keys=keys,
            namespace=namespace,
        )
        console.print(text, highlight=False, markup=False, soft_wrap=True, emoji=False)
        try:
            while True:
                time.sleep(_LOOK_EVERY_SECONDS)
                running.require_running()
        except KeyboardInterrupt:
            console.print("ending everything", highlight=False)


def instructions(
    *, kubectl: Path, kubeconfig: Path, registry: str, docker: Path, keys: Materials, namespace: str
) -> str:
    """What to type in another terminal. Paths are quoted for a shell."""
    config = shlex.quote(str(kubeconfig))
    signer, release = shlex.quote(str(keys.key("signer"))), shlex.quote(str(keys.key("release")))
    return "\n".join(
        [
            "",
            "FlashJob runs. In another terminal:",
            "",
            f"  export KUBECONFIG={config}",
            f"  alias kubectl={shlex.quote(shlex.quote(str(kubectl)) + ' kubectl')}",
            f"  kubectl get flashjobs,devices,instances -n {namespace}",
            "",
            f"  export DOCKER_CONFIG={shlex.quote(str(docker))}",
            f"  firmware-pipeline push --plain-http --sign {signer} --release-key {release} ... {registry}/NAME:TAG",
            f"  flashjob watch JOB -n {namespace} --kubeconfig {config}",
            "",
            "Ctrl-C here ends everything; the state is kept.",
        ]
    )


def _login(state: Path) -> Login:
    """Rule 3: drawn once."""
    path = state / "registry-password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return Login(password=path.read_text())


def _interrupt_once() -> None:
    """Rule 1: SIGTERM ends like Ctrl-C, and a second one does not disturb the end."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
