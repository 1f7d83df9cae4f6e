# SPDX-License-Identifier: Apache-2.0
"""Rules of watch.py: a cluster in memory, the real gateway's door over TLS, and paper for a terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from flashjob.cli.watch import ReadBack, read_back, watch
from flashjob.cluster.resources import DEVICES, FLASHJOBS, FLASHTASKS
from flashjob.errors import FlashJobError
from flashjob.wire.gateway import Stage
from tests import objects
from tests.clusters import until

from .story import JOB, NS, Cluster, Gateway, Paper, at, finished, permit, verdict

DONE = {"phase": "Succeeded", "reason": "Proven", "message": "runs it", "finishedAt": at(30)}


@pytest.fixture
async def cluster() -> Cluster:
    made = Cluster()
    await made.begin(devices=2)
    return made


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with Gateway(tmp_path).serving() as serving:
        yield serving


def start(
    cluster: Cluster, paper: Paper, *, terminal: bool = False, as_json: bool = False, gateway: str = ""
) -> asyncio.Task[ReadBack]:
    console = paper.console(terminal=terminal, width=400 if not terminal else 100)
    return asyncio.create_task(watch(cluster.api, NS, JOB, console, as_json=as_json, gateway=gateway))


async def printed(paper: Paper, text: str) -> None:
    """Wait until it stands there."""
    await eventually(lambda: text in paper.text, lambda: f"{text!r} is not in:\n{paper.text}")


async def eventually(condition: Callable[[], object], message: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(message())


async def test_a_job_from_start_to_end_on_a_pipe(cluster: Cluster, gateway: Gateway) -> None:
    await cluster.publish(gateway.url, gateway.ca)
    paper = Paper()
    watching = start(cluster, paper)
    await printed(paper, "WaitingForTurn")
    await cluster.task("t0", report={"permits": [permit()]})
    gateway.at("t0", Stage.WRITING, 600, 1000)
    await printed(paper, "Writing        60 %")
    await cluster.task("t0", report={"verdict": verdict()})
    await printed(paper, "Rediscovering")
    await cluster.task("t0", **DONE)
    await cluster.task("t1", phase="Skipped", reason="AlreadyRunning", message="ran it", finishedAt=at(31))
    await printed(paper, "AlreadyRunning: ran it")
    assert not watching.done()
    await cluster.job(**finished(True))
    final = await watching
    assert final.exit_code == 0
    assert [task.status.phase for task in final.tasks] == ["Succeeded", "Skipped"]
    assert set(final.devices) == {"d0", "d1"}
    assert paper.text.count("d0                   Succeeded") == 1
    assert "no per cent" not in paper.text
    assert not any(cluster.api.watching(kind) for kind in (FLASHJOBS, FLASHTASKS, DEVICES)), "nothing is left behind"


async def test_rule_1_without_a_gateway_phases_only_said_once(cluster: Cluster) -> None:
    paper = Paper()
    watching = start(cluster, paper)
    await printed(paper, "no per cent, phases only: ConfigMap lab/flashjob-gateway names no url")
    await cluster.task("t1", **DONE)
    await printed(paper, "Proven: runs it")
    await cluster.job(**finished(False))
    assert (await watching).exit_code == 1
    assert paper.text.count("no per cent") == 1


async def test_rule_2_a_terminal_gets_a_live_table(cluster: Cluster, gateway: Gateway) -> None:
    await cluster.publish(gateway.url, gateway.ca)
    await cluster.task("t0", report={"permits": [permit()]})
    gateway.at("t0", Stage.WRITING, 42, 100)
    paper = Paper()
    watching = start(cluster, paper, terminal=True)
    await printed(paper, "42 %")
    await cluster.task("t0", **DONE)
    await cluster.job(**finished(True))
    await watching
    assert "root of trust" in paper.text
    assert "Succeeded" in paper.text[paper.text.rindex("root of trust") :], "the last picture is the end"


async def test_rule_2_a_line_for_each_quarter_and_no_more(cluster: Cluster, gateway: Gateway) -> None:
    await cluster.publish(gateway.url, gateway.ca)
    await cluster.task("t0", report={"permits": [permit()]})
    paper = Paper()
    gateway.at("t0", Stage.WRITING, 30, 100)
    watching = start(cluster, paper)
    await printed(paper, " 30 %")
    gateway.at("t0", Stage.WRITING, 40, 100)
    polls = len(gateway.keeper.tokens)
    await eventually(lambda: len(gateway.keeper.tokens) > polls + 1, lambda: "it asks no more")
    gateway.at("t0", Stage.WRITING, 60, 100)
    await printed(paper, " 60 %")
    assert " 40 %" not in paper.text
    await cluster.job(**finished(True))
    await watching


async def test_rule_2_json(cluster: Cluster) -> None:
    paper = Paper()
    watching = start(cluster, paper, as_json=True, terminal=True)
    await printed(paper, '"event": "note"')
    await cluster.task("t0", **DONE)
    await printed(paper, '"phase": "Succeeded"')
    await cluster.job(**finished(True))
    await watching
    events = [json.loads(line) for line in paper.text.splitlines()]
    assert {event["event"] for event in events} == {"job", "device", "note"}
    last = [event for event in events if event.get("device") == "d0"][-1]
    assert (last["phase"], last["reason"], last["rootOfTrust"]) == ("Succeeded", "Proven", "SignedBoot")


async def test_rule_3_what_is_said_at_the_end_is_read_back(cluster: Cluster) -> None:
    """The job is finished before its tasks' last events are seen: the end shows them all the same."""
    paper = Paper()
    watching = start(cluster, paper)
    await printed(paper, "WaitingForTurn")
    cluster.api.swallow(FLASHTASKS, 1)
    await cluster.task("t0", **DONE)
    await cluster.job(**finished(True))
    final = await watching
    assert final.tasks[0].status.phase == "Succeeded"
    assert "Proven: runs it" in paper.text


async def test_an_earlier_namesakes_tasks_are_not_shown(cluster: Cluster) -> None:
    stale = objects.flashtask("stale", NS, "02" * 33, "old-device", JOB)
    stale["metadata"]["labels"] = {"flashjob.dev/job": JOB}
    await cluster.api.create(FLASHTASKS, NS, stale)
    paper = Paper()
    watching = start(cluster, paper)
    await printed(paper, "WaitingForTurn")
    await cluster.job(**finished(True))
    assert {task.metadata.name for task in (await watching).tasks} == {"t0", "t1"}
    assert "old-device" not in paper.text


async def test_deleted_job_and_missing_job(cluster: Cluster) -> None:
    paper = Paper()
    watching = start(cluster, paper)
    await until(lambda: cluster.api.watching(FLASHJOBS))
    await cluster.api.delete(FLASHJOBS, NS, JOB)
    with pytest.raises(FlashJobError) as error:
        await watching
    assert error.value.reason == "JobDeleted"
    with pytest.raises(FlashJobError) as error:
        await start(cluster, paper)
    assert error.value.reason == "JobNotFound"
    assert not any(cluster.api.watching(kind) for kind in (FLASHJOBS, FLASHTASKS, DEVICES))


async def test_read_back_of_a_job_under_way(cluster: Cluster) -> None:
    assert (await read_back(cluster.api, NS, JOB)).exit_code == 2
