# SPDX-License-Identifier: Apache-2.0
"""One pod's worker with real processes, against an API server that is away, slow or has forgotten the pod."""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashjob.sandbox.client import ApiClient, ApiError
from flashjob.sandbox.node.worker import Host, PodWorker
from flashjob.sandbox.process import Lifeline

Json = dict[str, Any]
MODULE = "tests.integration.pod_program"
ROOT = str(Path(__file__).parents[3])


class Api(ApiClient):
    """Remembers statuses in the order in which they took effect."""

    def __init__(self) -> None:
        super().__init__("https://127.0.0.1:1", ssl.create_default_context(), None)
        self.phases: list[str] = []
        self.last: Json = {}
        self.deleted = 0
        self.failures: list[Exception] = []
        self.delay_running = asyncio.Event()
        self.delay_running.set()
        self.reported = asyncio.Event()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "",
        params: Mapping[str, str] | None = None,
    ) -> Json:
        if self.failures:
            raise self.failures.pop(0)
        if method == "DELETE":
            self.deleted += 1
        elif method == "PATCH":
            if body["status"]["phase"] == "Running":
                await self.delay_running.wait()
            self.last = body["status"]
            self.phases.append(self.last["phase"])
            self.reported.set()
        elif method == "GET":
            raise ApiError(404, "NotFound", path)
        return {}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def host(tmp_path: Path, api: Api) -> AsyncIterator[Host]:
    with Lifeline() as lifeline:
        yield Host(
            client=api,
            root=tmp_path,
            entry_points=[MODULE],
            environ={**os.environ, "PYTHONPATH": ROOT},
            lifeline=lifeline,
            capacity=lambda: {"ports-aaaaaa": 1},
            in_use=dict,
            properties=lambda _name: {"UDEV_DEVNODE": "/dev/x"},
            now=lambda: datetime.datetime.now(datetime.UTC),
        )


def pod(*arguments: str, container: Json | None = None, **spec: Any) -> Json:
    main = {"name": "c", "command": ["python", "-m", MODULE], "args": list(arguments), **(container or {})}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u-1"},
        "spec": {"restartPolicy": "Never", "containers": [main], **spec},
    }


async def test_an_api_server_that_is_away_only_delays(host: Host, api: Api) -> None:
    api.failures = [aiohttp.ClientConnectionError("away"), ApiError(503, "ServiceUnavailable", "away"), TimeoutError()]
    await PodWorker(host, pod("exit", "0")).run()
    assert api.phases[-1] == "Succeeded"


async def test_a_late_report_never_overtakes_the_last_one(host: Host, api: Api) -> None:
    api.delay_running.clear()
    task = asyncio.create_task(PodWorker(host, pod("exit", "0")).run())
    async with asyncio.timeout(20):
        while not _said_goodbye(host):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the process has ended and its last status waits
    assert api.phases == []
    api.delay_running.set()
    await task
    assert api.phases == ["Running", "Succeeded"]


def _said_goodbye(host: Host) -> bool:
    """The program has written its termination message."""
    return any(path.stat().st_size for path in (host.root / "pods").glob("*/termination-log"))


async def test_an_object_that_is_gone_ends_the_process_and_nothing_is_written(host: Host, api: Api) -> None:
    worker = PodWorker(host, pod("stubborn", terminationGracePeriodSeconds=600))
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await api.reported.wait()
        worker.vanished()
        await task
    assert api.phases == ["Running"]
    assert api.deleted == 0
    assert worker.finished


async def test_a_deleted_pod_is_removed_after_its_last_status(host: Host, api: Api) -> None:
    worker = PodWorker(host, pod("wait"))
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await api.reported.wait()
        await asyncio.sleep(0.3)  # the program sets its handler
        worker.delete(20)
        await task
    assert api.phases == ["Running", "Failed"]
    assert api.last["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143
    assert api.deleted == 1


async def test_deletion_while_something_is_missing(host: Host, api: Api) -> None:
    worker = PodWorker(host, pod("exit", "0", container={"envFrom": [{"secretRef": {"name": "none"}}]}))
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        await api.reported.wait()
        assert api.last["phase"] == "Pending"
        worker.delete(30)
        await task
    assert api.phases[-1] == "Failed"
    assert api.deleted == 1


async def test_a_deadline_counts_while_something_is_missing(host: Host, api: Api) -> None:
    broken = pod("exit", "0", container={"envFrom": [{"secretRef": {"name": "none"}}]}, activeDeadlineSeconds=1)
    async with asyncio.timeout(20):
        await PodWorker(host, broken).run()
    assert (api.last["phase"], api.last["reason"]) == ("Failed", "DeadlineExceeded")


async def test_the_agents_own_trouble_is_said(host: Host, api: Api) -> None:
    host.log_directory.parent.mkdir(parents=True, exist_ok=True)
    host.log_directory.write_text("a file where a directory should be")
    worker = PodWorker(host, pod("exit", "0"))
    await worker.run()
    assert (api.last["phase"], api.last["reason"]) == ("Failed", "NodeError")
    assert worker.finished


async def test_a_claim_is_free_before_its_end_is_known(host: Host, api: Api) -> None:
    claims = {"resources": {"limits": {"akri.sh/ports-aaaaaa": "1"}}}
    worker = PodWorker(host, pod("exit", "0", container=claims))
    seen: list[Mapping[str, int]] = []
    request = api.request

    async def watch(method: str, path: str, body: Any = None, **more: Any) -> Json:
        if method == "PATCH" and body["status"]["phase"] == "Succeeded":
            seen.append(worker.claims)
        return await request(method, path, body, **more)

    api.request = watch  # type: ignore[method-assign]
    await worker.run()
    assert seen == [{}]


async def test_nothing_is_left_on_disk_but_the_log(host: Host, api: Api) -> None:
    await PodWorker(host, pod("shout", "hello", "0")).run()
    assert [path.name for path in host.root.rglob("*") if path.is_file()] == ["n_p_u-1.log"]
