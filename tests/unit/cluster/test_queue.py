# SPDX-License-Identifier: Apache-2.0
"""The work queue: once per storm, never twice at a time, and again after trouble."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from flashjob.cluster.faults import Crash
from flashjob.cluster.kubeapi import ApiError
from flashjob.cluster.queue import WorkQueue
from tests.clusters import until

Work = Callable[[str], Awaitable[float | None]]


@asynccontextmanager
async def running(work: Work, *, window: float = 0.01, workers: int = 4) -> AsyncIterator[WorkQueue[str]]:
    queue = WorkQueue(work, window_seconds=window, workers=workers)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_rule_1_one_worker_per_key_and_once_more_afterwards() -> None:
    gate, started, at_once, most = asyncio.Event(), 0, 0, 0

    async def work(key: str) -> None:
        nonlocal started, at_once, most
        started += 1
        at_once += 1
        most = max(most, at_once)
        await gate.wait()
        at_once -= 1

    async with running(work) as queue:
        queue.add("a")
        await until(lambda: started == 1)
        for _ in range(50):
            queue.add("a")
        gate.set()
        await queue.idle()
        assert (started, most) == (2, 1)


async def test_different_keys_go_side_by_side_up_to_the_limit() -> None:
    gate, inside, most = asyncio.Event(), set[str](), 0

    async def work(key: str) -> None:
        nonlocal most
        inside.add(key)
        most = max(most, len(inside))
        await gate.wait()
        inside.discard(key)

    async with running(work, workers=3) as queue:
        for key in "abcdef":
            queue.add(key)
        await until(lambda: len(inside) == 3)
        gate.set()
        await queue.idle()
        assert most == 3


async def test_rule_2_a_storm_becomes_a_few_runs() -> None:
    runs = 0

    async def work(key: str) -> None:
        nonlocal runs
        runs += 1

    async with running(work, window=0.05) as queue:
        queue.add("a")
        await until(lambda: runs == 1)
        for _ in range(1000):
            queue.add("a")
            await asyncio.sleep(0)
        await queue.idle()
        assert 2 <= runs <= 6


async def test_rule_3_the_earliest_time_counts() -> None:
    runs: list[str] = []

    async def work(key: str) -> None:
        runs.append(key)

    async with running(work) as queue:
        queue.add_after("later", 3600)
        queue.add_after("soon", 3600)
        queue.add_after("soon", 0.02)
        queue.add_after("soon", 3600)
        await until(lambda: runs == ["soon"])
        queue.add("later")
        await until(lambda: runs == ["soon", "later"])
        await queue.idle()


async def test_work_may_ask_to_be_called_again() -> None:
    runs = 0

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        return 0.01 if runs < 3 else None

    async with running(work) as queue:
        queue.add("a")
        await until(lambda: runs == 3)
        await queue.idle()
        assert runs == 3


async def test_rule_4_a_conflict_is_tried_again_soon() -> None:
    runs = 0

    async def work(key: str) -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise ApiError(409, "Conflict", "the object has been modified")

    async with running(work) as queue:
        queue.add("a")
        await until(lambda: runs == 4, seconds=2)


async def test_rule_4_trouble_is_logged_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []

    async def work(key: str) -> None:
        runs.append(key)
        if key == "bad":
            raise RuntimeError("a defect")

    async with running(work) as queue:
        queue.add("bad")
        queue.add("good")
        await queue.idle()
        assert sorted(runs) == ["bad", "good"]
        assert "a defect" in caplog.text
        queue.add("bad")  # an event brings it forward
        await until(lambda: runs.count("bad") == 2)


async def test_rule_5_a_death_ends_the_queue_and_cancels_the_rest() -> None:
    cancelled: list[str] = []

    async def work(key: str) -> None:
        if key == "dies":
            raise Crash
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(key)
            raise

    queue = WorkQueue(work)
    queue.add("waits")
    queue.add("dies")
    with pytest.raises(Crash):
        await queue.run()
    assert cancelled == ["waits"]


async def test_a_forgotten_key_is_not_worked_on() -> None:
    runs: list[str] = []

    async def work(key: str) -> None:
        runs.append(key)

    async with running(work) as queue:
        queue.add_after("gone", 0.02)
        queue.add_after("kept", 0.03)
        queue.forget("gone")
        await until(lambda: runs == ["kept"])
