# SPDX-License-Identifier: Apache-2.0
"""One pod from admission to its last status: one worker, one task, one process.

States: refused (admission), waiting (something it refers to is missing; tried again), running, ended. The kubelet's rules:
1. A refused pod never runs and ends `Failed`.
2. What is missing keeps the pod `Pending` with a waiting reason; the pause between tries doubles up to ten seconds.
3. activeDeadlineSeconds counts from admission, and ends the pod `Failed`, `DeadlineExceeded`.
4. Deletion and deadline: SIGTERM, then after the grace period SIGKILL to everything the pod started.
5. The last status carries exit code and termination message; then volumes, tokens included, are removed.
6. A pod that is being deleted is taken off the API server only when its process is gone.
7. A pod whose object vanished is killed at once.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from flashjob.errors import FlashJobError

from ..client import STRATEGIC_PATCH, ApiClient, ApiError
from ..process import Lifeline
from . import environment, spec, status
from .volumes import TokenFile, Volumes, renew_in_seconds, tokens_of

Json = dict[str, Any]
_log = logging.getLogger(__name__)
TERMINATION_VARIABLE: Final = "FLASHJOB_TERMINATION_FILE"
_ORPHAN_GRACE_SECONDS: Final = 2.0
_DEFAULT_GRACE_SECONDS: Final = 30.0
_MAX_PAUSE_SECONDS: Final = 10.0
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
_UNREACHABLE: Final = (aiohttp.ClientError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Host:
    """What a worker needs of its node."""

    client: ApiClient
    root: Path
    entry_points: Sequence[str]
    environ: Mapping[str, str]
    lifeline: Lifeline
    capacity: Callable[[], Mapping[str, int]]
    in_use: Callable[[], Mapping[str, int]]
    properties: Callable[[str], Mapping[str, str]]
    now: Callable[[], datetime.datetime]

    @property
    def log_directory(self) -> Path:
        """Logs of all pods; they outlive the pods."""
        return self.root / "logs"


class PodWorker:
    """Runs one pod. `claims` counts against the node's devices until `finished`."""

    def __init__(self, host: Host, pod: Json) -> None:
        self._host = host
        self._pod = pod
        meta = pod["metadata"]
        self.uid: str = meta["uid"]
        self.claims: Mapping[str, int] = {}
        self.finished = False
        self._path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self._home = host.root / "pods" / self.uid
        self.log = host.log_directory / f"{meta['namespace']}_{meta['name']}_{self.uid[:8]}.log"
        self._volumes = Volumes(self._home / "volumes", pod)
        self._termination = self._home / "termination-log"
        self._stop_asked = asyncio.Event()
        self._grace_seconds: float | None = None
        self._gone = False
        self._reporting = asyncio.Lock()
        self._newest_report = 0

    def delete(self, grace_seconds: float) -> None:
        """The pod is being deleted (rules 4 and 6). A later call can only shorten the grace period."""
        self._grace_seconds = min(
            grace_seconds, self._grace_seconds if self._grace_seconds is not None else grace_seconds
        )
        self._stop_asked.set()

    def vanished(self) -> None:
        """The pod's object is gone (rule 7)."""
        self._gone = True
        self.delete(0.0)

    async def run(self) -> None:
        """Carry the pod to its end."""
        try:
            try:
                final = await self._run()
            except (OSError, ValueError, KeyError) as error:
                _log.exception("pod %s", self._path)
                final = status.refused("NodeError", f"the node agent could not run it: {error!r}; see the agent's log")
            self.claims = {}  # before the API server learns: the next pod may claim the device at once
            await self._report(final)
        finally:
            self.finished = True
            self._volumes.remove()
            shutil.rmtree(self._home, ignore_errors=True)
        if self._stop_asked.is_set():
            await self.remove_object()

    async def lost(self) -> None:
        """The pod ran under an earlier agent and its process is gone: say so."""
        message = "the node agent was restarted and its processes ended with it; how the pod ended is not known"
        final = status.ended(
            self._pod,
            exit_code=137,
            message=message,
            started=None,
            now=self._host.now(),
            reason="ContainerStatusUnknown",
        )
        await self._report(final)
        self.finished = True
        if self._stop_asked.is_set():
            await self.remove_object()

    async def _run(self) -> Json:
        try:
            container = spec.container_of(self._pod)
            command = spec.command_of(container, self._host.entry_points)
            claims = spec.claims_of(self._pod)
            spec.check_claims(claims, self._host.capacity(), self._host.in_use())
        except FlashJobError as error:
            return status.refused(error.reason, str(error))
        self.claims = claims
        active = self._pod["spec"].get("activeDeadlineSeconds")
        deadline = None if active is None else time.monotonic() + float(active)
        prepared = await self._prepare(container, deadline)
        if prepared is None:
            late = deadline is not None and time.monotonic() >= deadline and not self._stop_asked.is_set()
            return self._ended(137, None, deadline_exceeded=late)
        env, expiries = prepared
        return await self._execute(container, command, env, expiries, deadline)

    async def _prepare(
        self, container: Json, deadline: float | None
    ) -> tuple[dict[str, str], dict[TokenFile, datetime.datetime]] | None:
        """Volumes, tokens and environment (rule 2); None if deletion or the deadline came first."""
        pause = 0.5
        while True:
            try:
                objects = await self._fetch(environment.references_of(self._pod, container))
                self._volumes.create(objects)
                expiries = {
                    token: await self._volumes.write_token(token, self._request_token) for token in tokens_of(self._pod)
                }
                return self._environment(container, objects), expiries
            except FlashJobError as error:
                reason = "ContainerCreating" if isinstance(error, ApiError) else error.reason
                await self._report(status.waiting(self._pod, reason, error.message, self._host.now()))
            except _UNREACHABLE:
                pass  # the API server is away: there is nobody to tell
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if await self._stopped_within(max(0.0, left)) or (deadline is not None and time.monotonic() >= deadline):
                return None
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def _fetch(self, references: set[tuple[str, str]]) -> dict[tuple[str, str], Json | None]:
        namespace = self._pod["metadata"]["namespace"]
        plural = {"Secret": "secrets", "ConfigMap": "configmaps"}
        found: dict[tuple[str, str], Json | None] = {}
        for kind, name in sorted(references):
            try:
                found[kind, name] = await self._host.client.request(
                    "GET", f"/api/v1/namespaces/{namespace}/{plural[kind]}/{name}"
                )
            except ApiError as error:
                if error.status != 404:
                    raise
                found[kind, name] = None
        return found

    async def _request_token(self, token: TokenFile) -> tuple[str, datetime.datetime]:
        meta = self._pod["metadata"]
        account = self._pod["spec"].get("serviceAccountName") or "default"
        body: Json = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": token.expiration_seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": self.uid},
                **({"audiences": [token.audience]} if token.audience else {}),
            },
        }
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        answer = (await self._host.client.request("POST", path, body))["status"]
        return answer["token"], datetime.datetime.fromisoformat(answer["expirationTimestamp"])

    def _environment(self, container: Json, objects: environment.Objects) -> dict[str, str]:
        inside = spec.termination_path_of(container)
        paths = [
            (path, str(self._volumes.directory(volume) / sub_path))
            for path, volume, sub_path in spec.mounts_of(container)
        ]
        asked = environment.container_environment(
            self._pod,
            container,
            objects=objects,
            devices={name: self._host.properties(name) for name in self.claims},
            paths=sorted([*paths, (inside, str(self._termination))], key=lambda pair: -len(pair[0])),
        )
        inherited = {name: self._host.environ[name] for name in _INHERITED if name in self._host.environ}
        own = {
            "HOME": str(self._home),
            "TMPDIR": str(self._home / "tmp"),
            "HOSTNAME": self._pod["metadata"]["name"],
            "PYTHONUNBUFFERED": "1",
            TERMINATION_VARIABLE: str(self._termination),
        }
        return inherited | own | asked

    async def _execute(
        self,
        container: Json,
        command: Sequence[str],
        env: Mapping[str, str],
        expiries: Mapping[TokenFile, datetime.datetime],
        deadline: float | None,
    ) -> Json:
        (self._home / "tmp").mkdir(parents=True, exist_ok=True)
        self._termination.touch()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        started = self._host.now()
        with self.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self._host.lifeline.command(command, orphan_grace_seconds=_ORPHAN_GRACE_SECONDS),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                cwd=self._home / "tmp",
                pass_fds=(self._host.lifeline.descriptor,),
                start_new_session=True,
            )
        try:
            late = await self._attend(process, expiries, deadline, started)
        finally:
            self._signal(process, signal.SIGUSR1)  # nothing, if it has ended
        code = process.returncode if process.returncode is not None else 137
        message = self._message(container, code)
        return self._ended(code, started, deadline_exceeded=late, message=message)

    async def _attend(
        self,
        process: asyncio.subprocess.Process,
        expiries: Mapping[TokenFile, datetime.datetime],
        deadline: float | None,
        started: datetime.datetime,
    ) -> bool:
        """Report it running, renew its tokens, wait for its end; returns whether the deadline brought it about."""
        async with asyncio.TaskGroup() as group:
            renewals = [group.create_task(self._renew(token, expires)) for token, expires in expiries.items()]
            group.create_task(self._report(status.running(self._pod, started, started)))
            late = await self._wait(process, deadline)
            self._newest_report += 1  # a report of `running` that is still being tried has nothing to say any more
            for renewal in renewals:
                renewal.cancel()
        return late

    async def _wait(self, process: asyncio.subprocess.Process, deadline: float | None) -> bool:
        """Wait for the end, or bring it about (rules 3, 4 and 7); returns whether the deadline did."""
        ended = asyncio.ensure_future(process.wait())
        stop = asyncio.ensure_future(self._stop_asked.wait())
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            await asyncio.wait({ended, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return False
            late = not self._stop_asked.is_set()
            self._signal(process, signal.SIGTERM)
            limit = self._pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS)
            give_up = time.monotonic() + float(limit if self._grace_seconds is None else self._grace_seconds)
            while not ended.done() and not self._gone and time.monotonic() < give_up:
                await asyncio.wait({ended}, timeout=min(0.2, max(0.0, give_up - time.monotonic())))
                if self._grace_seconds is not None:
                    give_up = min(give_up, time.monotonic() + self._grace_seconds)
            if not ended.done():
                self._signal(process, signal.SIGUSR1)  # the tether kills everything
            await ended
            return late
        finally:
            stop.cancel()
            ended.cancel()

    @staticmethod
    def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        if process.returncode is None:
            process.send_signal(number)

    async def _renew(self, token: TokenFile, expires: datetime.datetime) -> None:
        while True:
            await asyncio.sleep(renew_in_seconds(self._host.now(), expires))
            try:
                expires = await self._volumes.write_token(token, self._request_token)
            except (ApiError, OSError, *_UNREACHABLE) as error:
                _log.warning("token of %s: %s", self._path, error)
                # One fifth of the old token's life is left for the next tries.
                expires = self._host.now() + datetime.timedelta(seconds=_MAX_PAUSE_SECONDS)

    def _message(self, container: Json, code: int) -> str:
        data = _read_up_to(self._termination, status.MESSAGE_LIMIT)
        if not data and code != 0 and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            data = status.log_fallback(_read_tail(self.log, status.MESSAGE_LIMIT * 4))
        return data.decode(errors="replace")

    def _ended(
        self, code: int, started: datetime.datetime | None, *, deadline_exceeded: bool, message: str = ""
    ) -> Json:
        return status.ended(
            self._pod,
            exit_code=code,
            message=message,
            started=started,
            now=self._host.now(),
            deadline_exceeded=deadline_exceeded,
        )

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop_asked.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _report(self, new_status: Json) -> None:
        """Write the status: tried again while the API server is away, dropped when the object is gone or a newer report
        waits. Reports never overtake each other: an older one would otherwise bring a finished pod back to life."""
        self._newest_report += 1
        mine = self._newest_report
        body = {"metadata": {"uid": self.uid}, "status": new_status}
        async with self._reporting:
            await self._insist("PATCH", f"{self._path}/status", body, lambda: mine == self._newest_report)

    async def remove_object(self) -> None:
        """Rule 6: take the pod off the API server; one of the same name that is another pod stays."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await self._insist("DELETE", self._path, body, lambda: True)

    async def _insist(self, method: str, path: str, body: Json, still_wanted: Callable[[], bool]) -> None:
        pause = 0.2
        content_type = STRATEGIC_PATCH if method == "PATCH" else "application/json"
        while not self._gone and still_wanted():
            try:
                await self._host.client.request(method, path, body, content_type=content_type)
                return
            except ApiError as error:
                if error.status in {404, 409, 422}:
                    _log.info("not needed any more: %s", error.message)
                    return
                _log.warning("tried again: %s", error.message)
            except _UNREACHABLE as error:
                _log.warning("tried again: %s %s: %s", method, path, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)


def _read_up_to(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""


def _read_tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read()
    except OSError:
        return b""
