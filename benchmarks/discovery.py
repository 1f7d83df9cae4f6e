# SPDX-License-Identifier: Apache-2.0
"""A sweep of the network: how long until every device that can prove itself is listed, and what that takes.

1,000 enrolled devices at as many addresses; one in ten is dead, half of these refuse the connection and half are silent.
The living are virtual devices in processes of their own, which share the machine. The clock runs from the handler's
start (its program loaded) to the list that holds every living device; each listing token is checked afterwards.

1. At most 10 s (judged on an idle machine), and at most 150 MB resident, at the peak.
2. Every living device is listed, and nobody else.
3. The anchor is what no handler can do without: three bare signature verifications per device, in the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import keys
from attestation.discovery.listing import FLASHJOB_LISTING, by_key_id, decode_token, verify_listing
from attestation.policy import MeasurementRef
from benchmarks.common import Report, main
from firmware_pipeline.esp.measurement import measure as measured
from flashjob.sandbox.akri.handlers import Endpoint, Registry, discover, serve_registration
from flashjob.virtual.fleet import DeviceSpec, FleetSpec, Ready
from flashjob.virtual.profile import make_identity
from flashjob.wire.base import b64url
from tests.component.bench import old_app, policy

CHIP: Final = "esp32s3"
DETAILS: Final = "list: Devices"
SECONDS: Final = 10.0
MEGABYTES: Final = 150
FLEETS: Final = 2
STEADY_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 300.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def measure(report: Report) -> None:
    """All of it, below a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flashjob-bench-") as folder:
        asyncio.run(_sweep(report, Path(folder), 200 if report.smoke else 1000))


async def _sweep(report: Report, root: Path, endpoints: int) -> None:
    alive = endpoints - endpoints // 10
    key = ec.generate_private_key(ec.SECP256R1())
    async with contextlib.AsyncExitStack() as stack:
        ready = await asyncio.gather(*(stack.enter_async_context(_fleet(root, n, alive)) for n in range(FLEETS)))
        devices = [_device(d.name, d.ueid, bytes.fromhex(d.public_key), d.address) for r in ready for d in r.devices]
        wanted = {device["spec"]["id"] for device in devices}
        for number, address in enumerate(stack.enter_context(_dead(endpoints - alive))):
            who = make_identity(f"dead-{number}", CHIP, tier="SignedBoot")
            devices.append(_device(f"dead-{number}", who.ueid.hex(), keys.encode_cose(who.anchor), address))
        anchor = _anchor(3 * alive)
        registered: asyncio.Queue[Endpoint] = asyncio.Queue()
        agent = await serve_registration(root, Registry(registered.put_nowait))
        stack.push_async_callback(agent.stop, None)
        handler = await stack.enter_async_context(_handler(root, devices, key))
        begun, before = time.monotonic(), _cpu(handler)
        endpoint = await asyncio.wait_for(registered.get(), _LONGEST_SECONDS)
        lists = discover(endpoint, DETAILS, {})
        stack.push_async_callback(lists.aclose)  # type: ignore[attr-defined]
        first, count = 0.0, 0
        listed: dict[str, str] = {}
        async with asyncio.timeout(_LONGEST_SECONDS):
            while listed.keys() != wanted:
                listed = {one.id: one.properties[FLASHJOB_LISTING] for one in await anext(lists)}
                first, count = first or time.monotonic() - begun, count + 1
        seconds, cpu = time.monotonic() - begun, _cpu(handler) - before
        for device_id, text in listed.items():
            if verify_listing(decode_token(text), by_key_id(key.public_key())).device_id != device_id:
                raise RuntimeError(f"{device_id} is listed with another device's token")
        await asyncio.sleep(STEADY_SECONDS / 2 if report.smoke else STEADY_SECONDS)
        steady = (_cpu(handler) - before - cpu) / (time.monotonic() - begun - seconds)
        peak = _peak(handler)
    anchor = (anchor + _anchor(3 * alive)) / 2
    report.figure("endpoints", endpoints)
    report.figure("seconds to the first list", first)
    report.figure("lists until it was complete", count)
    report.figure("handler, CPU seconds", cpu)
    report.figure("bare verifications, CPU seconds", anchor)
    report.figure("handler, CPU of bare verifications", cpu / anchor)
    report.figure("handler, CPU share afterwards", steady)
    report.bar("devices listed of those alive", len(listed) / alive, "==", 1.0)
    report.bar("sweep, seconds", seconds, "<=", SECONDS, wall_clock=True)
    report.bar("handler RSS at the peak, megabytes", peak / 1e6, "<=", MEGABYTES)


