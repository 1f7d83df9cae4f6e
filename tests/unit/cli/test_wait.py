# SPDX-License-Identifier: Apache-2.0
"""Rules of wait.py, on a cluster in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flashjob.api.flashjob import FlashJob
from flashjob.cli.main import run
from flashjob.cli.view import exit_code
from flashjob.cli.wait import NOT_IN_TIME, wait_for
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.resources import FLASHJOBS
from flashjob.errors import FlashJobError
from tests import objects
from tests.clusters import until

from .story import JOB, NS, Cluster, conditions, finished


@pytest.fixture
async def cluster() -> Cluster:
    made = Cluster()
    await made.begin()
    return made


async def waiting(cluster: Cluster) -> asyncio.Task[FlashJob | None]:
    task = asyncio.create_task(wait_for(cluster.api, NS, JOB, 20))
    await until(lambda: cluster.api.watching(FLASHJOBS))
    return task


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
async def test_rule_2_ends_with_the_job(cluster: Cluster, good: bool, code: int) -> None:
    task = await waiting(cluster)
    await cluster.job(phase="Running", conditions=conditions(Finished=("False", "InProgress")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    await cluster.job(**finished(good))
    ended = await task
    assert ended is not None
    assert exit_code(ended) == code


async def test_rule_1_nothing_is_polled(cluster: Cluster) -> None:
    task = await waiting(cluster)
    before = len(cluster.api.calls)
    await cluster.job(**finished(True))
    await task
    assert [call.verb for call in cluster.api.calls[before:]] == ["patch"], "only the test's own request"


async def test_rule_1_a_job_that_has_ended_is_not_waited_for(cluster: Cluster) -> None:
    await cluster.job(**finished(False))
    ended = await wait_for(cluster.api, NS, JOB)
    assert ended is not None
    assert exit_code(ended) == 1


async def test_rule_1_a_job_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(FlashJobError) as error:
        await wait_for(cluster.api, NS, "other")
    assert error.value.reason == "JobNotFound"
    assert "lab/other" in error.value.message


async def test_refusals_of_the_server_are_told(cluster: Cluster) -> None:
    cluster.api.fail(ApiError(403, "Forbidden", "get flashjobs: not for you"), verb="get")
    with pytest.raises(ApiError, match="not for you"):
        await wait_for(cluster.api, NS, JOB)


async def test_rule_2_not_in_time(cluster: Cluster) -> None:
    assert await wait_for(cluster.api, NS, JOB, 0.05) is None
    assert not cluster.api.watching(FLASHJOBS), "nothing is left behind"


async def test_rule_3_deleted_before_its_end(cluster: Cluster) -> None:
    task = await waiting(cluster)
    await cluster.api.delete(FLASHJOBS, NS, JOB)
    with pytest.raises(FlashJobError) as error:
        await task
    assert error.value.reason == "JobDeleted"


async def test_rule_3_deleted_between_the_first_read_and_the_watch(cluster: Cluster) -> None:
    gone = Gone(cluster)
    with pytest.raises(FlashJobError) as error:
        await wait_for(gone, NS, JOB, 20)  # type: ignore[arg-type]
    assert error.value.reason == "JobDeleted"


async def test_rule_3_a_namesake_is_another_job(cluster: Cluster) -> None:
    task = await waiting(cluster)
    await cluster.api.delete(FLASHJOBS, NS, JOB)
    await cluster.api.create(FLASHJOBS, NS, objects.flashjob(JOB, NS))
    await cluster.job(**finished(True))
    with pytest.raises(FlashJobError) as error:
        await task
    assert error.value.reason == "JobDeleted"


async def test_rule_3_finished_then_deleted_counts_as_finished(cluster: Cluster) -> None:
    task = await waiting(cluster)
    await cluster.job(**finished(True))
    await cluster.api.delete(FLASHJOBS, NS, JOB)
    ended = await task
    assert ended is not None
    assert exit_code(ended) == 0


async def test_outlives_a_broken_watch(cluster: Cluster) -> None:
    task = await waiting(cluster)
    cluster.api.disconnect(FLASHJOBS, ApiError(410, "Expired", "too old"))
    await cluster.job(**finished(True))
    assert await task is not None


def test_command_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flashjob", ["wait", "j", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert "NoCluster" in capsys.readouterr().err
    assert run("flashjob", ["wait"]) == NOT_IN_TIME == 2, "as wrong usage"


class Gone:
    """The cluster, where the job goes right after it was read."""

    def __init__(self, cluster: Cluster) -> None:
        self._api = cluster.api

    async def get(self, *args: object) -> object:
        found = await self._api.get(*args)  # type: ignore[arg-type]
        await self._api.delete(FLASHJOBS, NS, JOB)
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._api, name)
