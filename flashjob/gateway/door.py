# SPDX-License-Identifier: Apache-2.0
"""The HTTP door for flashing pods (wire/gateway.py lists the paths). It holds no task state and never dials a device.

Rules (tests name them):

1. Every path but /healthz and /readyz wants a bearer token. A pod's token opens only the tasks that the pod's
   annotation names while the pod lives and the device's Lease is held for that attempt; the viewer's token opens only
   GET /v1/progress of its own namespace.
2. A body is at most 16 KiB (else 413) of JSON, exactly the model of its path; anything else is 400, naming the field.
3. A refusal is 403 (who) or 409 (what); 503 means that the gateway itself is in trouble: ask again. Every answer of
   400 and above is a Problem, also where there is no such path (404, 405) or the gateway has a bug (500).
4. Nothing secret is logged: no token, no evidence.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from flashjob.errors import FlashJobError
from flashjob.wire.base import WireModel
from flashjob.wire.gateway import (
    AddressReply,
    ConfirmRequest,
    DeviceResult,
    EvidenceRequest,
    NonceRequest,
    PermitRequest,
    Problem,
    Progress,
    ProgressList,
    RevertRequest,
)
from flashjob.wire.pod import VIEWER_SERVICE_ACCOUNT
from flashjob.wire.reasons import Reason

from .progress import ProgressBoard
from .ruling import Refused
from .service import Service
from .tokens import Caller, pod_bound

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024
_STATUS: Final[dict[str, int]] = {Reason.NOT_ASSIGNED: 403, Reason.GATEWAY_UNAVAILABLE: 503}
_TASK: Final = "/v1/tasks/{task:[a-z0-9.-]{1,253}}"
M = TypeVar("M", bound=WireModel)


class Malformed(FlashJobError):
    """A request that is none of this version (rule 2)."""

    def __init__(self, error: ValidationError) -> None:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        super().__init__(
            Reason.INTERNAL_ERROR, f"{where}: {first['msg']}", "use a flasher image of the gateway's version"
        )


class Doorkeeper(Protocol):
    """Who may do what."""

    def caller(self, token: str) -> Caller:
        """Whose token this is. Raises FlashJobError NotAssigned."""
        ...

    def assigned(self, caller: Caller, task: str, attempt: int) -> str:
        """The job of the task, if the caller's pod is the one assigned to this attempt. Raises FlashJobError NotAssigned."""
        ...

    def address(self, caller: Caller, task: str) -> str | None:
        """Where the device of the task was last seen."""
        ...

    @property
    def ready(self) -> bool:
        """Whether caches are filled and keys are loaded."""
        ...


class StageWriter(Protocol):
    """Records the stage of an attempt that takes long; never in the way of an answer."""

    def saw(self, namespace: str, task: str, progress: Progress) -> None:
        """An attempt reported where it is."""
        ...


