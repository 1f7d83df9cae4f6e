# SPDX-License-Identifier: Apache-2.0
"""The door over real HTTP: the rules of door.py, by the number in a test's name."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from attestation.grants import Verb
from flashjob.errors import FlashJobError
from flashjob.gateway.door import MAX_BODY_BYTES, Door
from flashjob.gateway.progress import ProgressBoard
from flashjob.gateway.tokens import Caller
from flashjob.wire.base import b64url
from flashjob.wire.gateway import Problem, Progress, Purpose
from flashjob.wire.pod import VIEWER_SERVICE_ACCOUNT
from flashjob.wire.reasons import Reason
from tests.unit.gateway.court import Court
from tests.unit.virtual.workbench import Bench, image

POD = Caller("ns", "flashjob-flasher", "flash-1", "uid-1")
TOKENS = {
    "pod-secret": POD,
    "viewer-secret": Caller("ns", VIEWER_SERVICE_ACCOUNT),
    "other-viewer": Caller("elsewhere", VIEWER_SERVICE_ACCOUNT),
}
NONCE = {"attempt": 1, "purpose": "before"}
PROGRESS = {"attempt": 1, "stage": "Writing", "done": 3, "total": 9}


class Keeper:
    """Knows three tokens; the pod has attempt 1 of task t."""

    def __init__(self) -> None:
        self.ready = True
        self.loaded = True

    def caller(self, token: str) -> Caller:
        if not self.loaded:
            raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "keys are not loaded")
        if token not in TOKENS:
            raise FlashJobError(Reason.NOT_ASSIGNED, "the bearer token is refused")
        return TOKENS[token]

    def assigned(self, caller: Caller, task: str, attempt: int) -> str:
        if (caller, task, attempt) != (POD, "t", 1):
            raise FlashJobError(Reason.NOT_ASSIGNED, f"not assigned attempt {attempt} of {task}", "see the task")
        return "job"

    def address(self, caller: Caller, task: str) -> str | None:
        self.assigned(caller, task, 1)
        return "192.0.2.7:80"


class Stages(list[tuple[str, str, Progress]]):
    """What was handed on to be written."""

    def saw(self, namespace: str, task: str, progress: Progress) -> None:
        self.append((namespace, task, progress))


class World:
    """A served door with everything behind it."""

    def __init__(self) -> None:
        self.court, self.keeper, self.stages = Court(Bench(), image("2.0")), Keeper(), Stages()
        self.board = ProgressBoard()
        self.door = Door(self.court.service, self.keeper, self.board, self.stages)
        self.client: Any = None

    async def ask(
        self, path: str, body: object = None, *, token: str | None = "pod-secret", method: str = "", raw: bytes = b""
    ) -> tuple[int, Any]:
        """(status, parsed answer or None); every answer of 400 and above must be a Problem."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        data = raw or (None if body is None else json.dumps(body).encode())
        method = method or ("GET" if data is None else "POST")
        async with self.client.request(method, path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 400:
                problem = Problem.model_validate_json(text)
                assert answer.content_type == "application/json"
                assert problem.message
                return answer.status, problem
            return answer.status, json.loads(text) if text else None


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with TestClient(TestServer(world.door.application(), host="127.0.0.1")) as client:
        world.client = client
        yield world


async def test_a_whole_update_over_http(world: World) -> None:
    court = world.court
    attempt = court.attempt

    async def nonce(purpose: Purpose) -> bytes:
        status, answer = await world.ask("/v1/tasks/t/nonce", {"attempt": attempt, "purpose": str(purpose)})
        assert (status, answer["ttlSeconds"]) == (200, 120)
        return unb64(answer["nonce"])

    permit = {
        "attempt": attempt,
        "evidence": b64url(court.bench.evidence(await nonce(Purpose.BEFORE))),
        "deviceNonce": b64url(court.bench.nonce(Verb.INSTALL)),
        "release": b64url(court.release),
    }
    status, answer = await world.ask("/v1/tasks/t/permit", permit)
    assert (status, answer["decision"]) == (200, "Write")
    assert court.bench.send_bytes(unb64(answer["installGrant"])).status == 200
    assert court.bench.upload(court.image).status == 200
    court.bench.reset()
    first = {
        "attempt": attempt,
        "evidence": b64url(court.bench.evidence(await nonce(Purpose.AFTER))),
        "deviceNonce": b64url(court.bench.nonce(Verb.CONFIRM)),
    }
    status, answer = await world.ask("/v1/tasks/t/evidence", first)
    assert status == 200
    proof = court.bench.send_bytes(unb64(answer["confirmGrant"])).body
    assert proof is not None
    last = {"attempt": attempt, "evidence": b64url(proof)}
    assert await world.ask("/v1/tasks/t/confirm", last) == (
        200,
        {"outcome": "Proven", "reason": "Proven", "message": Reason.PROVEN.meaning},
    )
    status, problem = await world.ask("/v1/tasks/t/confirm", last)
    assert (status, problem.reason) == (409, "EvidenceReplayed"), "the same proof again is a replay"


async def test_a_refused_installation_is_reverted_over_http(world: World) -> None:
    court = world.court
    await court.write_and_reboot(await court.permit())
    court.policy_changes = {"authorityHashes": ["ab" * 64]}
    evidence = court.bench.evidence(await court.nonce(Purpose.AFTER))
    body = {"attempt": 1, "evidence": b64url(evidence), "deviceNonce": b64url(court.bench.nonce(Verb.CONFIRM))}
    status, problem = await world.ask("/v1/tasks/t/evidence", body)
    assert (status, problem.reason, problem.judged) == (409, "PolicyRejected", True)
    body = {"attempt": 1, "deviceNonce": b64url(court.bench.nonce(Verb.REVERT))}
    status, answer = await world.ask("/v1/tasks/t/revert", body)
    assert status == 200
    assert court.bench.send_bytes(unb64(answer["revertGrant"])).reboot


async def test_nothing_to_revert_over_http(world: World) -> None:
    status, problem = await world.ask("/v1/tasks/t/revert", {"attempt": 1, "deviceNonce": "A" * 22})
    assert (status, problem.reason) == (409, "NothingToRevert")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


PATHS = [
    ("/v1/tasks/t/nonce", NONCE),
    ("/v1/tasks/t/permit", {"attempt": 1}),
    ("/v1/tasks/t/evidence", {"attempt": 1, "evidence": "AAAA", "deviceNonce": "A" * 22}),
    ("/v1/tasks/t/confirm", {"attempt": 1, "evidence": "AAAA"}),
    ("/v1/tasks/t/revert", {"attempt": 1, "deviceNonce": "A" * 22}),
    ("/v1/tasks/t/progress", PROGRESS),
    ("/v1/tasks/t/result", {"task": "t", "attempt": 1, "stage": "Writing", "ok": False, "reason": "X2"}),
    ("/v1/tasks/t/address", None),
]


@pytest.mark.parametrize(("path", "body"), [*PATHS, ("/v1/progress?job=job", None)])
@pytest.mark.parametrize("token", [None, "", "stranger"])
async def test_1_without_a_known_token_nothing_opens(world: World, path: str, body: object, token: str | None) -> None:
    status, problem = await world.ask(path, body, token=token)
    assert (status, problem.reason) == (403, "NotAssigned")
    assert problem.next_step or token == "stranger"


async def test_1_only_the_bearer_scheme_counts(world: World) -> None:
    for value in ("pod-secret", "Basic pod-secret", "Bearer", "Bearer pod-secret more"):
        async with world.client.get("/v1/tasks/t/address", headers={"Authorization": value}) as answer:
            assert answer.status == 403, value
    async with world.client.get("/v1/tasks/t/address", headers={"Authorization": "bearer  pod-secret"}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_1_the_viewer_opens_no_task(world: World, path: str, body: object) -> None:
    status, problem = await world.ask(path, body, token="viewer-secret")
    assert (status, problem.reason) == (403, "NotAssigned")
    assert world.court.writes == 0


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, body in PATHS if body])
async def test_1_a_pod_opens_its_own_attempt_only(world: World, path: str, body: dict[str, object]) -> None:
    for wrong_path, wrong in ((path, {**body, "attempt": 2}), (path.replace("/t/", "/other/"), body)):
        status, problem = await world.ask(wrong_path, wrong)
        assert (status, problem.reason) == (403, "NotAssigned")


