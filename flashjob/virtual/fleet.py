# SPDX-License-Identifier: Apache-2.0
"""A process that hosts virtual devices: `python -m flashjob.virtual.fleet SPEC.json`.

It prints one JSON line when all of them run (`Ready`), serves a control socket, and ends with its devices unplugged at
SIGTERM, SIGINT, the control request ``stop``, or, with ``"followStdin": true``, when its standard input ends.

Control socket (UNIX, JSON lines; each request gets one line back, ``{"error": text}`` if it was wrong)::

    {"do": "counters", "device": NAME}                what really happened to the device
    {"do": "status", "device": NAME}                  the device's entry as in the ready line, as it is now
    {"do": "reset" | "unplug" | "replug", "device": NAME}
    {"do": "fault", "device": NAME, "fault": {"kind": "CablePulled", "percent": 30}}
    {"do": "clearFaults", "device": NAME}
    {"do": "behave", "device": NAME, "behaviour": "RunsOldImage"}      or {"kind": "LosesConfirm", "times": 3}
    {"do": "provision", "device": NAME, "grantKeys": [KEY], "releaseKeys": [KEY], "batch": TEXT}      a virgin device, once
    {"do": "stop"}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation import keys
from attestation.keys import Alg, PublicKey
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.esp.image import parse_image
from firmware_pipeline.esp.signature import find_signatures
from flashjob.virtual import secure_boot
from flashjob.virtual.adversaries import Behaviour, OtherDevicesEvidence, make_behaviour
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import make_fault
from flashjob.virtual.port import SerialPort
from flashjob.virtual.profile import DEFAULT_CONFIRM_SECONDS, Owner, Tier, make_identity
from flashjob.virtual.timing import Timing
from flashjob.virtual.virgin import provision

_LINE = 64 * 1024


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class DeviceSpec(_Model):
    """One device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
    chip: str = "esp32s3"
    transport: Literal["serial", "network"] = "serial"
    tier: Tier = "SignedBoot"
    alg: Literal["ES256", "EdDSA"] = "ES256"
    app: Annotated[str, Field(description="Application image that it leaves the factory with; signed if need be.")] = ""
    behaviour: str | dict[str, Any] = "Honest"
    faults: tuple[dict[str, Any], ...] = ()
    confirm_seconds: Annotated[int, Field(ge=1)] = DEFAULT_CONFIRM_SECONDS
    line: Annotated[Literal["pty", "socket", "rfc2217"], Field(description="What carries a serial line.")] = "pty"
    simulate_rate: bool = False
    erase_seconds: Annotated[float, Field(ge=0, description="Per 4 KiB sector.")] = 0.0
    radio_bytes_per_second: Annotated[float, Field(ge=0, description="0: as fast as it comes.")] = 0.0
    speed: Annotated[float, Field(gt=0, description="Divides all simulated times.")] = 1.0
    locked_loader: bool = False
    secure_version: Annotated[int, Field(ge=0, le=32)] = 0
    anti_rollback: bool = False
    flash_size: str = "4MB"
    port: Annotated[int, Field(ge=0, lt=65536)] = 0
    moves: bool = False
    tls: Annotated[bool, Field(description="A network device that speaks TLS.")] = False
    virgin: Annotated[bool, Field(description="Not provisioned yet: it holds none of the owner's keys.")] = False


class FleetSpec(_Model):
    """The whole file."""

    directory: Annotated[str, Field(description="Where the links to serial ports appear, one per device name.")]
    control: Annotated[str, Field(description="Path of the control socket; empty: none.")] = ""
    secret: Annotated[str, Field(description="Maker's secret: same secret and names, same devices.")] = ""
    grant_keys: Annotated[
        tuple[str, ...], Field(description="Owner's public keys: COSE_Key in hex, or PEM.", max_length=2)
    ] = ()
    release_keys: Annotated[
        tuple[str, ...], Field(description="Owner's public keys: COSE_Key in hex, or PEM.", max_length=2)
    ] = ()
    follow_stdin: bool = False
    devices: Annotated[tuple[DeviceSpec, ...], Field(min_length=1, max_length=2000)]