def _device(name: str, device_id: str, anchor: bytes, address: str) -> dict[str, Any]:
    spec = {
        "id": device_id,
        "trustAnchor": {"coseKey": b64url(anchor)},
        "rootOfTrust": "SignedBoot",
        "policyRef": {"name": "bench"},
        "connection": {"network": {"address": address}},
        "hardware": {"chip": CHIP},
    }
    return {"metadata": {"name": name, "namespace": "bench"}, "spec": spec}


@asynccontextmanager
async def _fleet(root: Path, number: int, alive: int) -> AsyncIterator[Ready]:
    """A process with its share of the living."""
    app = root / f"app-{number}.bin"
    app.write_bytes(old_app(CHIP))
    names = [f"d-{one}" for one in range(alive) if one % FLEETS == number]
    entries = tuple(DeviceSpec(name=name, chip=CHIP, transport="network", app=str(app)) for name in names)
    spec = root / f"fleet-{number}.json"
    spec.write_text(FleetSpec(directory=str(root), follow_stdin=True, devices=entries).model_dump_json(by_alias=True))
    async with _program("flashjob.virtual.fleet", str(spec)) as process:
        yield Ready.model_validate_json(await _line(process))


@asynccontextmanager
async def _handler(root: Path, devices: list[dict[str, Any]], key: keys.PrivateKey) -> AsyncIterator[int]:
    """The handler's process, as it begins; gives its id."""
    rules = policy(CHIP)
    known = tuple(MeasurementRef(alg=one.alg, value=one.value.hex()) for one in measured(old_app(CHIP)))
    rules = rules.model_copy(update={"application": rules.application.model_copy(update={"measurements": known})})
    handler = {"discoveryHandler": {"name": "flashjob-network", "discoveryDetails": DETAILS}}
    bench = {"name": "bench", "namespace": "bench"}
    objects = {
        "policies": [{"metadata": bench, "spec": rules.model_dump(mode="json", by_alias=True)}],
        "configurations": [{"metadata": bench, "spec": handler}],
        "devices": devices,
    }
    world = root / "world.json"
    pem = keys.private_to_pem(key).decode()
    world.write_text(json.dumps({"directory": str(root), "key": pem, "objects": objects}))
    async with _program("benchmarks._discovery_handler", str(world)) as process:
        await _line(process)
        yield process.pid


@asynccontextmanager
async def _program(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 22,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    if process.stdout is None or not (line := await process.stdout.readline()):
        raise RuntimeError(f"a program of the benchmark ended with {await process.wait()}")
    return line


@contextmanager
def _dead(count: int) -> Iterator[list[str]]:
    """Addresses where nobody answers: every other one refuses, the rest takes a connection at most and is silent."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for number, one in enumerate(sockets):
            one.bind(("127.0.0.1", 0))
            if number % 2:
                one.listen(1)
        yield [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _anchor(count: int) -> float:
    """CPU seconds of so many ES256 verifications."""
    key, data = ec.generate_private_key(ec.SECP256R1()), secrets.token_bytes(400)
    public, algorithm = key.public_key(), ec.ECDSA(hashes.SHA256())
    signature = key.sign(data, algorithm)
    begun = time.process_time()
    for _ in range(count):
        public.verify(signature, data, algorithm)
    return time.process_time() - begun


def _cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _peak(pid: int) -> int:
    """Most bytes that were ever resident."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main("discovery", measure))
