# SPDX-License-Identifier: Apache-2.0
"""The paths of the service.

| path | takes | gives |
|---|---|---|
| ``POST /v1/nonce`` | JSON ``{"ueid": hex, "audience": text}`` | JSON ``{"nonce": hex, "expiresAt": Unix seconds}`` |
| ``POST /v1/verify?ueid=&audience=&nonce=`` | the evidence as the device sent it | a signed result (EAR), also for a rejection |
| ``GET /v1/keys`` | | COSE_KeySet of the keys that results may be signed with |
| ``GET /healthz``, ``/readyz``, ``/metrics`` | | for whoever runs it |

Rules (tests name them):

1. What evidence is worth is always 200 and a result. Anything else is a problem document with a code.
2. A body is at most 4,096 bytes, of its one media type, not compressed, and there within some seconds.
3. `ueid` is hex of 7 to 33 bytes, `audience` 1 to 256 printable ASCII characters without space, `nonce` hex of 32 bytes;
   each exactly once, and nothing else.
4. A nonce is made from what is remembered of the device, without a look at the disk: it promises nothing. Results never are.
5. A store that cannot tell, or records that cannot be written, give 503 and no result.
6. While the service drains, answers close their connection, and it is not ready.

It stands on aiohttp's plain server: six fixed paths are one look into a dictionary, and what aiohttp's applications do beyond
that costs a tenth of a verdict.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attestation import ear, eat, keys, nonce
from attestation.device_file import first_error
from attestation.errors import Reject
from attestation.keys import Alg
from attestation.service import metrics, problems
from attestation.service.judge import Judge, Question
from attestation.service.keyring import KEY_SET_TYPE, ServiceKeys
from attestation.service.limits import Lane, Rates
from attestation.service.metrics import Metrics
from attestation.service.problems import Problem, Refused
from attestation.service.trust import Enrolled

log = logging.getLogger(__name__)

EVIDENCE_TYPE: Final = "application/vnd.flashjob.evidence+cbor"
JSON_TYPE: Final = "application/json"
CODE: Final = web.RequestKey("code", str)
"""What the metrics count an answer as, where it is not simply ``ok``."""
_READ_BYTES: Final = 2 * eat.EVIDENCE_LIMIT
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    ueid: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){7,33}$")]
    audience: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}$")]


class _AskedAbout(_Asked):
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


M = TypeVar("M", bound=_Asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is served at once. Sizes in bytes, times in seconds.

    Args:
        workers: threads for verdicts. More than one is of use only where records are flushed to a disk: the interpreter
            runs one at a time.
        dear_workers: threads for verdicts on ES384 devices.
        queue: most verdicts that wait, in each lane.
        rate: verdicts per second and device; 0 limits nothing.
        body_seconds: until a body must be there.
        idle_seconds: until a connection must have sent a whole header.
        connections: most open ones.
        drain_seconds: how long requests in progress may take after SIGTERM.
    """

    workers: int = 1
    dear_workers: int = 1
    queue: int = 256
    rate: float = 10.0
    body_seconds: float = 5.0
    idle_seconds: float = 15.0
    connections: int = 1024
    drain_seconds: float = 10.0


@dataclass(slots=True)
class State:
    """What changes while the service runs."""

    keys: ServiceKeys
    trouble: str = ""
    """Why it is not ready, besides what is looked up when asked."""
    draining: bool = False
    busy: int = 0
    """Requests in progress."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is in progress."""


class _Server(web.Server):
    """Reads in pieces of the size of requests.

    asyncio reads 256 KiB otherwise. Each such block is cut down to the few bytes that came, and what was cut off is a hole
    in which small objects come to lie: the heap of a process that runs for long would grow by megabytes of them.
    """

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        if getattr(transport, "max_size", 0) > _READ_BYTES:
            transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(handler, transport)


