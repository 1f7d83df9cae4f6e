# SPDX-License-Identifier: Apache-2.0
"""The case book on a cluster in memory: one device, one task, one pod, one Lease; and the tokens of whoever calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from attestation import keys
from attestation.grants import Verb
from attestation.nonce import KeyRing
from flashjob.cluster.lease import ensure, take
from flashjob.cluster.resources import ATTESTATION_POLICIES, DEVICES, FLASHJOBS, FLASHTASKS, PODS, Obj
from flashjob.gateway.book import CaseBook
from flashjob.gateway.case import Keys
from flashjob.gateway.service import Clock, Service
from flashjob.gateway.tokens import Caller
from flashjob.wire.base import b64url
from flashjob.wire.gateway import (
    ConfirmRequest,
    EvidenceRequest,
    NonceRequest,
    PermitReply,
    PermitRequest,
    Purpose,
    VerdictReply,
)
from flashjob.wire.lock import Holder
from flashjob.wire.pod import ANNOTATION_ASSIGNMENTS, LABEL_COMPONENT, POD_SERVICE_ACCOUNT
from tests import objects
from tests.clusters import fake_cluster, until
from tests.unit.gateway.court import both, policy_for, target_of
from tests.unit.gateway.test_tokens import AUDIENCE, ISSUER, JWKS, bound, claims, token
from tests.unit.virtual.workbench import GRANT_KEY, Bench, image

SPACE, OPS, TASK, JOB, POD = "factory", "flashjob-system", "job-1-abc", "j", "flash-1"
NOW = "2026-01-02T03:04:05.000000Z"


class Office:
    """A cluster with one flash under way. Attributes and objects may be changed between requests."""

    def __init__(self) -> None:
        self.cluster = fake_cluster()
        self.cluster.raw["/openid/v1/jwks"] = JWKS
        self.bench = Bench()
        self.image = image("2.0")
        self.release = self.bench.release(self.image, sequence=1, measurements=both(self.image))
        self.device_id = self.bench.identity.ueid.hex()
        self.clock = Clock(now=lambda: self.bench.now, random=self.bench.random)
        self.keys = Keys(KeyRing(current=1, keys={1: b"n" * 32}), GRANT_KEY)
        self.attempt = 1
        self.pod_uid = ""
        self.book = self.replica()
        self.service = Service(self.book, self.keys, self.clock)

    def replica(self) -> CaseBook:
        """Another gateway at the same cluster."""
        return CaseBook(self.cluster, OPS, ISSUER, AUDIENCE, self.clock)

    async def furnish(self) -> None:
        """Create the objects."""
        policy = policy_for(self.bench.identity).model_dump(mode="json", by_alias=True, exclude_none=True)
        anchor = {"coseKey": b64url(keys.encode_cose(self.bench.identity.anchor))}
        network: dict[str, Any] = {"network": {}}
        await self.create(ATTESTATION_POLICIES, objects.policy("field", SPACE) | {"spec": policy})
        device = objects.device("porch-1", SPACE, self.device_id, trustAnchor=anchor, connection=network)
        device["spec"]["policyRef"] = {"name": "field"}
        await self.create(DEVICES, device)
        job = await self.create(FLASHJOBS, objects.flashjob(JOB, SPACE))
        target = target_of(self.image, self.release).dump()
        task = objects.flashtask(TASK, SPACE, self.device_id, "porch-1", JOB, target=target, transport="Network")
        task["spec"]["job"]["uid"] = job["metadata"]["uid"]
        await self.create(FLASHTASKS, task)
        await self.take()
        await self.start_pod(POD)

    async def create(self, resource: Any, obj: Obj) -> Obj:
        return await self.cluster.create(resource, obj["metadata"].get("namespace", SPACE), obj)

    async def take(self, namespace: str = SPACE, task: str = TASK, attempt: int = 1) -> None:
        """The device's Lease goes to this attempt."""
        lease = await ensure(self.cluster, OPS, self.device_id, f"{SPACE}/porch-1")
        await take(self.cluster, lease, Holder(namespace, task, attempt), NOW)

    async def start_pod(self, name: str, *assignments: tuple[str, int], annotation: str | None = None) -> str:
        """A running pod with these assignments; returns its UID."""
        refs = [{"task": task, "attempt": attempt} for task, attempt in assignments or ((TASK, 1),)]
        metadata = {
            "name": name,
            "namespace": SPACE,
            "labels": {LABEL_COMPONENT: "flasher"},
            "annotations": {ANNOTATION_ASSIGNMENTS: json.dumps(refs) if annotation is None else annotation},
        }
        body = {"metadata": metadata, "spec": {"nodeName": "n1", "serviceAccountName": POD_SERVICE_ACCOUNT}}
        pod = await self.create(PODS, body)
        await self.phase(name, "Running")
        self.pod_uid = pod["metadata"]["uid"]
        return self.pod_uid

    async def phase(self, pod: str, phase: str) -> None:
        await self.cluster.patch_status(PODS, SPACE, pod, {"phase": phase}, field_manager="kubelet")

    async def status(self, **status: Any) -> None:
        """What the operator writes into the task's status."""
        await self.cluster.patch_status(FLASHTASKS, SPACE, TASK, status, field_manager="flashjob-operator")

    def caller(self, pod: str = POD, uid: str = "", namespace: str = SPACE) -> Caller:
        return Caller(namespace, POD_SERVICE_ACCOUNT, pod, uid or self.pod_uid)

    def token(self, pod: str = POD, *, now: int = 0, **content: Any) -> str:
        """A real token of the pod, issued now."""
        at = now or int(self.bench.now)
        who = bound(pod={"name": pod, "uid": self.pod_uid}, namespace=SPACE)
        return token(claims(**{"kubernetes.io": who, "nbf": at, "iat": at, "exp": at + 600, **content}))

    async def seen(self) -> None:
        """Every cache of the book has seen all that was written so far."""
        for _ in range(50):
            await asyncio.sleep(0)

    @property
    def report(self) -> dict[str, Any]:
        """As stored."""
        found = self.cluster.all(FLASHTASKS, SPACE)[0]["status"].get("report") or {}
        return dict(found)

    # what a pod does

    async def nonce(self, purpose: Purpose) -> bytes:
        return (await self.service.nonce(SPACE, TASK, NonceRequest(attempt=self.attempt, purpose=purpose))).nonce

    async def permit_request(self) -> PermitRequest:
        return PermitRequest(
            attempt=self.attempt,
            evidence=self.bench.evidence(await self.nonce(Purpose.BEFORE)),
            device_nonce=self.bench.nonce(Verb.INSTALL),
            release=self.release,
        )

    async def permit(self) -> PermitReply:
        return await self.service.permit(SPACE, TASK, await self.permit_request())

    async def install(self) -> None:
        """Permit, write, reboot."""
        grant = (await self.permit()).install_grant
        assert grant is not None
        assert self.bench.send_bytes(grant).status == 200
        assert self.bench.upload(self.image).status == 200
        self.bench.reset()

    async def proof(self) -> bytes:
        """What the device answers to the confirm grant that its first evidence earned."""
        request = EvidenceRequest(
            attempt=self.attempt,
            evidence=self.bench.evidence(await self.nonce(Purpose.AFTER)),
            device_nonce=self.bench.nonce(Verb.CONFIRM),
        )
        grant = (await self.service.evidence(SPACE, TASK, request)).confirm_grant
        assert grant is not None
        body = self.bench.send_bytes(grant).body
        assert body is not None
        return body

    async def confirm(self, proof: bytes) -> VerdictReply:
        return await self.service.confirm(SPACE, TASK, ConfirmRequest(attempt=self.attempt, evidence=proof))


@contextlib.asynccontextmanager
async def running(*books: CaseBook) -> AsyncIterator[None]:
    """Keep the books' caches; they are filled when the block begins."""
    tasks = [asyncio.create_task(book.run()) for book in books]
    try:
        await until(lambda: all(book.ready for book in books))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def open_office() -> AsyncIterator[Office]:
    """Furnished, with its book running."""
    office = Office()
    await office.furnish()
    async with running(office.book):
        yield office
