# SPDX-License-Identifier: Apache-2.0
"""The owner's keys change on devices that run: over the network and over a serial line, and what that means for updates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from attestation import keys
from attestation.cli import app as attest
from attestation.device_http import HttpDevice
from attestation.device_protocol import DeviceError, ErrorCode
from attestation.keys import PrivateKey, key_id
from attestation.succession import Kind, mint
from flashjob.cli.device import app as device_cli
from flashjob.errors import FlashJobError
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.port import SerialPort
from flashjob.wire.gateway import Outcome
from flashjob.wire.reasons import Reason

from .bench import GRANT_KEY, RELEASE_KEY, Bench, app, push
from .test_enrolment import enrolment, facts_of, refused

SECOND, THIRD = (ec.derive_private_key(number, ec.SECP256R1()) for number in (0x222, 0x333))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def kid(key: PrivateKey) -> str:
    return key_id(key.public_key()).hex()


async def deliver(device: VirtualDevice, kind: Kind, successor: PrivateKey, generation: int, key: PrivateKey) -> None:
    host, _, port = device.server.address.rpartition(":")
    client = HttpDevice(host, int(port))
    try:
        held = await client.owner_key(mint(kind, successor.public_key(), generation, key))
    finally:
        await client.close()
    assert held.kind is kind
    assert {one.hex() for one in held.ids} == {kid(key), kid(successor)}
    assert held.generation == generation


async def update(bench: Bench, device: VirtualDevice, folder: Path, version: str, number: int, key: PrivateKey) -> str:
    """Reason of the update to this version, released by this key."""
    image = app("esp32s3", version, 96 * 1024)
    result, judge = await bench.flash(device, push(folder, image, "esp32s3", number, release_key=key))
    assert result.ok is (judge.outcome is Outcome.PROVEN), result
    return result.reason


async def test_a_release_key_is_followed_by_another_and_pushed_out_by_the_third(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    assert await update(bench, device, tmp_path, "2.0.0", 2, SECOND) == "DeviceRefused", "not yet"
    await deliver(device, Kind.RELEASE, SECOND, 1, RELEASE_KEY)
    await update(bench, device, tmp_path, "2.0.0", 2, RELEASE_KEY)
    assert running(device) == "2.0.0", "the old key is still good"
    await deliver(device, Kind.RELEASE, THIRD, 2, SECOND)
    await update(bench, device, tmp_path, "3.0.0", 3, THIRD)
    assert running(device) == "3.0.0"
    assert await update(bench, device, tmp_path, "4.0.0", 4, RELEASE_KEY) == "DeviceRefused"
    await update(bench, device, tmp_path, "4.0.0", 4, SECOND)
    assert running(device) == "4.0.0", "and all this through resets"


def running(device: VirtualDevice) -> str:
    assert device.application is not None
    return device.application.boot.version


async def test_enrolment_follows_the_keys_that_evidence_lists(bench: Bench) -> None:
    device = await bench.device(network=True)
    second = enrolment(device, grant_key_id=bytes.fromhex(kid(SECOND)))
    assert (await refused(device, bench, second)).reason == Reason.GRANT_KEY_UNKNOWN
    await deliver(device, Kind.GRANT, SECOND, 1, GRANT_KEY)
    await facts_of(device, bench, second)
    await facts_of(device, bench, enrolment(device))
    await deliver(device, Kind.GRANT, THIRD, 2, SECOND)
    assert (await refused(device, bench, enrolment(device))).reason == Reason.GRANT_KEY_UNKNOWN


async def test_what_is_wrong_is_refused_with_its_code(bench: Bench) -> None:
    device = await bench.device(network=True)
    await deliver(device, Kind.RELEASE, SECOND, 3, RELEASE_KEY)
    host, _, port = device.server.address.rpartition(":")
    client = HttpDevice(host, int(port))
    zoo = {
        ErrorCode.MALFORMED: b"\x80",
        ErrorCode.TOO_LARGE: bytes(400),
        ErrorCode.UNKNOWN_KEY: mint(Kind.RELEASE, THIRD.public_key(), 4, GRANT_KEY),
        ErrorCode.SEQUENCE: mint(Kind.RELEASE, THIRD.public_key(), 3, SECOND),
        ErrorCode.STATE: mint(Kind.RELEASE, GRANT_KEY.public_key(), 4, SECOND),
        ErrorCode.SIGNATURE: mint(Kind.RELEASE, THIRD.public_key(), 4, SECOND)[:-1] + b"\0",
    }
    for code, statement in zoo.items():
        with pytest.raises(DeviceError) as caught:
            await client.owner_key(statement)
        assert caught.value.code is code
    await client.close()


@pytest.mark.parametrize("network", [True, False], ids=["network", "serial"])
async def test_from_the_command_line(bench: Bench, tmp_path: Path, network: bool) -> None:
    device = await bench.device(network=network)
    old, new, out = tmp_path / "old.key", tmp_path / "new.pub", tmp_path / "owner.cbor"
    old.write_bytes(keys.private_to_pem(RELEASE_KEY))
    new.write_text(keys.to_pem(SECOND.public_key()))
    arguments = [
        "--key",
        str(old),
        "--successor",
        str(new),
        "--kind",
        "release",
        "--generation",
        "1",
        "--out",
        str(out),
    ]
    minted = CliRunner().invoke(attest, ["mint", "succession", *arguments, "--json"])
    assert json.loads(minted.stdout)["to"] == kid(SECOND)
    where = device.server.address
    if not network:
        assert isinstance(device.port, SerialPort)
        where = device.port.place

    async def tell(*more: str) -> Result:
        return await asyncio.to_thread(lambda: CliRunner().invoke(device_cli, ["owner-key", where, str(out), *more]))

    told = json.loads((await tell("--json")).stdout)
    assert told == {"kind": "release", "keys": sorted([kid(RELEASE_KEY), kid(SECOND)]), "generation": 1}
    assert "generation 1" in (await tell()).output, "a second time changes nothing"
    out.write_bytes(mint(Kind.RELEASE, THIRD.public_key(), 1, SECOND))
    late = await tell()
    assert isinstance(late.exception, FlashJobError)
    assert late.exception.reason == Reason.DEVICE_REFUSED
    assert "--generation" in late.exception.next_step
    out.write_bytes(b"something else")
    assert "no succession statement" in (await tell()).output