class Door:
    """The aiohttp application.

    Args:
        service: judges.
        keeper: knows callers and assignments.
        board: holds per cent.
        stages: records long stages.
    """

    def __init__(self, service: Service, keeper: Doorkeeper, board: ProgressBoard, stages: StageWriter) -> None:
        self._service, self._keeper, self._board, self._stages = service, keeper, board, stages

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_problems])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/v1/progress", self._progress_of_job),
                web.get(f"{_TASK}/address", self._address),
                web.post(f"{_TASK}/nonce", self._nonce),
                web.post(f"{_TASK}/permit", self._permit),
                web.post(f"{_TASK}/evidence", self._evidence),
                web.post(f"{_TASK}/confirm", self._confirm),
                web.post(f"{_TASK}/revert", self._revert),
                web.post(f"{_TASK}/progress", self._progress),
                web.post(f"{_TASK}/result", self._result),
            ]
        )
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return (
            web.Response(text="ok\n") if self._keeper.ready else web.Response(status=503, text="caches are filling\n")
        )

    def _caller(self, request: web.Request) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise FlashJobError(Reason.NOT_ASSIGNED, "no bearer token", "see the pod's projected token volume")
        return self._keeper.caller(token.strip())

    async def _read(self, request: web.Request, model: type[M]) -> tuple[Caller, str, M]:
        caller = pod_bound(self._caller(request))
        body = await _parsed(request, model)
        task = request.match_info["task"]
        attempt: int = body.attempt  # type: ignore[attr-defined]
        self._keeper.assigned(caller, task, attempt)
        return caller, task, body

    async def _nonce(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, NonceRequest)
        return _reply(await self._service.nonce(caller.namespace, task, body))

    async def _permit(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, PermitRequest)
        reply = await self._service.permit(caller.namespace, task, body)
        log.info("permit %s/%s attempt %d: %s", caller.namespace, task, body.attempt, reply.decision)
        return _reply(reply)

    async def _evidence(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, EvidenceRequest)
        return _reply(await self._service.evidence(caller.namespace, task, body))

    async def _confirm(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, ConfirmRequest)
        reply = await self._service.confirm(caller.namespace, task, body)
        log.info("verdict %s/%s attempt %d: %s %s", caller.namespace, task, body.attempt, reply.outcome, reply.reason)
        return _reply(reply)

    async def _revert(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, RevertRequest)
        reply = await self._service.revert(caller.namespace, task, body)
        log.info("revert %s/%s attempt %d", caller.namespace, task, body.attempt)
        return _reply(reply)

    async def _progress(self, request: web.Request) -> web.Response:
        caller = pod_bound(self._caller(request))
        body = await _parsed(request, Progress)
        task = request.match_info["task"]
        job = self._keeper.assigned(caller, task, body.attempt)
        self._board.put(caller.namespace, job, task, body)
        self._stages.saw(caller.namespace, task, body)
        return web.Response(status=204)

    async def _result(self, request: web.Request) -> web.Response:
        caller, task, body = await self._read(request, DeviceResult)
        self._board.forget(caller.namespace, task)
        log.info("result %s/%s attempt %d: %s in %s", caller.namespace, task, body.attempt, body.reason, body.stage)
        return web.Response(status=204)

    async def _address(self, request: web.Request) -> web.Response:
        caller = pod_bound(self._caller(request))
        return _reply(AddressReply(address=self._keeper.address(caller, request.match_info["task"])))

    async def _progress_of_job(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        if caller.service_account != VIEWER_SERVICE_ACCOUNT:
            raise FlashJobError(Reason.NOT_ASSIGNED, f"progress is for ServiceAccount {VIEWER_SERVICE_ACCOUNT}")
        return _reply(ProgressList(items=self._board.of_job(caller.namespace, request.query.get("job", ""))))


async def _parsed(request: web.Request, model: type[M]) -> M:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        raise Malformed(error) from error


def _reply(model: WireModel) -> web.Response:
    return web.Response(text=model.model_dump_json(by_alias=True, exclude_none=True), content_type="application/json")


def _problem(status: int, reason: str, message: str, next_step: str = "") -> web.Response:
    return _said(status, Problem(reason=reason, message=message[:1024], next_step=next_step[:512]))


def _said(status: int, problem: Problem) -> web.Response:
    return web.json_response(text=problem.model_dump_json(by_alias=True), status=status)


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Rule 3: every error of ours as a Problem."""
    try:
        return await handler(request)
    except Refused as error:
        log.info("refused %s: %s", request.rel_url.raw_path, error.message)
        return _said(_STATUS.get(error.reason, 409), error.problem)
    except Malformed as error:
        return _problem(400, error.reason, error.message, error.next_step)
    except FlashJobError as error:
        log.info("turned away %s: %s", request.rel_url.raw_path, error.message)
        return _problem(_STATUS.get(error.reason, 409), error.reason, error.message, error.next_step)
    except web.HTTPRequestEntityTooLarge:
        return _problem(413, Reason.INTERNAL_ERROR, f"the body exceeds {MAX_BODY_BYTES} bytes")
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _problem(
            error.status, Reason.INTERNAL_ERROR, f"{request.method} {request.rel_url.raw_path[:200]}: {error.reason}"
        )
    except Exception:  # the last line of the door: whatever it is, the pod gets a Problem and asks again
        log.exception("%s %s", request.method, request.rel_url.raw_path)
        return _problem(500, Reason.INTERNAL_ERROR, "the gateway has a bug; its log says which")
