# SPDX-License-Identifier: Apache-2.0
"""Bootloader, partition table and data over serial: the whole board goes from one release to the next, and is judged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_pipeline.esp import partitions
from flashjob.wire.gateway import Outcome
from flashjob.wire.pod import Before, Safety

from .bench import Bench, assignment, new_app, runs, signed
from .whole_board import (
    CHIP,
    EVERYTHING,
    FILES,
    OLD,
    SECRET,
    TABLE,
    at,
    attempt,
    board,
    holds,
    judge_of,
    loader,
    publish,
    table,
    whole,
)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def test_the_whole_board_becomes_the_new_release_and_is_proven(bench: Bench, tmp_path: Path) -> None:
    device = await board(bench)
    task = assignment(device, publish(tmp_path), safety=EVERYTHING)
    judge = judge_of(device, task, 1, 2)
    result = await attempt(bench, device, task, judge)
    assert result.ok, result.message
    assert judge.outcome is Outcome.PROVEN
    await runs(device, "2.0.0")
    assert at(device, 0, signed(loader(2)))
    assert at(device, TABLE, partitions.build_table(table()))
    assert not holds(device, OLD.by_name("nvs")).strip(b"\xff"), "wiped"
    storage = holds(device, table().by_name("storage"))
    assert storage.startswith(FILES)
    assert not storage[len(FILES) :].strip(b"\xff")
    assert SECRET in holds(device, OLD.by_name("phy_init")), "not the application's"
    assert not any(SECRET in holds(device, OLD.by_name(name)) for name in ("nvs", "storage"))
    assert judge.unproven == ("data image storage",)


async def test_a_bootloader_that_the_policy_does_not_name_is_no_success(bench: Bench, tmp_path: Path) -> None:
    device = await board(bench)
    task = assignment(device, publish(tmp_path), safety=EVERYTHING)
    judge = judge_of(device, task, 1)
    result = await attempt(bench, device, task, judge)
    assert not result.ok
    assert (judge.outcome, result.reason) == (Outcome.REJECTED, "PolicyRejected")
    assert "bootloader" in result.message


async def test_a_file_system_that_nobody_measures_is_refused_where_all_must_be_measured(
    bench: Bench, tmp_path: Path
) -> None:
    device = await board(bench)
    task = assignment(device, publish(tmp_path), safety=EVERYTHING)
    judge = judge_of(device, task, 1, 2, strict=True)
    result = await attempt(bench, device, task, judge)
    assert (judge.outcome, result.reason) == (Outcome.REJECTED, "PolicyRejected")
    assert "storage" in result.message


async def test_data_is_kept_byte_for_byte_under_a_table_with_a_bigger_slot(bench: Bench, tmp_path: Path) -> None:
    rows = [row if row.name != "ota_1" else replace(row, size=row.size - 0x10000) for row in OLD.partitions]
    device = await board(bench)
    device.flash.load(TABLE, partitions.build_table(partitions.check(rows, table_offset=TABLE)))
    device.reset()
    await runs(device, "1.0.0")
    before = {row.name: holds(device, row) for row in OLD.partitions if row.name in ("nvs", "phy_init", "storage")}
    task = assignment(device, publish(tmp_path, whole(OLD)), safety=Safety(allow_partition_table=True))
    judge = judge_of(device, task, 1)
    result = await attempt(bench, device, task, judge)
    assert result.ok, result.message
    assert judge.outcome is Outcome.PROVEN
    assert at(device, TABLE, partitions.build_table(OLD))
    assert at(device, 0, loader(1)), "the bootloader was not permitted"
    assert {name: holds(device, OLD.by_name(name)) for name in before} == before
    assert judge.unproven == (), "images that are not written are not missed"


async def test_what_is_there_already_is_not_written_again(bench: Bench, tmp_path: Path) -> None:
    device = await board(bench)
    device.flash.load(0, signed(loader(2)))
    task = assignment(device, publish(tmp_path, whole(OLD)), safety=EVERYTHING)
    result = await attempt(bench, device, task, judge_of(device, task, 1, 2))
    assert result.ok, result.message
    assert result.bytes_written == len(new_app(CHIP)) + len(FILES) + 4096, "application, files, OTA data"
    assert device.flash.regions["phy_init"].erased == device.flash.regions["ota_0"].erased == 0


async def test_a_blank_board_gets_everything(bench: Bench, tmp_path: Path) -> None:
    device = await board(bench)
    await device.stop()
    device.flash.manufacture({})
    await device.start()
    assert device.boot_failure, "nothing boots"
    target = publish(tmp_path)
    careful = assignment(device, target, before=Before.NONE)
    result = await attempt(bench, device, careful, judge_of(device, careful, 2))
    assert (result.reason, result.bytes_written) == ("PartitionMismatch", 0)
    task = assignment(device, target, before=Before.NONE, safety=EVERYTHING)
    judge = judge_of(device, task, 2)
    result = await attempt(bench, device, task, judge)
    assert result.ok, result.message
    assert judge.outcome is Outcome.PROVEN


async def test_over_the_network_the_device_keeps_its_bootloader(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    permissions = Safety(allow_bootloader=True, allow_partition_table=True)
    task = assignment(device, publish(tmp_path, whole(OLD)), safety=permissions)
    judge = judge_of(device, task, 1)
    result = await attempt(bench, device, task, judge)
    assert result.ok, result.message
    assert judge.outcome is Outcome.PROVEN
    assert at(device, 0, loader(1))