async def test_1_progress_is_for_the_viewer_of_that_namespace(world: World) -> None:
    assert await world.ask("/v1/tasks/t/progress", PROGRESS) == (204, None)
    seen = {"items": [{"task": "t", "attempt": 1, "stage": "Writing", "done": 3, "total": 9}]}
    assert await world.ask("/v1/progress?job=job", token="viewer-secret") == (200, seen)
    for path, token in (("/v1/progress?job=job", "other-viewer"), ("/v1/progress", "viewer-secret")):
        assert await world.ask(path, token=token) == (200, {"items": []})
    status, problem = await world.ask("/v1/progress?job=job")
    assert (status, problem.reason) == (403, "NotAssigned"), "a flashing pod learns nothing of others"


async def test_progress_goes_to_the_board_and_the_result_takes_it_off(world: World) -> None:
    await world.ask("/v1/tasks/t/progress", PROGRESS)
    assert world.stages == [("ns", "t", Progress.parse(PROGRESS))]
    assert len(world.board.of_job("ns", "job")) == 1
    result = {"task": "t", "attempt": 1, "stage": "Writing", "ok": False, "reason": "WriteFailed"}
    assert await world.ask("/v1/tasks/t/result", result) == (204, None)
    assert world.board.of_job("ns", "job") == ()
    assert world.court.writes == 0, "nothing rests on what a pod says of itself"


