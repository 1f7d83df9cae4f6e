# SPDX-License-Identifier: Apache-2.0
"""Flasher's client and gateway's door over TLS, with real tokens, on a case book that reads a cluster in memory."""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from attestation import keys
from attestation.grants import Verb
from flashjob.cluster.resources import FLASHTASKS, PODS
from flashjob.errors import FlashJobError
from flashjob.flasher.gateway_client import GatewayClient
from flashjob.gateway.door import Door
from flashjob.gateway.progress import ProgressBoard
from flashjob.sandbox.pki import Authority
from flashjob.wire.gateway import (
    ConfirmRequest,
    DeviceResult,
    EvidenceRequest,
    NonceRequest,
    Outcome,
    PermitDecision,
    Progress,
    Purpose,
    Stage,
)
from flashjob.wire.pod import VIEWER_SERVICE_ACCOUNT
from flashjob.wire.refusal import Refused
from tests.unit.gateway.office import JOB, POD, SPACE, TASK, Office, open_office
from tests.unit.gateway.test_tokens import FOREIGN_KEY, bound, claims, token
from tests.unit.virtual.workbench import GRANT_KEY


class Served:
    """The office behind TLS, and what its clients need."""

    def __init__(self, office: Office, directory: Path) -> None:
        self.office, self.board = office, ProgressBoard()
        self.token_file = directory / "token"
        self.ca = Authority(directory / "ca", datetime.datetime.now(datetime.UTC))
        self.foreign_ca = Authority(directory / "foreign", datetime.datetime.now(datetime.UTC))
        self.url = ""
        self.renew()

    def renew(self) -> None:
        """As the kubelet does."""
        self.token_file.write_text(self.office.token())

    async def start(self) -> web.AppRunner:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*self.ca.issue("gateway", "gateway", hosts=["127.0.0.1"], server=True))
        door = Door(self.office.service, self.office.book, self.board, self.office.book)
        runner = web.AppRunner(door.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def client(self, ca: Authority | None = None) -> GatewayClient:
        return GatewayClient(self.url, self.token_file, (ca or self.ca).certificate_file, patience=0.3)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with open_office() as office:
        served = Served(office, tmp_path)
        runner = await served.start()
        yield served
        await runner.cleanup()


async def test_a_whole_update_from_nonce_to_verdict(served: Served) -> None:
    office = served.office
    bench = office.bench
    async with served.client() as client:
        judge = client.judge(TASK)
        before = await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
        request = (await office.permit_request()).model_copy(update={"evidence": bench.evidence(before.nonce)})
        permit = await judge.permit(request)
        assert (permit.decision, permit.fence) == (PermitDecision.WRITE, 1)
        assert permit.install_grant is not None
        assert bench.send_bytes(permit.install_grant).status == 200
        await judge.progress(Progress(attempt=1, stage=Stage.WRITING, done=1, total=2))
        assert [one.task for one in served.board.of_job(SPACE, JOB)] == [TASK]
        assert bench.upload(office.image).status == 200
        bench.reset()
        assert await judge.address() is None
        after = await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.AFTER))
        first = EvidenceRequest(attempt=1, evidence=bench.evidence(after.nonce), device_nonce=bench.nonce(Verb.CONFIRM))
        reply = await judge.evidence(first)
        assert reply.confirm_grant is not None
        proof = bench.send_bytes(reply.confirm_grant).body
        assert proof is not None
        verdict = await judge.confirm(ConfirmRequest(attempt=1, evidence=proof))
        assert verdict.outcome is Outcome.PROVEN
        await judge.result(
            DeviceResult(task=TASK, attempt=1, stage=Stage.CONFIRMING, ok=True, reason="Done", seconds={})
        )
        assert served.board.of_job(SPACE, JOB) == ()
    assert office.report["verdict"]["bootId"] == permit.grant_id
    assert [call.subresource for call in office.cluster.calls if call.verb == "patch"].count("status") == 3, (
        "the pod's phase, the permit, the verdict"
    )


async def test_a_pod_whose_task_went_to_another_attempt_is_refused_at_once(served: Served) -> None:
    await served.office.take(attempt=2)
    await served.office.seen()
    async with served.client() as client:
        with pytest.raises(Refused) as caught:
            await client.judge(TASK).nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
    assert caught.value.reason == "NotAssigned"
    assert f"{SPACE}/{TASK}/2" in caught.value.message


