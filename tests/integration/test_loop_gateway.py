# SPDX-License-Identifier: Apache-2.0
"""Enemies between pod and gateway: the test itself is the flashing pod, with that pod's own token, and cheats.

The pod is the one that the operator made, kept from any node by a cordon; so gateway, Lease, task and device are real,
and what is posted twice, late or for another device can be chosen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from firmware_pipeline import api
from flashjob.flasher.fetch import fetch
from flashjob.flasher.gateway_client import GatewayClient, HttpJudge
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.wire.gateway import (
    ConfirmRequest,
    DeviceResult,
    EvidenceReply,
    EvidenceRequest,
    NonceRequest,
    PermitReply,
    PermitRequest,
    Purpose,
    VerdictReply,
)
from flashjob.wire.pod import ENV_ASSIGNMENTS, POD_SERVICE_ACCOUNT, TOKEN_AUDIENCE, Assignment, Assignments
from flashjob.wire.refusal import Refused

from .world import NEW, Obj, Place, World, condition, end_of, pods_held

pytestmark = pytest.mark.integration


@dataclass
class Impostor:
    """The test in the pod's place."""

    place: Place
    pod: Obj
    assignment: Assignment
    token: str

    @property
    def token_file(self) -> Path:
        path = self.place.directory / "token"
        path.write_text(self.token)
        return path

    def client(self) -> GatewayClient:
        stack = self.place.world.stack
        return GatewayClient(stack.gateway_url, self.token_file, stack.gateway_ca)

    @asynccontextmanager
    async def judge(self) -> AsyncIterator[Recorder]:
        async with self.client() as client:
            yield Recorder(client, self.assignment.task)

    async def attempt(self, judge: HttpJudge, transport: NetworkTransport | None = None) -> DeviceResult:
        """What the flashing pod does."""
        target = self.assignment.target
        where = f"{target.repository}@{target.index_digest}"
        store = api.open_store(where, self.place.world.registry_options)
        firmware = await asyncio.to_thread(fetch, store, target, self.place.directory)
        transport = transport or NetworkTransport(self.assignment.address or "")
        return await Attempt(self.assignment, firmware, transport, judge).run()

    def leave(self) -> None:
        """The pod goes; what counts is what the gateway wrote."""
        self.place.kubectl("delete", "pod", self.pod["metadata"]["name"], "--grace-period=0", "--force")

    def task(self) -> Obj:
        """The FlashTask now."""
        found: Obj = json.loads(self.place.kubectl("get", "flashtask", self.assignment.task, "-o", "json"))
        return found


class Recorder(HttpJudge):
    """Remembers what it posted."""

    def __init__(self, client: GatewayClient, task: str) -> None:
        super().__init__(client, task)
        self.permits: list[PermitRequest] = []
        self.evidences: list[EvidenceRequest] = []
        self.confirms: list[ConfirmRequest] = []

    async def permit(self, request: PermitRequest) -> PermitReply:
        self.permits.append(request)
        return await super().permit(request)

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        self.evidences.append(request)
        return await super().evidence(request)

    async def confirm(self, request: ConfirmRequest) -> VerdictReply:
        self.confirms.append(request)
        return await super().confirm(request)


@dataclass
class Relay(NetworkTransport):
    """Takes the evidence after the write from another device."""

    address: str
    donor: str
    asked: int = field(default=0)

    def __post_init__(self) -> None:
        super().__init__(self.address)

    async def evidence(self, nonce: bytes) -> bytes:
        self.asked += 1
        if self.asked == 1:
            return await super().evidence(nonce)
        other = NetworkTransport(self.donor)
        try:
            return await other.evidence(nonce)
        finally:
            await other.close()


@pytest.fixture
def impostor(world: World, place: Place) -> Iterator[Impostor]:
    """A job whose pod never reaches a node; a second device is there beside."""
    place.start_fleet({"name": "yard", "chip": "esp32s3"}, {"name": "shed", "chip": "esp32s3"})
    image = world.push(place.namespace, world.plans(("esp32s3",), NEW), signer=world.signer())
    with pods_held(world):
        retries = {"retries": {"limit": 0, "backoffSeconds": 0}}
        place.apply(place.device("yard", job="spring"), place.device("shed"))
        place.apply(place.job("spring", image, strategy=retries))
        pod = place.until("pods", lambda pods: next(iter(pods.values()), None))
        yield Impostor(place, pod, assignment_of(pod), bound_token(place, pod))


def assignment_of(pod: Obj) -> Assignment:
    env = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
    return Assignments.model_validate_json(env[ENV_ASSIGNMENTS]).items[0]