async def test_address_is_given_to_the_assigned_pod(world: World) -> None:
    assert await world.ask("/v1/tasks/t/address") == (200, {"address": "192.0.2.7:80"})
    assert (await world.ask("/v1/tasks/other/address"))[0] == 403


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("nonce", {"attempt": 1}, "purpose"),
        ("nonce", {"attempt": "1", "purpose": "before"}, "attempt"),
        ("nonce", {"attempt": 0, "purpose": "before"}, "attempt"),
        ("nonce", {"attempt": 101, "purpose": "before"}, "attempt"),
        ("nonce", {"attempt": 1, "purpose": "during"}, "purpose"),
        ("nonce", {**NONCE, "extra": 1}, "extra"),
        ("permit", {"attempt": 1, "deviceNonce": "AAAA"}, "deviceNonce"),
        ("permit", {"attempt": 1, "evidence": "not base64!"}, "evidence"),
        ("permit", {"attempt": 1, "release": b64url(bytes(4097))}, "release"),
        ("evidence", {"attempt": 1, "evidence": "", "deviceNonce": "A" * 22}, "evidence"),
        ("evidence", {"attempt": 1, "evidence": "AAAA"}, "deviceNonce"),
        ("confirm", {"attempt": 1}, "evidence"),
        ("revert", {"attempt": 1, "deviceNonce": "AAAA"}, "deviceNonce"),
        ("revert", {"attempt": 1, "deviceNonce": "A" * 22, "grantId": "ab" * 16}, "grantId"),
        ("progress", {**PROGRESS, "stage": "Dreaming"}, "stage"),
        ("progress", {**PROGRESS, "done": -1}, "done"),
        ("result", {"task": "t", "attempt": 1, "stage": "Writing", "ok": False, "reason": "not a code"}, "reason"),
        ("nonce", [], "body"),
        ("nonce", "text", "body"),
    ],
)
async def test_2_a_wrong_body_is_400_and_names_the_field(world: World, path: str, body: object, field: str) -> None:
    status, problem = await world.ask(f"/v1/tasks/t/{path}", body)
    assert status == 400
    assert problem.message.startswith(f"{field}: ")
    assert world.court.writes == 0


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"attempt": 1, "purpose": "before"} more', b"[" * 10_000])
async def test_2_no_json_is_400(world: World, raw: bytes) -> None:
    status, problem = await world.ask("/v1/tasks/t/nonce", raw=raw)
    assert (status, problem.message[:5]) == (400, "body:")


async def test_2_a_body_too_large_is_413_and_a_problem(world: World) -> None:
    padded = json.dumps(NONCE).encode().ljust(MAX_BODY_BYTES)
    assert (await world.ask("/v1/tasks/t/nonce", raw=padded))[0] == 200, "the limit itself is fine"
    status, problem = await world.ask("/v1/tasks/t/nonce", raw=padded + b" ")
    assert status == 413
    assert f"{MAX_BODY_BYTES} bytes" in problem.message


async def test_2_who_calls_is_asked_before_the_body_is_read(world: World) -> None:
    assert (await world.ask("/v1/tasks/t/nonce", token="stranger", raw=b"x" * (MAX_BODY_BYTES + 1)))[0] == 403


