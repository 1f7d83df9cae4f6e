# SPDX-License-Identifier: Apache-2.0
"""TLS to a device: its key stands in the evidence, and nobody stands between."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceError, Verb
from flashjob.virtual.tls import boot_identity
from flashjob.wire.gateway import Outcome

from .bench import Bench, assignment, new_app, push, runs


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


class Middle:
    """Ends the device's TLS under a key of its own and passes everything on."""

    def __init__(self, port: int) -> None:
        self._there = port
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        context, _ = boot_identity()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, source: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        answers, there = await asyncio.open_connection("127.0.0.1", self._there, ssl=trust)
        await asyncio.gather(_pass_on(source, there), _pass_on(answers, out))


async def _pass_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    """Until one side ends; then the other one does."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
    to.close()


async def test_an_update_over_tls_is_proven(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, tls=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, address=f"https://{device.server.address}")
    result, judge = await bench.flash(device, release, task=task)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    await runs(device, "2.0.0")


async def test_somebody_in_the_middle_is_found_before_the_first_byte(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, tls=True)
    middle = Middle(device.server.port)
    port = await middle.start()
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, address=f"https://127.0.0.1:{port}")
    result, judge = await bench.flash(device, release, task=task)
    await middle.stop()
    assert (result.ok, result.bytes_written) == (False, 0)
    assert "cnf" in result.message
    assert judge.case.permits == ()
    await runs(device, "1.0.0")


async def test_a_device_that_names_no_key_is_not_bound(bench: Bench) -> None:
    device = await bench.device(network=True, tls=True)
    assert device.application is not None
    device.application.tls_key = None
    client = HttpDevice("127.0.0.1", device.server.port, tls=True)
    with pytest.raises(DeviceError, match="cnf"):
        await client.attest(b"n" * 32)
    await client.close()


async def test_after_attestation_only_the_attested_certificate_is_spoken_to(bench: Bench) -> None:
    device = await bench.device(network=True, tls=True)
    middle = Middle(device.server.port)
    client = HttpDevice("127.0.0.1", device.server.port, tls=True)
    await client.attest(b"n" * 32)
    await client.info()
    client.port = await middle.start()
    with pytest.raises(DeviceError, match="another certificate"):
        await client.nonce(Verb.INSTALL)
    await client.rebooted()
    assert await client.nonce(Verb.INSTALL), "after a reboot any certificate is taken, until it is attested"
    await middle.stop()
    await client.close()


async def test_plain_http_to_a_tls_device_and_back(bench: Bench) -> None:
    device = await bench.device(network=True, tls=True)
    plain = await bench.device("plain", network=True)
    for port, tls in ((device.server.port, False), (plain.server.port, True)):
        client = HttpDevice("127.0.0.1", port, tls=tls)
        with pytest.raises(DeviceError):
            await client.info()
        await client.close()
