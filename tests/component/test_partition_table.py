# SPDX-License-Identifier: Apache-2.0
"""The right application under another partition table than the artifact's: refused before the write, and after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_pipeline.esp import partitions
from flashjob.virtual.adversaries import OtherTable
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.gateway import Outcome, PermitReply, PermitRequest
from flashjob.wire.pod import Safety

from .bench import Bench, BenchJudge, Release, assignment, new_app, push_parts, runs
from .whole_board import CHIP, OLD, TABLE, at, attempt, judge_of

WAYS = pytest.mark.parametrize("network", [False, True], ids=["serial", "network"])
OURS = partitions.build_table(OLD)
SMALLER = [row if row.name != "ota_1" else replace(row, size=row.size - 0x10000) for row in OLD.partitions]
OTHER = partitions.build_table(partitions.check(SMALLER, table_offset=TABLE))
"""Both boot the same image, and keep the same data."""
UNNAMED = "the partition table: nothing says which it must be"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def release_of(bench: Bench, raw: bytes | None = OURS) -> Release:
    """A release built for this table, or one that names none."""
    parts = {0x20000: new_app(CHIP)}
    return push_parts(bench.tmp_path, parts if raw is None else {TABLE: raw, **parts}, CHIP)


class Repartitions(BenchJudge):
    """Between permit and first byte somebody else puts another table into the device: honest, and moved."""

    async def permit(self, request: PermitRequest) -> PermitReply:
        reply = await super().permit(request)
        self.device.flash.load(TABLE, OTHER)
        return reply


def test_the_target_pins_what_the_device_will_certify(bench: Bench) -> None:
    assert release_of(bench).target.partition_table == partitions.table_sha256(OURS).hex()
    assert release_of(bench, None).target.partition_table is None


@WAYS
async def test_a_table_that_changes_after_preflight_is_no_success(bench: Bench, network: bool) -> None:
    device = await bench.device(network=network, behaviour=OtherTable())
    result, judge = await bench.flash(device, release_of(bench))
    assert (result.ok, result.reason, judge.outcome) == (False, "PartitionMismatch", Outcome.REJECTED), result
    assert judge.code == "ref.partitions"
    assert result.message.endswith("; told to go back, it says that it runs porch 1.0.0")
    await runs(device, "1.0.0")


async def test_an_honest_device_whose_table_somebody_changed_is_none_either(bench: Bench) -> None:
    device = await bench.device(network=True)
    release = release_of(bench)
    task = assignment(device, release.target)
    result, judge = await bench.flash(device, release, task=task, judge=Repartitions(device, task))
    assert (result.ok, result.reason, judge.code) == (False, "PartitionMismatch", "ref.partitions"), result


@WAYS
async def test_twin_of_an_artifact_that_names_none_it_is_proven_and_that_is_said(bench: Bench, network: bool) -> None:
    device = await bench.device(network=network, behaviour=OtherTable())
    result, judge = await bench.flash(device, release_of(bench, None))
    assert (result.ok, judge.outcome, judge.unproven) == (True, Outcome.PROVEN, (UNNAMED,)), result


async def test_a_task_of_an_older_build_is_judged_as_it_was(bench: Bench) -> None:
    device = await bench.device(network=True)
    release = release_of(bench)
    task = assignment(device, release.target.model_copy(update={"partition_table": None}))
    result, judge = await bench.flash(device, release, task=task)
    assert (result.ok, judge.outcome, judge.unproven) == (True, Outcome.PROVEN, (UNNAMED,)), result


async def there(bench: Bench, raw: bytes, *, network: bool) -> VirtualDevice:
    """A device that runs the wanted application already, under this table."""
    device = await bench.device(network=network, app=new_app(CHIP))
    device.flash.load(TABLE, raw)
    device.reset()
    await runs(device, "2.0.0")
    async with asyncio.timeout(5):
        while network and not device.server.address:
            await asyncio.sleep(0.005)
    return device


@WAYS
async def test_what_runs_already_is_left_alone(bench: Bench, network: bool) -> None:
    device = await there(bench, OURS, network=network)
    result, judge = await bench.flash(device, release_of(bench))
    assert (result.ok, judge.outcome, result.bytes_written) == (True, Outcome.ALREADY_RUNNING, 0), result


@WAYS
async def test_under_another_table_it_is_refused_and_nothing_is_written(bench: Bench, network: bool) -> None:
    device = await there(bench, OTHER, network=network)
    result, judge = await bench.flash(device, release_of(bench))
    assert (result.ok, result.reason, result.bytes_written) == (False, "PartitionMismatch", 0), result
    assert (judge.outcome, judge.case.permits) == (None, ()), "preflight's word, before any permit"


async def test_with_leave_the_table_is_written_and_proven(bench: Bench) -> None:
    device = await there(bench, OTHER, network=False)
    task = assignment(device, release_of(bench).target, safety=Safety(allow_partition_table=True))
    judge = judge_of(device, task, 1)
    result = await attempt(bench, device, task, judge)
    assert (result.ok, judge.outcome, judge.unproven) == (True, Outcome.PROVEN, ()), result
    assert at(device, TABLE, OURS)