class Door:
    """What answers requests.

    Args:
        judge: makes results.
        state: keys and readiness.
        limits: how much at once.
        counts: what is counted.
    """

    def __init__(self, judge: Judge, state: State, limits: Limits, counts: Metrics) -> None:
        self._judge, self._state, self._limits, self._counts = judge, state, limits, counts
        self._lane = Lane("common", workers=limits.workers, queue=limits.queue)
        self._dear = Lane("ES384", workers=limits.dear_workers, queue=limits.queue)
        self._rates = Rates(limits.rate)
        self._paths: Final[dict[str, tuple[str, _Handler]]] = {
            "/v1/nonce": ("POST", self._nonce),
            "/v1/verify": ("POST", self._verify),
            "/v1/keys": ("GET", self._keys),
            "/healthz": ("GET", self._healthz),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._metrics),
        }
        state.idle.set()

    def server(self, **settings: Any) -> web.Server:
        """A server that asks this door, for the loop that runs.

        Args:
            settings: of its connections, as ``web.Server`` takes them.
        """
        request = partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=eat.EVIDENCE_LIMIT)
        return _Server(self._serve, request_factory=request, **settings)

    def close(self) -> None:
        """End the threads."""
        self._lane.close()
        self._dear.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Its every end is an answer, which is counted."""
        path, state, begin = request.rel_url.raw_path, self._state, perf_counter()
        method, handler = self._paths.get(path, ("", _wrong_path))
        if method and request.method != method:
            handler = _wrong_method(method)
        state.busy += 1
        state.idle.clear()
        try:
            response, code = await _answer(request, handler)
        finally:
            state.busy -= 1
            if not state.busy:
                state.idle.set()
        if state.draining:
            response.force_close()
        counted = path if request.method == method else "other"
        self._counts.count(counted, code, perf_counter() - begin)
        return response

    async def _nonce(self, request: web.BaseRequest) -> web.Response:
        body = await self._body(request, JSON_TYPE)
        try:
            asked = _Asked.model_validate_json(body)
        except ValidationError as error:
            raise Refused(Problem.MALFORMED, first_error(error)) from error
        ueid = bytes.fromhex(asked.ueid)
        ttl = await self._lifetime(ueid)
        now = int(self._judge.clock())
        made = nonce.issue(
            self._state.keys.ring,
            ueid,
            asked.audience.encode(),
            now=now,
            ttl=ttl,
            random=os.urandom(nonce.RANDOM_SIZE),
        )
        return _reply(b'{"nonce": "%s", "expiresAt": %d}' % (made.hex().encode(), now + ttl), JSON_TYPE)

    async def _verify(self, request: web.BaseRequest) -> web.Response:
        asked = _parameters(request, _AskedAbout)
        data = await self._body(request, EVIDENCE_TYPE)
        question = Question(bytes.fromhex(asked.ueid), asked.audience, bytes.fromhex(asked.nonce))
        self._rates.take(question.ueid, now=asyncio.get_running_loop().time())
        device = await self._device(question.ueid)
        lane = self._dear if device and keys.alg_of(device.anchor.key) is Alg.ES384 else self._lane
        result = await lane.run(self._judge.result, question, data, self._state.keys)
        request[CODE] = result.verdict.code or ear.ACCEPTED
        return _reply(result.ear, ear.CONTENT_TYPE)

    async def _keys(self, _: web.BaseRequest) -> web.Response:
        return _reply(self._state.keys.key_set, KEY_SET_TYPE)

    async def _healthz(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        why = "draining" if self._state.draining else self._state.trouble
        if not why:
            try:
                await asyncio.to_thread(self._judge.trust.check)
            except Reject as reject:
                why = str(reject)
        return web.Response(status=503, text=f"{why}\n") if why else web.Response(text="ok\n")

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        return _reply(self._counts.render(), metrics.CONTENT_TYPE)

    async def _device(self, ueid: bytes) -> Enrolled | None:
        return self._judge.trust.known(ueid) or await self._lane.run(self._judge.trust.device, ueid)

    async def _lifetime(self, ueid: bytes) -> int:
        """Rule 4."""
        trust = self._judge.trust
        device = await self._device(ueid)
        if device is None:
            raise Refused(Problem.DEVICE_UNKNOWN, f"no device {ueid.hex()} is enrolled: enroll it first")
        name = device.anchor.policy
        policy = trust.known_policy(name) or await self._lane.run(trust.policy, name)
        if policy is None:
            raise Refused(Problem.POLICY_MISSING, f"there is no policy {name!r}: create it")
        return policy.nonce_ttl_seconds

    async def _body(self, request: web.BaseRequest, media_type: str) -> bytes:
        """Rule 2."""
        if request.content_type != media_type or "Content-Encoding" in request.headers:
            raise Refused(Problem.MEDIA, f"the body must be {media_type}, not compressed")
        if (request.content_length or 0) > eat.EVIDENCE_LIMIT:
            raise Refused(Problem.TOO_LARGE, f"the body exceeds {eat.EVIDENCE_LIMIT} bytes")
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
        try:
            if request.content.is_eof():  # all of it came with the header, as nearly always: nothing to wait for
                return await request.read()
            late = asyncio.get_running_loop().call_later(
                self._limits.body_seconds, request.content.set_exception, TimeoutError()
            )
            try:
                return await request.read()
            finally:
                late.cancel()
        except web.HTTPRequestEntityTooLarge as error:
            raise Refused(Problem.TOO_LARGE, f"the body exceeds {eat.EVIDENCE_LIMIT} bytes") from error
        except TimeoutError as error:
            raise Refused(Problem.SLOW, f"the body took longer than {self._limits.body_seconds:g} s") from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise Refused(Problem.MALFORMED, "the body ended before its length, or its chunks are broken") from error


async def _answer(request: web.BaseRequest, handler: _Handler) -> tuple[web.StreamResponse, str]:
    try:
        response = await handler(request)
    except Refused as refused:
        return _problem(refused), refused.problem.value
    except Reject as reject:  # rule 5
        log.error("%s %s: %s", request.method, request.path, reject)
        return _problem(Refused(Problem.STORE, str(reject), retry_after=1)), Problem.STORE.value
    except Exception:  # the last line: a bug is one request's trouble, and the log says where
        log.exception("%s %s", request.method, request.path)
        return _problem(Refused(Problem.INTERNAL, "the service's log says what happened")), Problem.INTERNAL.value
    return response, request.get(CODE, "ok")


async def _wrong_path(request: web.BaseRequest) -> web.Response:
    message = f"{request.method} {request.path[:200]}: there are GET /v1/keys, POST /v1/nonce and POST /v1/verify"
    raise Refused(Problem.PATH, message)


def _wrong_method(allowed: str) -> _Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = _problem(Refused(Problem.METHOD, f"{request.path} takes {allowed}, not {request.method}"))
        response.headers["Allow"] = allowed
        request[CODE] = Problem.METHOD.value
        return response

    return handle


def _parameters(request: web.BaseRequest, model: type[M]) -> M:
    """Rule 3."""
    try:
        pairs = parse_qsl(
            request.rel_url.raw_query_string,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=len(model.model_fields),
        )
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a parameter is there twice")
        return model.model_validate(found)
    except ValidationError as error:
        raise Refused(Problem.MALFORMED, first_error(error)) from error
    except ValueError as error:
        raise Refused(Problem.MALFORMED, f"query: {error}") from error


def _reply(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type})


def _problem(refused: Refused) -> web.Response:
    headers = {"Content-Type": problems.CONTENT_TYPE}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    response = web.Response(status=refused.problem.status, body=refused.body(), headers=headers)
    if refused.problem in (Problem.SLOW, Problem.TOO_LARGE):
        response.force_close()
    return response
