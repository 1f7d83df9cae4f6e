# SPDX-License-Identifier: Apache-2.0
"""`make example-pipeline`: firmware from C source to a device's proof, with nothing between them but what users have.

1. The example's C sources are compiled for the ESP32-C3: `thermostat` 1.0.0 and 1.1.0, `doorlock` 1.0.0. One of them is
   compiled twice: the bytes must be the same.
2. `firmware-pipeline` pushes each as a signed artifact to a real registry that wants a password (`--layout`: to an OCI
   layout directory, then no Go is needed), inspects and verifies it; `attest policy generate` makes the policy from that.
3. A virtual ESP32-C3 with enforced secure boot leaves the factory with thermostat 1.0.0 and the example's bootloader. It
   proves that it runs it (nothing is written), is updated to 1.1.0, becomes a door lock, and proves each.
4. A proof is the bench's verdict, and the measurement in it must be the one computed here from the compiler's output.

Exit codes: 0 everything was proven; 1 something was not; 2 wrong usage; 69 a program is missing; 130 interrupted.
"""

import argparse
import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from attestation import keys
from attestation.directory import TrustDirectory
from attestation.errors import Reject
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.measurement import measure
from flashjob import terminal
from flashjob.bench import Wish, flash_one
from flashjob.cli.interruption import Interruption
from flashjob.errors import FlashJobError
from flashjob.sandbox import programs
from flashjob.sandbox.process import Lifeline
from flashjob.sandbox.progress import build_progress
from flashjob.sandbox.registry import Login, Registry
from flashjob.sandbox.toolchain import build
from flashjob.virtual import secure_boot
from flashjob.virtual.adversaries import Behaviour
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.fleet import ReadyDevice
from flashjob.virtual.profile import Owner, make_identity
from flashjob.wire.gateway import Outcome
from flashjob.wire.pod import Before, Safety

from . import act1
from .materials import MAKER_SECRET, Materials
from .workplace import Workplace

CHIP: Final = "esp32c3"
UNAVAILABLE: Final = 69
_BOOTLOADER_ROOM: Final = 0x8000


