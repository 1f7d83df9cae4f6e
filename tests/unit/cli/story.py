# SPDX-License-Identifier: Apache-2.0
"""A job of a few devices in a cluster in memory, told step by step, and a gateway that people may ask for per cent."""

from __future__ import annotations

import datetime
import io
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from rich.console import Console

from attestation.nonce import KeyRing
from flashjob.api.device import Device
from flashjob.api.flashjob import FlashJob
from flashjob.api.flashtask import FlashTask, Report
from flashjob.cluster.fake import FakeCluster
from flashjob.cluster.resources import CONFIG_MAPS, DEVICES, FLASHJOBS, FLASHTASKS, SERVICE_ACCOUNTS, Obj
from flashjob.errors import FlashJobError
from flashjob.gateway.case import Keys
from flashjob.gateway.door import Door
from flashjob.gateway.progress import ProgressBoard
from flashjob.gateway.service import Clock, Gathered, Service
from flashjob.gateway.tokens import Caller
from flashjob.sandbox.pki import Authority
from flashjob.wire.gateway import Progress, Stage
from flashjob.wire.reasons import Reason
from tests import objects
from tests.clusters import fake_cluster
from tests.unit.virtual.workbench import GRANT_KEY

NS, JOB = "lab", "porch-2"
GRANT = "ab" * 16
MEASURED = "c0ffee" + "00" * 29


def at(seconds: float) -> str:
    """A time that many seconds after noon."""
    noon = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)
    return noon.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def device_id(number: int) -> str:
    return "01" + f"{number:02x}" * 32


def task(
    name: str = "t", device: str = "d", *, status: dict[str, Any] | None = None, born: float = 0, **spec: Any
) -> FlashTask:
    """A task as the API server would give it."""
    obj = objects.flashtask(name, NS, device_name=device, job=JOB, **spec)
    obj["metadata"]["creationTimestamp"] = at(born)
    return FlashTask.parse({**obj, "status": status or {}})


def device(name: str = "d", *, status: dict[str, Any] | None = None, **spec: Any) -> Device:
    """A Device as the API server would give it."""
    return Device.parse({**objects.device(name, NS, **spec), "status": status or {}})


def job(*, status: dict[str, Any] | None = None) -> FlashJob:
    """A FlashJob as the API server would give it."""
    return FlashJob.parse({**objects.flashjob(JOB, NS), "status": status or {}})


def conditions(**kinds: tuple[str, str]) -> list[dict[str, Any]]:
    """Conditions from type=(status, reason)."""
    return [
        {"type": kind, "status": status, "reason": reason, "lastTransitionTime": at(0)}
        for kind, (status, reason) in kinds.items()
    ]


def finished(good: bool) -> dict[str, Any]:
    """A FlashJob's status at its end."""
    reason = "AllProven" if good else "MeasurementMismatch"
    ends = {"Finished": ("True", reason), "Succeeded": (str(good), reason), "Failed": (str(not good), reason)}
    return {
        "phase": "Succeeded" if good else "Failed",
        "progress": "1/1",
        "counts": {"total": 1},
        "conditions": conditions(**ends),
    }


def permit(attempt: int = 1, seconds: float = 5) -> dict[str, Any]:
    return {"attempt": attempt, "grantId": GRANT, "fence": attempt, "at": at(seconds)}


def verdict(outcome: str = "Proven", reason: str = "Proven", attempt: int = 1, **more: Any) -> dict[str, Any]:
    base = {"attempt": attempt, "outcome": outcome, "reason": reason, "at": at(20), "bootId": GRANT}
    seen = {"scheme": "esp-image", "alg": -16, "value": MEASURED}
    claims = {"measurement": seen, "application": "porch-sensor", "version": "2.1.0", "rootOfTrust": "SignedBoot"}
    return base | claims | more