class ReadyDevice(_Model):
    """How to reach and to enrol one device."""

    name: str
    chip: str
    transport: Literal["serial", "network"]
    tty: str = ""
    link: str = ""
    address: str = ""
    ueid: str
    mac: str
    public_key: Annotated[str, Field(description="Anchor: COSE_Key, hex.")]
    tier: str
    revision: int
    flash_size: int


class Ready(_Model):
    """The line that the process prints."""

    event: Literal["ready"] = "ready"
    control: str = ""
    devices: tuple[ReadyDevice, ...]


class Fleet:
    """The devices of one spec. Raises ValueError or PipelineError for a spec that cannot be built."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self.stopped = asyncio.Event()
        owner = Owner(map(_key, spec.grant_keys), map(_key, spec.release_keys))
        self.devices: dict[str, VirtualDevice] = {}
        applications = _Applications(spec.secret.encode())
        for entry in spec.devices:
            if entry.name in self.devices:
                raise ValueError(f"two devices are called {entry.name}")
            self.devices[entry.name] = _build(entry, spec, owner, applications)
        for entry in spec.devices:
            self.devices[entry.name].behaviour = self._behaviour(entry.behaviour)

    async def start(self) -> Ready:
        """Start all devices; returns how to reach them."""
        for device in self.devices.values():
            await device.start()
        return self.ready()

    async def stop(self) -> None:
        """Power all devices down; ports, links and addresses are gone afterwards."""
        await asyncio.gather(*(device.stop() for device in self.devices.values()))

    def ready(self) -> Ready:
        """The ready line as it would be now."""
        return Ready(control=self.spec.control, devices=tuple(map(self.describe, self.spec.devices)))

    def describe(self, entry: DeviceSpec) -> ReadyDevice:
        """One device's entry."""
        device = self.devices[entry.name]
        identity, hardware = device.identity, device.identity.hardware
        return ReadyDevice(
            name=entry.name,
            chip=hardware.chip.target,
            transport=entry.transport,
            tty=device.port.path if device.port else "",
            link=str(device.port.link) if isinstance(device.port, SerialPort) else "",
            address=device.server.url,
            ueid=identity.ueid.hex(),
            mac=":".join(f"{byte:02x}" for byte in hardware.mac),
            public_key=keys.encode_cose(identity.anchor).hex(),
            tier=entry.tier,
            revision=hardware.revision,
            flash_size=hardware.flash_size,
        )

    def control(self, request: dict[str, Any]) -> object:
        """Carry out one control request. Raises ValueError for a wrong one."""
        verb = request.get("do")
        if verb == "stop":
            self.stopped.set()
            return {"ok": True}
        device = self.devices.get(str(request.get("device")))
        if device is None:
            raise ValueError(f"no device is called {request.get('device')!r}")
        match verb:
            case "counters":
                return device.counters()
            case "status":
                return self.describe(next(e for e in self.spec.devices if e.name == device.name)).model_dump(
                    by_alias=True
                )
            case "reset":
                device.reset()
            case "unplug":
                device.unplug()
            case "replug":
                device.replug()
            case "fault":
                device.faults.append(make_fault(dict(request.get("fault") or {})))
            case "clearFaults":
                device.faults.clear()
            case "behave":
                device.behave(self._behaviour(request.get("behaviour") or ""))
            case "provision":
                kinds = (map(_key, request.get(name) or ()) for name in ("grantKeys", "releaseKeys"))
                entry = provision(device, Owner(*kinds), str(request.get("batch") or ""))
                return {"coseKey": entry.cose_key.hex(), "proof": entry.proof.hex(), "hwmodel": entry.hwmodel}
            case _:
                raise ValueError(f"{verb!r} is no control request")
        return {"ok": True}

    def _behaviour(self, spec: str | dict[str, Any]) -> Behaviour:
        """As described; a device that lets another one answer is given that one. Raises ValueError if there is none."""
        behaviour = make_behaviour(spec)
        if isinstance(behaviour, OtherDevicesEvidence):
            other = self.devices.get(behaviour.device)
            if other is None:
                raise ValueError(
                    f"OtherDevicesEvidence needs the device that answers, and none is {behaviour.device!r}"
                )
            behaviour.donor = lambda nonce: other.application.evidence(nonce) if other.application else b""
        return behaviour

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one control connection."""
        with contextlib.suppress(ConnectionError, asyncio.CancelledError, ValueError):
            while line := await reader.readline():
                try:
                    answer = self.control(json.loads(line))
                except (ValueError, TypeError, AttributeError) as error:
                    answer = {"error": str(error)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()


def _build(entry: DeviceSpec, spec: FleetSpec, owner: Owner, applications: _Applications) -> VirtualDevice:
    identity = make_identity(
        entry.name,
        entry.chip,
        tier=entry.tier,
        secret=spec.secret.encode(),
        alg=Alg.ES256 if entry.alg == "ES256" else Alg.EDDSA,
        flash_size=entry.flash_size,
        secure_version=entry.secure_version,
        anti_rollback=entry.anti_rollback,
        verifies_signatures=True,
    )
    serial = entry.transport == "serial"
    device = VirtualDevice(
        entry.name,
        identity,
        Owner() if entry.virgin else owner,
        link=Path(spec.directory) / entry.name if serial and entry.line == "pty" else None,
        tcp=entry.line if serial and entry.line != "pty" else None,
        faults=[make_fault(fault) for fault in entry.faults],
        timing=Timing(entry.simulate_rate, entry.erase_seconds, entry.radio_bytes_per_second, entry.speed),
        locked_loader=entry.locked_loader,
        confirm_seconds=entry.confirm_seconds,
        port=entry.port,
        moves=entry.moves,
        tls=entry.tls,
    )
    if entry.app:
        device.factory_flash(applications.read(entry.app, signed=identity.hardware.fuses.secure_boot))
    return device


class _Applications:
    """Application images, each read and signed once, so that devices can share them."""

    def __init__(self, secret: bytes) -> None:
        self._key = secure_boot.maker_key(secret)
        self._read: dict[tuple[str, bool], bytes] = {}

    def read(self, path: str, *, signed: bool) -> bytes:
        """The image in a file, with a signature if `signed` demands one."""
        if (path, signed) not in self._read:
            app = Path(path).read_bytes()
            missing = signed and not find_signatures(app, parse_image(app).image_length)
            self._read[path, signed] = secure_boot.sign(app, self._key) if missing else app
        return self._read[path, signed]


def _key(text: str) -> PublicKey:
    if text.startswith("-----BEGIN"):
        return keys.from_pem(text)
    return keys.from_cose(bytes.fromhex(text))


async def run(spec: FleetSpec) -> None:
    """Host the devices of `spec` until it is told to stop."""
    fleet = Fleet(spec)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, fleet.stopped.set)
    if spec.follow_stdin:
        loop.add_reader(sys.stdin.fileno(), _stdin_ended, fleet)
    server = None
    try:
        ready = await fleet.start()
        if spec.control:
            Path(spec.control).unlink(missing_ok=True)
            server = await asyncio.start_unix_server(fleet.serve, spec.control, limit=_LINE)
        sys.stdout.write(ready.model_dump_json(by_alias=True) + "\n")
        sys.stdout.flush()
        await fleet.stopped.wait()
    finally:
        if server is not None:
            server.close()
            Path(spec.control).unlink(missing_ok=True)
        await fleet.stop()


def _stdin_ended(fleet: Fleet) -> None:
    if not os.read(sys.stdin.fileno(), _LINE):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        fleet.stopped.set()


def main() -> int:
    """Entry point: 0 after a clean end, 2 for a wrong spec."""
    try:
        (path,) = sys.argv[1:]
        spec = FleetSpec.model_validate_json(Path(path).read_bytes())
        asyncio.run(run(spec))
    except (ValueError, ValidationError, OSError, PipelineError) as error:
        sys.stderr.write(f"fleet: {error}\nusage: python -m flashjob.virtual.fleet SPEC.json\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