async def test_3_what_is_wrong_with_the_matter_is_409(world: World) -> None:
    world.court.held = (Reason.PAUSED, "job j is paused")
    evidence = world.court.bench.evidence(await world.court.nonce(Purpose.BEFORE))
    status, problem = await world.ask("/v1/tasks/t/permit", {"attempt": 1, "evidence": b64url(evidence)})
    assert (status, problem.reason, problem.retryable) == (409, "Paused", False)
    assert problem.message == "job j is paused"
    assert problem.next_step == Reason.PAUSED.next_step


async def test_3_trouble_of_the_gateway_is_503(world: World) -> None:
    world.keeper.loaded = False
    status, problem = await world.ask("/v1/tasks/t/nonce", NONCE)
    assert (status, problem.reason) == (503, "GatewayUnavailable")


async def test_3_a_task_that_others_keep_writing_to_is_trouble_too(world: World) -> None:
    world.court.conflicts = 5
    evidence = world.court.bench.evidence(await world.court.nonce(Purpose.BEFORE))
    body = {
        "attempt": 1,
        "evidence": b64url(evidence),
        "deviceNonce": b64url(world.court.bench.nonce(Verb.INSTALL)),
        "release": b64url(world.court.release),
    }
    status, problem = await world.ask("/v1/tasks/t/permit", body)
    assert (status, problem.reason, problem.retryable) == (503, "GatewayUnavailable", True)
    assert (await world.ask("/v1/tasks/t/permit", body))[0] == 200, "asked again, the same request is fine"


async def test_3_a_long_message_still_arrives(world: World) -> None:
    world.court.held = (Reason.SUSPENDED, "why " * 1000)
    evidence = world.court.bench.evidence(await world.court.nonce(Purpose.BEFORE))
    status, problem = await world.ask("/v1/tasks/t/permit", {"attempt": 1, "evidence": b64url(evidence)})
    assert (status, len(problem.message)) == (409, 1024)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/tasks/t/nonce", 405),
        ("DELETE", "/v1/progress", 405),
        ("POST", "/v1/tasks//nonce", 404),
        ("POST", "/v1/tasks/a/b/nonce", 404),
        ("POST", "/v1/tasks/Upper/nonce", 404),
        ("POST", "/v1/tasks/a%0ab/nonce", 404),
        ("POST", f"/v1/tasks/{'a' * 254}/nonce", 404),
    ],
)
async def test_3_paths_that_are_not_there(world: World, method: str, path: str, expected: int) -> None:
    status, problem = await world.ask(path, method=method)
    assert (status, problem.reason) == (expected, "InternalError")


async def test_3_a_bug_is_a_problem_too_and_says_nothing_of_itself(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("inner workings")

    monkeypatch.setattr(world.court, "gather", broken)
    status, problem = await world.ask("/v1/tasks/t/nonce", NONCE)
    assert (status, problem.reason) == (500, "InternalError")
    assert "inner" not in problem.message
    assert "inner workings" in caplog.text, "the log says which"


async def test_4_neither_tokens_nor_evidence_are_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    evidence = b64url(world.court.bench.evidence(await world.court.nonce(Purpose.BEFORE)))
    with caplog.at_level(logging.DEBUG):
        await world.ask("/v1/tasks/t/permit", {"attempt": 1, "evidence": evidence})
        await world.ask("/v1/tasks/t/confirm", {"attempt": 1, "evidence": evidence})
        await world.ask("/v1/tasks/other%0aforged line/nonce", NONCE)
        await world.ask("/v1/tasks/other/nonce", NONCE)
        await world.ask("/v1/tasks/t/nonce", NONCE, token="stranger")
    assert "turned away" in caplog.text
    for secret in ("pod-secret", "stranger", evidence[:40]):
        assert secret not in caplog.text
    assert "\nforged line" not in caplog.text


async def test_probes_want_no_token(world: World) -> None:
    for path, expected in (("/healthz", 200), ("/readyz", 200)):
        async with world.client.get(path) as answer:
            assert answer.status == expected
    world.keeper.ready = False
    async with world.client.get("/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "caches are filling\n")
    async with world.client.get("/healthz") as answer:
        assert answer.status == 200, "alive, though not ready"
