# SPDX-License-Identifier: Apache-2.0
"""An attestation service on loopback with its files, and devices that answer what it asks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec

from attestation import ear, keys
from attestation.cbor import strict_loads
from attestation.directory import TrustDirectory
from attestation.ear import Ear, Verifier
from attestation.keys import PrivateKey, PublicKey
from attestation.policy import Algorithm
from attestation.replay import InMemorySingleUse, SingleUse
from attestation.service import server
from attestation.service.app import EVIDENCE_TYPE, Limits
from attestation.service.judge import Judge
from attestation.service.keyring import KEY_SET_TYPE, KeyFiles
from attestation.service.metrics import Metrics
from attestation.service.trust import LiveTrust
from attestation.verifier import ChainCache
from tests.unit.attestation.test_verifier_directory import spec, write_policy
from tests.unit.attestation.world import Minted, policy

AUDIENCE = "task/1/after"
QUIET = Limits(workers=2, dear_workers=1, rate=0, idle_seconds=5.0)


@dataclass
class Device:
    """A device that answers; its chain is minted once."""

    minted: Minted = field(default_factory=Minted)

    def __post_init__(self) -> None:
        self.chain = self.minted.chain()
        self.key = self.minted.key("app")
        self.ueid = self.minted.ueid.hex()

    def answer(self, nonce: str, changes: dict[int, Any] | None = None) -> bytes:
        """Evidence over a nonce, hex."""
        token = self.minted.token({10: bytes.fromhex(nonce), **(changes or {})}, self.key)
        return self.minted.evidence(self.chain, token)


class Files:
    """Trust directory and keys of a service.

    Args:
        root: where they are made.
        devices: enrolled under policy ``default``, which accepts them.
        changes: of that policy.
    """

    def __init__(self, root: Path, devices: Sequence[Device], **changes: Any) -> None:
        self.root = root
        self.trust = TrustDirectory.create(root / "trust")
        for device in devices:
            self.trust.enroll(spec(device.minted))
        write_policy(self.trust, policy(devices[0].minted, algorithms=tuple(Algorithm), **changes))
        self.nonce_keys, self.ear_key = root / "nonce-keys", root / "ear.pem"
        self.nonce_keys.mkdir()
        self.write_nonce_key(1)
        self.write_ear_key()

    def write_nonce_key(self, number: int) -> None:
        (self.nonce_keys / str(number)).write_bytes(os.urandom(32))

    def write_ear_key(self) -> PrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        fresh = self.root / "fresh.pem"
        fresh.write_bytes(keys.private_to_pem(key))
        fresh.replace(self.ear_key)
        return key

    @property
    def arguments(self) -> list[str]:
        """Of ``attest serve``."""
        named = {"--trust": self.trust.root, "--nonce-keys": self.nonce_keys, "--ear-key": self.ear_key}
        return [part for name, path in named.items() for part in (name, str(path))]


@dataclass
class Client:
    """A relying party."""

    http: aiohttp.ClientSession
    url: str

    async def post(self, path: str, body: bytes = b"", media: str = EVIDENCE_TYPE, **query: str) -> "Reply":
        headers = {"Content-Type": media}
        async with self.http.post(self.url + path, data=body, params=query, headers=headers) as response:
            return Reply(response.status, response.content_type, await response.read(), dict(response.headers))

    async def get(self, path: str) -> "Reply":
        async with self.http.get(self.url + path) as response:
            return Reply(response.status, response.content_type, await response.read(), dict(response.headers))

    async def nonce(self, ueid: str, audience: str = AUDIENCE) -> str:
        body = json.dumps({"ueid": ueid, "audience": audience}).encode()
        reply = await self.post("/v1/nonce", body, "application/json")
        assert reply.status == 200, reply.body
        return str(json.loads(reply.body)["nonce"])

    async def verify(self, evidence: bytes, ueid: str, nonce: str, audience: str = AUDIENCE) -> "Reply":
        return await self.post("/v1/verify", evidence, ueid=ueid, audience=audience, nonce=nonce)

    async def keys(self) -> dict[bytes, PublicKey]:
        reply = await self.get("/v1/keys")
        assert reply.media == KEY_SET_TYPE
        said = strict_loads(reply.body)
        assert isinstance(said, list)
        return {key[2]: keys.from_cose(key) for key in said}  # type: ignore[index, misc]

    async def result(self, evidence: bytes, ueid: str, nonce: str, audience: str = AUDIENCE) -> Ear:
        """A checked result."""
        reply = await self.verify(evidence, ueid, nonce, audience)
        assert (reply.status, reply.media) == (200, ear.CONTENT_TYPE), reply.body
        return ear.check(reply.body, await self.keys(), nonce=bytes.fromhex(nonce), now=int(time.time()))

    async def reason(self, device: Device, changes: dict[int, Any] | None = None) -> str:
        """Nonce, answer, result: its reason."""
        nonce = await self.nonce(device.ueid)
        return (await self.result(device.answer(nonce, changes), device.ueid, nonce)).reason


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    media: str
    body: bytes
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """Of a problem document, which it must be."""
        assert self.media == "application/problem+json", self
        content = json.loads(self.body)
        assert content["status"] == self.status
        assert content["type"].endswith(content["code"])
        assert content["title"]
        assert content["detail"]
        return str(content["code"])


@dataclass
class Running(Client):
    """A service in this process."""

    service: server.Service
    judge: Judge
    port: int


def judge_of(files: Files, single_use: SingleUse | None = None, **changes: Any) -> Judge:
    told: dict[str, Any] = {
        "trust": LiveTrust(files.trust),
        "single_use": single_use or InMemorySingleUse(),
        "chains": ChainCache(100),
        "verifier": Verifier("flashjob.dev", "test"),
        "clock": time.time,
    }
    return Judge(**{**told, **changes})


@contextlib.asynccontextmanager
async def running(
    files: Files, *, single_use: SingleUse | None = None, limits: Limits = QUIET, **changes: Any
) -> AsyncIterator[Running]:
    """A service on a free port, drained at the end."""
    judge = judge_of(files, single_use, **changes)
    key_files = KeyFiles(files.nonce_keys, files.ear_key)
    settings = server.Settings(host="127.0.0.1", port=0, keys=key_files, limits=limits)
    service = server.Service(settings, judge, Metrics())
    port = await service.start()
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as http:
            yield Running(http, f"http://127.0.0.1:{port}", service, judge, port)
    finally:
        await service.stop()


class Process:
    """``attest serve`` as a program, from its first line on standard error on."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "attestation.cli", "serve", "--listen", "127.0.0.1:0", *arguments]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = self.wait_for("listening at ").split()[-1]

    def wait_for(self, text: str) -> str:
        """The next line on standard error that holds this."""
        assert self.popen.stderr is not None
        lines: list[str] = []
        for line in self.popen.stderr:
            if text in line:
                return line
            lines.append(line)
        raise AssertionError(f"it never said {text!r}, but: {lines}")

    def rest(self) -> str:
        """What it says until it ends."""
        assert self.popen.stderr is not None
        return self.popen.stderr.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait."""
        self.popen.send_signal(number)
        return self.popen.wait(20)


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[Process]:
    """A running program, ended whatever happens."""
    process = Process(*arguments)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.end()
        assert process.popen.stderr is not None
        process.popen.stderr.close()