async def test_a_deleted_pods_token_opens_nothing_although_it_has_not_expired(served: Served) -> None:
    await served.office.cluster.delete(PODS, SPACE, POD, grace_seconds=0)
    await served.office.seen()
    async with served.client() as client:
        with pytest.raises(Refused, match="not running"):
            await client.judge(TASK).nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))


async def test_an_expired_token_is_refused_and_the_renewed_one_read_anew(served: Served) -> None:
    async with served.client() as client:
        judge = client.judge(TASK)
        served.office.bench.now += 606
        with pytest.raises(Refused, match="expired"):
            await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
        served.renew()
        assert (await judge.nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))).ttl_seconds > 0


async def test_a_token_that_the_api_server_did_not_sign(served: Served) -> None:
    who = bound(pod={"name": POD, "uid": served.office.pod_uid}, namespace=SPACE)
    at = int(served.office.bench.now)
    forged = claims(**{"kubernetes.io": who, "nbf": at, "exp": at + 600})
    served.token_file.write_text(token(forged, key=FOREIGN_KEY))
    async with served.client() as client:
        with pytest.raises(Refused) as caught:
            await client.judge(TASK).nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
    assert caught.value.reason == "NotAssigned"


async def test_a_gateway_of_another_ca_never_sees_the_token(served: Served) -> None:
    async with served.client(served.foreign_ca) as client:
        with pytest.raises(FlashJobError) as caught:
            await client.judge(TASK).nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
    assert caught.value.reason == "GatewayUnavailable"
    assert not [call for call in served.office.cluster.calls if call.resource == FLASHTASKS and call.verb == "get"]


async def test_before_the_gateway_is_ready_pods_are_asked_to_wait(tmp_path: Path) -> None:
    office = Office()
    await office.furnish()
    served = Served(office, tmp_path)
    runner = await served.start()
    async with served.client() as client:
        with pytest.raises(FlashJobError, match="503") as caught:
            await client.judge(TASK).nonce(NonceRequest(attempt=1, purpose=Purpose.BEFORE))
    await runner.cleanup()
    assert not isinstance(caught.value, Refused), "an answer that comes too early is no verdict"


async def test_the_viewers_token_shows_progress_and_a_pods_does_not(served: Served) -> None:
    served.board.put(SPACE, JOB, TASK, Progress(attempt=1, stage=Stage.WRITING, done=1, total=2))
    at = int(served.office.bench.now)
    account = bound(pod=None, namespace=SPACE, serviceaccount={"name": VIEWER_SERVICE_ACCOUNT, "uid": "u"})
    viewer = token(claims(**{"kubernetes.io": account, "nbf": at, "exp": at + 600}))
    tls = ssl.create_default_context(cafile=str(served.ca.certificate_file))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        for bearer, expected in ((viewer, 200), (served.office.token(), 403)):
            headers = {"Authorization": f"Bearer {bearer}"}
            async with session.get(f"{served.url}/v1/progress?job={JOB}", headers=headers) as answer:
                assert answer.status == expected
                if expected == 200:
                    assert [item["task"] for item in (await answer.json())["items"]] == [TASK]


# --- flashjob gateway, the process


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """All that it needs, but for an API server: at that port nobody listens."""
    certificate, key = Authority(tmp_path / "ca", datetime.datetime.now(datetime.UTC)).issue(
        "gateway", "gateway", hosts=["127.0.0.1"], server=True
    )
    (tmp_path / "grant.key").write_bytes(keys.private_to_pem(GRANT_KEY))
    (tmp_path / "nonce").mkdir()
    (tmp_path / "nonce" / "1").write_bytes(b"n" * 32)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    options = {
        "tls-cert": certificate,
        "tls-key": key,
        "grant-key": tmp_path / "grant.key",
        "nonce-keys": tmp_path / "nonce",
        "kubeconfig": tmp_path / "kubeconfig",
        "listen": "127.0.0.1:0",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashjob.cli", "gateway", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["grant.key", "nonce/1", "ca/gateway.key"])
def test_it_does_not_start_without_its_keys(command: list[str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    done = start(*command)
    assert done.returncode == 1
    assert done.stderr.startswith("KeyUnreadable: ")
    assert "Next: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("listen", ["8443x", "127.0.0.1", "127.0.0.1:99999", ""])
def test_it_listens_on_an_address_and_a_port(command: list[str], listen: str) -> None:
    done = start(*command, "--listen", listen)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_it_says_so_where_there_is_no_api_server(command: list[str]) -> None:
    done = start(*command)
    assert done.returncode == 1
    assert "GatewayUnavailable: the API server does not say who issues its tokens" in done.stderr
    assert "Traceback" not in done.stderr
