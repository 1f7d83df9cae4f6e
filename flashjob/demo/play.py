# SPDX-License-Identifier: Apache-2.0
"""The whole demo: act 1 at a bench while the control plane is compiled, act 2 on the cluster, the outcomes."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console

from flashjob.cluster.kubeapi import KubeApi
from flashjob.cluster.login import connect
from flashjob.errors import FlashJobError
from flashjob.sandbox import programs
from flashjob.sandbox.main import Sandbox
from flashjob.sandbox.process import Lifeline
from flashjob.sandbox.progress import build_progress
from flashjob.sandbox.registry import Login
from flashjob.sandbox.stack import Stack
from flashjob.sandbox.toolchain import build
from flashjob.terminal import heading

from . import act1
from .act2 import Stage
from .fleet_process import FleetProcess
from .materials import Materials, cast
from .real_firmware import real_images
from .scenarios import SCENARIOS, Outcome, Watch, private_keys_in_cluster

Made = TypeVar("Made")
ALL: Final = tuple(SCENARIOS)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    directory: Path
    scenarios: Sequence[str] = ALL
    devices: int = 8
    firmware: Path | None = None


@dataclass(slots=True)
class Report:
    """What was found, and how long each step took (seconds)."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether everything is as it must be; an empty report is not."""
        return bool(self.outcomes) and all(outcome.holds for outcome in self.outcomes)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started, 1)


async def play(
    options: Options, console: Console, watch: Watch, report: Report
) -> AsyncGenerator[tuple[Stage, KubeApi], None]:
    """Play it. Yields once, when everything is played and still stands, so that the caller can show and keep it.

    Raises:
        FlashJobError: something could not be brought up; what, where, and what to do next.
    """
    devices = cast(options.devices)
    firmware = real_images(options.firmware, [d.chip for d in devices]) if options.firmware else {}
    for image in firmware.values():
        console.print(
            f"real firmware for {image.chip}: {image.path} (calls itself {image.name!r})",
            highlight=False,
            soft_wrap=True,
        )
    materials = Materials.make(options.directory / "materials")
    with Lifeline() as lifeline, ThreadPoolExecutor(1) as pool, build_progress(console) as progress:
        compiled = pool.submit(
            lambda: [build(p, os.environ, progress, lifeline) for p in (programs.REGISTRY, programs.CONTROL_PLANE)]
        )
        try:
            heading(console, "Act 1: at a bench, without a cluster")
            with report.step("act 1: bench"):
                for bench in await act1.play(materials, options.directory / "bench", console):
                    report.outcomes.append(Outcome("bench", bench.device, bench.expected, bench.reason))
            with report.step("compile (cached for next time)"):
                await asyncio.wrap_future(compiled)
        except BaseException:
            lifeline.cut()  # nobody waits for the compiler then, and the compiler for nobody
            raise
    heading(console, "Act 2: on a cluster")
    login = Login()
    with report.step("control plane, registry, node, Akri"):
        sandbox = await _to_the_end(
            lambda: Sandbox.up(
                options.directory / "sandbox", os.environ, login=login, audit_log=options.directory / "audit.log"
            ),
            Sandbox.down,
        )
    with sandbox:
        (options.directory / "fleet").mkdir(exist_ok=True)
        with FleetProcess(materials.fleet(devices, options.directory / "fleet"), options.directory / "fleet") as fleet:
            stack = Stack(sandbox, materials.key("grant"), materials.key("listing"))
            stage = Stage(options.directory, console, materials, devices, sandbox, stack, fleet, login, firmware)
            with report.step("operator, gateway, handlers"):
                await _to_the_end(stack.up)
                stage.publish_login()
            stage.say(
                f"control plane, registry, operator, gateway and two discovery handlers run; {len(devices)} devices"
            )
            api = await connect(sandbox.plane.kubeconfig)
            try:
                with report.step("enrolment"):
                    await stage.enroll()
                with report.step("discovery"):
                    stage.configurations()
                    await stage.listed(api)
                stage.say("every port and every device that can prove itself is an Akri Instance")
                for name in options.scenarios:
                    with report.step(f"scenario {name}"):
                        report.outcomes += await SCENARIOS[name](stage, api, watch)
                leaked = ", ".join(private_keys_in_cluster(stage)) or "none"
                report.outcomes.append(Outcome("keys", "Secrets with signer's or owner's private key", "none", leaked))
                yield stage, api
            finally:
                await api.close()


async def _to_the_end(function: Callable[[], Made], undo: Callable[[Made], None] = lambda _made: None) -> Made:
    """Run `function` in a thread. Interrupted meanwhile, it is let finish and undone, so that nothing is half there."""
    running = asyncio.create_task(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(FlashJobError):
            undo(await running)
        raise


def choose(scenario: str) -> Sequence[str]:
    """The scenarios of a name. Raises FlashJobError for an unknown one."""
    if scenario == "all":
        return ALL
    if scenario in SCENARIOS:
        return (scenario,)
    raise FlashJobError("UnknownScenario", f"{scenario!r} is none of {', '.join(ALL)}, all", "flashjob demo --help")