class Cluster:
    """The cluster in memory, with one job in it, and what happens to it."""

    def __init__(self) -> None:
        self.api: FakeCluster = fake_cluster()

    async def begin(self, devices: int = 1) -> None:
        made = await self.api.create(FLASHJOBS, NS, objects.flashjob(JOB, NS))
        for number in range(devices):
            name, ident = f"d{number}", device_id(number)
            await self.api.create(DEVICES, NS, objects.device(name, NS, ident))
            await self._task(number, name, ident, made)

    async def _task(self, number: int, name: str, ident: str, owner: Obj) -> None:
        uid = owner["metadata"]["uid"]
        obj = objects.flashtask(f"t{number}", NS, ident, name, JOB)
        obj["spec"]["job"]["uid"] = uid
        obj["metadata"]["labels"] = {"flashjob.dev/job": JOB}
        await self.api.create(FLASHTASKS, NS, obj)

    async def task(self, name: str, **status: Any) -> None:
        await self.api.patch_status(FLASHTASKS, NS, name, status, field_manager="test")

    async def job(self, **status: Any) -> None:
        await self.api.patch_status(FLASHJOBS, NS, JOB, status, field_manager="test")

    async def publish(self, url: str, ca: str) -> None:
        """What the installation publishes for people."""
        for name, data in (("flashjob-gateway", {"url": url}), ("flashjob-gateway-ca", {"ca.crt": ca})):
            await self.api.create(CONFIG_MAPS, NS, {"metadata": {"name": name, "namespace": NS}, "data": data})
        await self.api.create(SERVICE_ACCOUNTS, NS, {"metadata": {"name": "flashjob-viewer", "namespace": NS}})


class Keeper:
    """Knows callers by the tokens of the cluster in memory; no task is assigned to anybody."""

    ready = True

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.revoked: set[str] = set()

    def caller(self, token: str) -> Caller:
        self.tokens.append(token)
        kind, namespace, account, audience, *_ = token.split(":")
        if kind != "fake" or audience != "flashjob-gateway" or token in self.revoked:
            raise FlashJobError(Reason.NOT_ASSIGNED, "not one of ours")
        return Caller(namespace, account)

    def assigned(self, caller: Caller, task: str, attempt: int) -> str:
        raise FlashJobError(Reason.NOT_ASSIGNED, f"{caller} has no task {task}/{attempt}")

    def address(self, caller: Caller, task: str) -> str | None:
        raise FlashJobError(Reason.NOT_ASSIGNED, f"{caller} has no task {task}")

    def saw(self, namespace: str, task: str, progress: Progress) -> None:
        raise AssertionError("nobody reports here")

    async def gather(self, namespace: str, task: str, attempt: int) -> Gathered:
        raise FlashJobError(Reason.NOT_ASSIGNED, f"no {namespace}/{task}/{attempt}")

    async def write(self, namespace: str, task: str, report: Report, version: str) -> None:
        raise AssertionError("nothing is judged here")


class Gateway:
    """The real door over TLS, with a board to write on."""

    def __init__(self, directory: Path) -> None:
        self.keeper, self.board = Keeper(), ProgressBoard()
        self._authority = Authority(directory, datetime.datetime.now(datetime.UTC))
        self.url = ""

    @property
    def ca(self) -> str:
        return self._authority.certificate_file.read_text()

    def at(self, task: str, stage: Stage, done: int, total: int, attempt: int = 1, job: str = JOB) -> None:
        """A pod reported."""
        self.board.put(NS, job, task, Progress(attempt=attempt, stage=stage, done=done, total=total))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gateway]:
        service = Service(self.keeper, Keys(KeyRing(current=1, keys={1: b"n" * 32}), GRANT_KEY), Clock())
        certificate, key = self._authority.issue("gateway", "gateway", hosts=["127.0.0.1"], server=True)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        runner = web.AppRunner(Door(service, self.keeper, self.board, self.keeper).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


class Paper(io.StringIO):
    """What was printed."""

    def console(self, *, terminal: bool = False, width: int = 100, height: int = 40) -> Console:
        return Console(file=self, force_terminal=terminal, width=width, height=height, color_system=None)

    @property
    def text(self) -> str:
        return self.getvalue()


def shown(what: Any, width: int = 100) -> str:
    """What a renderable looks like on paper."""
    paper = Paper()
    paper.console(width=width).print(what)
    return paper.text
