# SPDX-License-Identifier: Apache-2.0
"""`flashjob device conformance`: the whole device protocol, good and hostile, against one device."""

import asyncio
import contextlib
import json
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from attestation import keys
from attestation.errors import Reject
from attestation.keys import PrivateKey
from flashjob import terminal
from flashjob.cli.place import BAUD, RESET, STUB, Baud, Place, Reset, Stub, Target, place, serial_settings
from flashjob.conformance import report, suite
from flashjob.conformance.check import Broken, Check, Result
from flashjob.conformance.line import HttpLine, Line, SerialLine, Silent
from flashjob.conformance.subject import Materials, Subject
from flashjob.errors import FlashJobError
from flashjob.flasher.esptool import Esptool
from flashjob.flasher.transports.network import read_address
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.reasons import Reason
from flashjob.wire.serial import SerialSettings

from .enroll import read_anchor

_LAST_WORDS_SECONDS = 10.0


def conformance(
    target: Target,
    grant_key: Annotated[
        Path | None, typer.Option(help="PEM private half of a grant key that the device holds: a test key.")
    ] = None,
    release_key: Annotated[
        Path | None, typer.Option(help="PEM private half of a release key that the device holds: a test key.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Application that the device may boot: it is installed again and again.")
    ] = None,
    sequence: Annotated[
        int, typer.Option(min=1, help="Sequence of the test releases; the device ends with this one plus 1.")
    ] = 1,
    generation: Annotated[
        int | None,
        typer.Option(
            min=1, help="Test successions from this generation on: owner keys are changed; above what the device holds."
        ),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="The device's UDS public key, as for enroll; without it the chain has no root.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only checks of this name, as install.*; repeatable.")] = None,
    reset_command: Annotated[
        str | None, typer.Option(help="Command that presses the reset button. Serial: by the loader where not given.")
    ] = None,
    baud: Baud = BAUD,
    reset: Reset = RESET,
    stub: Stub = STUB,
    boot_seconds: Annotated[float, typer.Option(min=1, help="Longest wait for the device to come back.")] = 60.0,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit XML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Ask everything that the device protocol says, and much that no honest host would ask.

    Without keys nothing is written to the device. With --grant-key, --release-key and --image it is a specimen: it is
    installed, reverted and reset again and again, and ends with the image confirmed. Use test keys, not your fleet's.

    Exit codes: 0 it conforms (what was not testable is listed); 1 it does not; 2 usage; 3 it cannot be reached.
    """
    where = place(target)
    checks = suite.chosen(only or ())
    if not checks:
        raise typer.BadParameter(f"no check is called {', '.join(only or ())}")
    if image is not None and not image.is_file():
        raise typer.BadParameter(f"--image {image} is no file")
    materials = Materials(
        grant_key=_private(grant_key, "--grant-key"),
        release_key=_private(release_key, "--release-key"),
        image=image.read_bytes() if image else None,
        sequence=sequence,
        generation=generation,
        anchor=read_anchor(anchor) if anchor else None,
        reset=_reset(where, serial_settings(baud, reset, stub), reset_command),
        boot_seconds=boot_seconds,
    )
    console = terminal.console(stderr=as_json)

    def seen(result: Result) -> None:
        if not as_json and not result.elsewhere:
            console.print(report.line(result), highlight=False)

    try:
        results = asyncio.run(_run(Subject(_line(where), materials), checks, seen))
    except Silent as error:
        step = "check cable, power and address (https:// where it speaks TLS); the application must run"
        raise _unreachable(FlashJobError(Reason.DEVICE_UNREACHABLE, f"{where.name}: {error}", step)) from error
    if junit is not None:
        junit.write_bytes(report.to_junit(where.name, results))
    if as_json:
        typer.echo(json.dumps(report.to_json(where.name, results), sort_keys=True))
    else:
        verdict = "[bold green]conforms[/]" if report.conforms(results) else "[bold red]does not conform[/]"
        console.print(f"{where.name} {verdict}: {report.summary(results)}", highlight=False)
    raise typer.Exit(ExitCode.DONE if report.conforms(results) else ExitCode.FAILED)


async def _run(subject: Subject, checks: tuple[Check, ...], seen: Callable[[Result], None]) -> list[Result]:
    try:
        with contextlib.suppress(Broken):  # that it answers is enough; what it answers is the suite's subject
            await subject.info()
        return await suite.run(subject, checks, seen)
    except asyncio.CancelledError:
        with contextlib.suppress(Broken, Silent, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await subject.settle()
        raise
    finally:
        await subject.line.close()


def _line(where: Place) -> Line:
    if where.port:
        return SerialLine(where.port)
    return HttpLine(*read_address(where.address or ""))


def _reset(where: Place, settings: SerialSettings, command: str | None) -> Callable[[], Awaitable[None]] | None:
    words = shlex.split(command) if command else []

    async def by_command() -> None:
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
        if await process.wait() != 0:
            raise Broken(f"the reset command ended with {process.returncode}")

    async def by_loader() -> None:
        async with Esptool(where.port or "", settings) as tool:
            await tool.probe()
            await tool.reset()

    if words:
        return by_command
    return by_loader if where.port else None


def _private(path: Path | None, option: str) -> PrivateKey | None:
    if path is None:
        return None
    try:
        return keys.private_from_pem(path.read_bytes())
    except (OSError, Reject) as error:
        raise typer.BadParameter(f"{option} {path} is no PEM private key: {error}") from error


def _unreachable(error: FlashJobError) -> typer.Exit:
    from flashjob.cli.main import show

    show(terminal.console(stderr=True), error)
    return typer.Exit(ExitCode.REFUSED)