def bound_token(place: Place, pod: Obj, audience: str | None = TOKEN_AUDIENCE) -> str:
    """The token that the kubelet would project into the pod."""
    metadata = pod["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
    spec = {"audiences": [audience] if audience else None, "expirationSeconds": 600, "boundObjectRef": bound}
    path = f"/api/v1/namespaces/{place.namespace}/serviceaccounts/{POD_SERVICE_ACCOUNT}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str(place.world.sandbox.plane.request("POST", path, body)["status"]["token"])


async def test_evidence_posted_twice_is_a_replay_and_changes_nothing(impostor: Impostor) -> None:
    async with impostor.judge() as judge:
        result = await impostor.attempt(judge)
        assert (result.ok, result.reason) == (True, "Proven"), result
        report = impostor.task()["status"]["report"]
        for again in (judge.evidence(judge.evidences[0]), judge.confirm(judge.confirms[0])):
            with pytest.raises(Refused) as refused:
                await again
            assert refused.value.reason == "EvidenceReplayed"
            assert refused.value.next_step
        with pytest.raises(Refused) as refused:
            await judge.permit(judge.permits[0])
        assert refused.value.reason == "EvidenceReplayed"
        assert impostor.task()["status"]["report"] == report
    impostor.leave()
    place = impostor.place
    job = await asyncio.to_thread(place.finished, "spring")
    assert condition(job, "Succeeded")["status"] == "True"
    assert place.installs("yard") == 1


async def test_the_same_confirmation_posted_side_by_side_gives_one_verdict(impostor: Impostor) -> None:
    class Double(Recorder):
        async def confirm(self, request: ConfirmRequest) -> VerdictReply:
            posted = (super(Double, self).confirm(request) for _ in range(4))
            answers = await asyncio.gather(*posted, return_exceptions=True)
            refused = [answer for answer in answers if isinstance(answer, Refused)]
            assert {answer.reason for answer in refused} == {"EvidenceReplayed"}
            (verdict,) = (answer for answer in answers if isinstance(answer, VerdictReply))
            return verdict

    async with impostor.client() as client:
        result = await impostor.attempt(Double(client, impostor.assignment.task))
    assert (result.ok, result.reason) == (True, "Proven"), result
    report = impostor.task()["status"]["report"]
    assert len(report["usedNonces"]) == len(set(report["usedNonces"])) == 3
    impostor.leave()


async def test_evidence_of_another_device_is_told_apart(impostor: Impostor) -> None:
    place = impostor.place
    relay = Relay(impostor.assignment.address or "", place.ready("shed").address)
    async with impostor.judge() as judge:
        result = await impostor.attempt(judge, relay)
        assert (result.ok, result.reason) == (False, "EvidenceOfAnotherDevice"), result
        # Whatever the device itself might say now, this attempt was judged.
        with pytest.raises(Refused) as refused:
            await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.AFTER))
        assert refused.value.reason == "EvidenceReplayed"
    impostor.leave()
    await asyncio.to_thread(place.finished, "spring")
    task = impostor.task()
    assert end_of(task) == ("Failed", "EvidenceOfAnotherDevice")
    assert "Next: " in task["status"]["message"]
    assert place.untouched("shed")


async def test_evidence_from_before_the_write_proves_nothing_after_it(impostor: Impostor) -> None:
    class Lazy(Recorder):
        async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
            old = self.permits[0].evidence
            assert old is not None
            return await super().evidence(request.model_copy(update={"evidence": old}))

    async with impostor.client() as client:
        result = await impostor.attempt(Lazy(client, impostor.assignment.task))
    assert (result.ok, result.reason) == (False, "EvidenceReplayed"), result
    impostor.leave()
    job = await asyncio.to_thread(impostor.place.finished, "spring")
    assert condition(job, "Failed")["reason"] == "EvidenceReplayed"


async def test_only_the_assigned_pod_is_served(impostor: Impostor) -> None:
    place, plane = impostor.place, impostor.place.world.sandbox.plane
    request = NonceRequest(attempt=1, purpose=Purpose.BEFORE)
    unbound = plane.service_account_token(place.namespace, POD_SERVICE_ACCOUNT, 600, TOKEN_AUDIENCE)
    for token, why in (
        (unbound, "not bound to a pod"),
        (bound_token(place, impostor.pod, None), "InvalidAudienceError"),
        (impostor.token[:-6] + "AAAAAA", "InvalidSignatureError"),
    ):
        impostor.token = token
        async with impostor.judge() as judge:
            with pytest.raises(Refused, match=why) as refused:
                await judge.nonce(request)
            assert refused.value.reason == "NotAssigned"
    impostor.token = bound_token(place, impostor.pod)
    async with impostor.judge() as judge:
        assert len((await judge.nonce(request)).nonce) == 32
        with pytest.raises(Refused, match="not assigned attempt 2"):
            await judge.nonce(NonceRequest(attempt=2, purpose=Purpose.BEFORE))
        impostor.leave()
        uid = impostor.pod["metadata"]["uid"]  # another pod of that name may come: nobody has permitted anything yet
        await asyncio.to_thread(
            place.until, "pods", lambda pods: uid not in {p["metadata"]["uid"] for p in pods.values()}
        )
        with pytest.raises(Refused):
            await judge.nonce(request)
    assert place.untouched("yard")


def test_a_flashing_pod_can_do_nothing_at_the_api_server(impostor: Impostor) -> None:
    plane = impostor.place.world.sandbox.plane
    paths = [
        *(f"/api/v1/namespaces/{impostor.place.namespace}/{kind}" for kind in ("pods", "secrets", "configmaps")),
        *(
            f"/apis/flashjob.dev/v1alpha1/namespaces/{impostor.place.namespace}/{kind}"
            for kind in ("flashtasks", "flashjobs", "devices")
        ),
    ]
    own, general = impostor.token, bound_token(impostor.place, impostor.pod, None)
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(plane.ca)
        for token, status in ((own, 401), (general, 403)):
            session.headers["Authorization"] = f"Bearer {token}"
            answers = {path: session.get(plane.url + path, timeout=10).status_code for path in paths}
            assert set(answers.values()) == {status}, answers
            written = session.patch(f"{plane.url}{paths[3]}/{impostor.assignment.task}/status", json={}, timeout=10)
            assert written.status_code == status
    impostor.leave()