class Unproven(Exception):
    """A step that had to be proven was not."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """One build: its folder, and the application as it is flashed (signed for secure boot)."""

    name: str
    version: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / f"{self.name}.bin"

    @property
    def measurements(self) -> set[str]:
        """Every measurement that a device may report for it, in hex."""
        return {found.value.hex() for found in measure(self.image.read_bytes())}

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def compile_firmware(sources: Path, name: str, version: str, folder: Path) -> Firmware:
    """Run the example's own build, then sign the application as the maker of the board does.

    Raises:
        FlashJobError: `CompilerMissing` or `BuildFailed`, with the build's own words.
    """
    command = [sys.executable, str(sources / "build.py"), name, version, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == UNAVAILABLE:
        raise FlashJobError("CompilerMissing", done.stderr.strip(), "install it, then try again")
    if done.returncode:
        raise FlashJobError("BuildFailed", done.stderr.strip(), f"correct what is wrong in {sources}")
    made = Firmware(name, version, folder)
    made.image.write_bytes(secure_boot.sign(made.image.read_bytes(), secure_boot.maker_key(MAKER_SECRET.encode())))
    return made


class Shop:
    """Where artifacts are pushed to: a registry, or a layout directory."""

    def __init__(self, place: str, directory: Path, environment: Mapping[str, str], console: Console) -> None:
        self.place, self._directory, self._environment, self._console = place, directory, dict(environment), console
        self.options = () if place.startswith("oci:") else ("--plain-http",)

    def run(self, *arguments: str) -> list[str]:
        """Run `firmware-pipeline` as a user would; its lines of output.

        Raises:
            FlashJobError: `PipelineFailed`, with its own words.
        """
        program = Path(sys.executable).with_name("firmware-pipeline")
        words = [*arguments, *self.options]
        self.say(f"firmware-pipeline {' '.join(words)}")
        done = subprocess.run([program, *words], env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FlashJobError("PipelineFailed", f"{arguments[0]} ended with {done.returncode}", done.stderr.strip())
        return done.stdout.strip().splitlines()

    def generate(self, report: str, *options: str) -> bytes:
        """Run `attest policy generate` over a report of `inspect --json`; the policy, YAML.

        Raises:
            FlashJobError: `PipelineFailed`, with its own words.
        """
        words = ["policy", "generate", "-", *options]
        self.say(f"attest {' '.join(words)}")
        program = Path(sys.executable).with_name("attest")
        done = subprocess.run(
            [program, *words], input=report.encode(), env=self._environment, capture_output=True, check=False
        )
        if done.returncode:
            raise FlashJobError("PipelineFailed", f"attest ended with {done.returncode}", done.stderr.decode().strip())
        return done.stdout

    def say(self, command: str) -> None:
        """Show a command as it would be typed in this run's directory."""
        self._console.print(
            f"$ {command.replace(f'{self._directory}/', '')}",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def reference(self, firmware: Firmware) -> str:
        """Where one build goes: a repository (or layout) per application, a tag per version."""
        return f"{self.place}{'/' if self.options else '-'}{firmware.name}:{firmware.version}"


def publish(shop: Shop, firmware: Firmware, sequence: int, materials: Materials, console: Console) -> str:
    """Push, inspect and verify one build; its reference, pinned by digest."""
    pushed = shop.run(
        "push", str(firmware.folder), shop.reference(firmware), "--sign", str(materials.key("signer")),
        "--release-key", str(materials.key("release")), "--sequence", str(sequence),
    )[-1]  # fmt: skip
    for line in shop.run("inspect", pushed)[1:]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    verified = shop.run("verify", pushed, "--key", str(materials.public("signer")), "--layers")[-1]
    if verified != pushed:
        raise Unproven(f"verify named {verified}, pushed was {pushed}")
    return pushed


def policy(shop: Shop, pinned: Sequence[str], materials: Materials, directory: Path) -> bytes:
    """What the judge is told, made from the artifacts: the bootloader of the first one, the applications of all; beside
    them the maker's key and the signer's.

    Raises:
        FlashJobError: `PipelineFailed`, with the program's own words.
    """
    trusted = secure_boot.key_digest(secure_boot.maker_key(MAKER_SECRET.encode()).public_key())
    base, made = directory / "policy.yaml", b""
    for number, reference in enumerate(pinned):
        if number:
            base.write_bytes(made)
            options = ["--base", str(base)]
        else:
            options = ["--with-bootloader", "--signer", f"ci={materials.public('signer')}"]
            options += ["--authority", hashlib.sha512(trusted).hexdigest()]
        (report,) = shop.run("inspect", "--json", reference)
        made = shop.generate(report, *options)
    return made


def board(factory: Firmware, materials: Materials, behaviour: Behaviour | None) -> VirtualDevice:
    """A virtual ESP32-C3 as it leaves the factory, secure boot enforced."""
    identity = make_identity("hall", CHIP, secret=MAKER_SECRET.encode(), verifies_signatures=True)
    owner = Owner(*([keys.from_pem(materials.public(name).read_text())] for name in ("grant", "release")))
    device = VirtualDevice("hall", identity, owner, behaviour=behaviour, confirm_seconds=60)
    bootloader = (factory.folder / "bootloader.bin").read_bytes().ljust(_BOOTLOADER_ROOM, b"\xff")
    table = (factory.folder / "partition-table.bin").read_bytes()
    device.factory_flash(factory.image.read_bytes(), extra=[(0, bootloader), (_BOOTLOADER_ROOM, table)])
    return device


async def prove(
    device: VirtualDevice,
    shop: Shop,
    reference: str,
    firmware: Firmware,
    expected: Outcome,
    trust: Path,
    console: Console,
) -> None:
    """Flash and judge once. Raises Unproven unless the device proved exactly this build, in the expected way."""
    shop.say(f"flashjob flash {reference} --host {device.server.address} --trust {trust}")
    wish = Wish(
        reference, None, device.server.address, trust, None, None, Before.IDENTITY, Safety(),
        plain_http=not reference.startswith("oci:"),
    )  # fmt: skip
    result, verdict = await flash_one(wish, console)
    if verdict is None or verdict.outcome is not expected or verdict.measurement is None:
        raise Unproven(f"{firmware}: {verdict.reason if verdict else result.reason}: {(verdict or result).message}")
    claimed = (verdict.application, verdict.version, verdict.measurement.value)
    if claimed[:2] != (firmware.name, firmware.version) or claimed[2] not in firmware.measurements:
        raise Unproven(f"{firmware}: the device proved {' '.join(claimed[:2])}, measured {claimed[2][:16]}...")
    console.print(
        f"[green]{verdict.reason}[/]: {verdict.application} {verdict.version} runs, {result.bytes_written} bytes written\n"
        f"  measured       {claimed[2]}\n  boot id        {verdict.boot_id}\n  root of trust  {verdict.root_of_trust}",
        highlight=False,
        soft_wrap=True,
    )


async def play(
    sources: Path, directory: Path, shop: Shop, console: Console, behaviour: Behaviour | None = None
) -> None:
    """Play it all below `directory`.

    Raises:
        Unproven: a proof failed.
        FlashJobError, PipelineError, Reject: something could not be done.
    """
    terminal.heading(console, "From C source to images")
    builds = [
        compile_firmware(sources, name, version, directory / f"{name}-{version}")
        for name, version in (("thermostat", "1.0.0"), ("thermostat", "1.1.0"), ("doorlock", "1.0.0"))
    ]
    for made in builds:
        data = made.image.read_bytes()
        console.print(
            f"{made!s:<18} {len(data):>6} bytes  sha256:{hashlib.sha256(data).hexdigest()}",
            highlight=False,
            soft_wrap=True,
        )
    again = compile_firmware(sources, builds[1].name, builds[1].version, directory / "again")
    if again.image.read_bytes() != builds[1].image.read_bytes():
        raise Unproven(f"{again} compiled twice gave two images")
    console.print(f"compiled again, {again} has the same bytes")

    terminal.heading(console, "From images to signed artifacts")
    materials = Materials.make(directory / "materials")
    pinned = [publish(shop, made, number + 1, materials, console) for number, made in enumerate(builds)]

    terminal.heading(console, "From artifacts to proof")
    trust = TrustDirectory.create(directory / "trust")
    trust.write_grant_key(keys.private_from_pem(materials.key("grant").read_bytes()))
    shutil.copy(materials.public("signer"), trust.root / "signers" / "ci.pub")
    shutil.copy(materials.public("release"), trust.root / "release" / "owner.pub")
    (trust.root / "policies" / "field.yaml").write_bytes(policy(shop, pinned, materials, directory))
    device = board(builds[0], materials, behaviour)
    await device.start()
    try:
        await act1.enroll(trust, "field", _reached(device), directory)
        steps = (Outcome.ALREADY_RUNNING, Outcome.PROVEN, Outcome.PROVEN)
        for reference, made, expected in zip(pinned, builds, steps, strict=True):
            await prove(device, shop, reference, made, expected, trust.root, console)
    finally:
        await device.stop()


def _reached(device: VirtualDevice) -> ReadyDevice:
    hardware = device.identity.hardware
    return ReadyDevice(
        name=device.name,
        chip=CHIP,
        transport="network",
        address=device.server.address,
        ueid=device.identity.ueid.hex(),
        mac=":".join(f"{byte:02x}" for byte in hardware.mac),
        public_key=keys.encode_cose(device.identity.anchor).hex(),
        tier="SignedBoot",
        revision=hardware.revision,
        flash_size=hardware.flash_size,
    )


def _registry(directory: Path, console: Console) -> Registry:
    with Lifeline() as lifeline, build_progress(console) as progress:
        binary = build(programs.REGISTRY, os.environ, progress, lifeline)
    return Registry.start(directory / "registry", binary=binary, login=Login())


async def _play(sources: Path, directory: Path, layout: bool, console: Console, interruption: Interruption) -> None:
    interruption.watch()
    server: AbstractContextManager[Registry | None] = nullcontext() if layout else _registry(directory, console)
    with server as registry:
        environment = dict(os.environ)
        if registry is not None:
            environment["DOCKER_CONFIG"] = str(registry.docker_config(directory / "docker" / "config.json").parent)
            os.environ["DOCKER_CONFIG"] = environment["DOCKER_CONFIG"]
        place = f"{registry.host}/examples" if registry else f"oci:{directory}/layout"
        await play(sources, directory, Shop(place, directory, environment, console), console)


def main() -> int:
    """Entry point; see this module's docstring for the exit codes."""
    parser = argparse.ArgumentParser(prog="make example-pipeline", description="From C source to a device's proof.")
    parser.add_argument("sources", type=Path, help="the directory with build.py")
    parser.add_argument("--layout", action="store_true", help="push to an OCI layout instead of a registry")
    wanted = parser.parse_args()
    console = terminal.console()
    with Workplace() as workplace, Interruption() as interruption:
        try:
            asyncio.run(_play(wanted.sources.resolve(), workplace.directory, wanted.layout, console, interruption))
        except (FlashJobError, PipelineError, Reject, Unproven, asyncio.CancelledError) as error:
            if interruption.number:
                console.print("stopped; nothing is left running")
                return 128 + interruption.number
            console.print(f"[bold red]not proven[/]: {error}", highlight=False, soft_wrap=True)
            missing = isinstance(error, FlashJobError) and error.reason == "CompilerMissing"
            return UNAVAILABLE if missing else 1
    console.print("[bold green]every step was proven by the device itself[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
