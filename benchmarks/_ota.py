# SPDX-License-Identifier: Apache-2.0
"""The two ends of `bench-ota`, each a process of its own: devices that only take bytes, and the senders compared.

    python -m benchmarks._ota devices COUNT SIZE            serves COUNT devices, prints their ports
    python -m benchmarks._ota ours|bare PORTS IMAGE         sends IMAGE to all at once, prints what it took

The devices are as cheap as a receiver can be, so that what is measured is the sender: they answer `info`, `attest`,
`nonce` and `grant` with ready-made bytes, count the image's bytes, and keep none. `ours` is the flashing pod's own
transport and asks for all of these before the image, as an attempt does, with progress; only the judge between them is
missing. `bare` is the least that aiohttp can do: one PUT of the same bytes.

Printed are seconds to the last device's answer, `all` from the first request, `grant` from the first that matters to the
device (of `bare`: its only one), `byte` from the first image byte handed to the network; and CPU seconds and peak memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from attestation import device_protocol as dp
from attestation.cbor import dumps
from attestation.device_protocol import Flag, Info
from attestation.statement import Digest
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.wire.gateway import PermitDecision, PermitReply

_GRANT_ID = b"g" * 16
_SLICE = 64 * 1024
_EVIDENCE_BYTES = 1_300
_PERMIT = PermitReply(
    decision=PermitDecision.WRITE, grant_id=_GRANT_ID.hex(), fence=1, write_seconds=300, install_grant=b"g" * 349
)


class Device(asyncio.Protocol):
    """One connection to one device: reads a request's head, counts its body, answers; the next one may follow."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._head = b""
        self._left: int | None = None
        self._reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A sender has come."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Head, then body."""
        if self._left is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.split(b"\r\n")
            self._reply = self._answers[lines[0].split(b"/fj/1/")[1].split(b" ")[0].partition(b"?")[0]]
            lengths = [line.split(b":")[1] for line in lines if line.lower().startswith(b"content-length:")]
            self._left = int(lengths[0]) if lengths else 0
        self._left -= len(data)
        if self._left == 0:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._reply) + self._reply)
            self._left, self._head = None, b""


async def devices(count: int, size: int) -> None:
    """Serve `count` devices until stdin ends."""
    info = Info(
        versions=[dp.VERSION],
        ueid=b"\x01" + b"u" * 32,
        chip_id=9,
        chip_revision=0,
        flash_size=1 << 23,
        running_slot=0x10,
        slot_state=2,
        target_slot_size=1 << 21,
        measurement=Digest(alg=-16, value=hashlib.sha256().digest()),
        name="porch",
        version="1.0.0",
        secure_version=0,
        efuse_secure_version=0,
        flags=Flag.ROLLBACK,
        partition_table=b"p" * 32,
        bootseed=b"b" * 16,
    )
    answers = {
        b"info": dp.encode_info(info),
        b"attest": bytes(_EVIDENCE_BYTES),
        b"nonce": dumps({1: b"n" * 16, 2: 600}),
        b"grant": dumps({17: 0, 18: _GRANT_ID}),
        b"image": dumps({17: size}),
    }
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Device(answers), "127.0.0.1", 0) for _ in range(count)]
    sys.stdout.write(json.dumps([server.sockets[0].getsockname()[1] for server in servers]) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


class Marks:
    """When something happened first, of whichever device."""

    def __init__(self) -> None:
        self.at = {"all": time.monotonic()}

    def now(self, name: str) -> None:
        """It happens."""
        if name not in self.at:
            self.at[name] = time.monotonic()


async def _ours(transport: NetworkTransport, image: bytes, marks: Marks) -> None:
    await transport.info(60)
    await transport.evidence(b"n" * 32)
    await transport.probe(0x8000)
    await transport.install_nonce()
    marks.now("grant")
    await transport.write(image, _PERMIT, lambda _done, _total: marks.now("byte"))
    assert transport.bytes_written == len(image)


async def _bare(session: aiohttp.ClientSession, port: int, image: bytes, marks: Marks) -> None:
    view = memoryview(image)

    async def pieces() -> AsyncIterator[memoryview]:
        for at in range(0, len(view), _SLICE):
            yield view[at : at + _SLICE]
            marks.now("byte")

    marks.now("grant")
    headers = {"Content-Length": str(len(image))}
    async with session.put(f"http://127.0.0.1:{port}/fj/1/image", data=pieces(), headers=headers) as response:
        assert response.status == 200
        await response.read()


async def _send(who: str, ports: list[int], path: Path) -> dict[str, float]:
    image = path.read_bytes()
    used, marks = time.process_time(), Marks()
    if who == "ours":
        transports = [NetworkTransport(f"127.0.0.1:{port}") for port in ports]
        await asyncio.gather(*(_ours(transport, image, marks) for transport in transports))
        ended = time.monotonic()
        await asyncio.gather(*(transport.close() for transport in transports))
    else:
        timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(_bare(session, port, image, marks) for port in ports))
            ended = time.monotonic()
    cpu = time.process_time() - used
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: ended - at for name, at in marks.at.items()} | {"cpu": cpu, "rss": rss}


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    match arguments:
        case ["devices", count, size]:
            asyncio.run(devices(int(count), int(size)))
        case ["ours" | "bare" as who, ports, image]:
            sys.stdout.write(json.dumps(asyncio.run(_send(who, json.loads(ports), Path(image)))) + "\n")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
