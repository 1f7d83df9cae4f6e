# SPDX-License-Identifier: Apache-2.0
"""Bootloader, partition table and data over serial: the whole board goes from one release to the next, and is judged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.policy import BootloaderRules, MeasurementRef, RequireMeasured
from firmware_pipeline import api
from firmware_pipeline.esp import builder, partitions
from firmware_pipeline.esp.measurement import measure
from firmware_pipeline.esp.partitions import Partition, PartitionTable
from flashjob.flasher.content import permitted
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.flasher.transports.serial import SerialTransport
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.gateway import DeviceResult, Outcome
from flashjob.wire.pod import Assignment, Data, Safety
from flashjob.wire.target import Target

from .bench import Bench, BenchJudge, assignment, new_app, push_parts, runs, signed

CHIP = "esp32s3"
TABLE = 0x8000
OLD = builder.default_partitions()
FILES = b"files of the new release" * 400
SECRET = b"what the old application knew"


def table(*, storage: int = 0x3C0000, **changes: Any) -> PartitionTable:
    """The old one with a bigger ota_1, and so with a smaller file system behind it."""
    rows = []
    for row in OLD.partitions:
        if row.name == "ota_1":
            row = replace(row, size=storage - row.offset)
        elif row.name == "storage":
            row = replace(row, offset=storage, size=0x400000 - storage)
        rows.append(replace(row, **changes.get(row.name, {})))
    return partitions.check(rows, table_offset=TABLE)


def loader(version: int) -> bytes:
    return builder.build_bootloader(CHIP, version=version)


def whole(layout: PartitionTable | None = None, **changes: bytes) -> dict[int, bytes]:
    """A build with everything: bootloader, table, application, file system."""
    layout = layout or table()
    storage = layout.by_name("storage")
    assert storage is not None
    return {
        0x0: changes.get("bootloader", signed(loader(2))),
        TABLE: partitions.build_table(layout),
        0x20000: changes.get("image", new_app(CHIP)),
        storage.offset: changes.get("files", FILES),
    }


def publish(tmp_path: Path, parts: dict[int, bytes] | None = None) -> Target:
    return push_parts(tmp_path, whole() if parts is None else parts, CHIP).target


EVERYTHING = Safety(allow_bootloader=True, allow_partition_table=True, data=Data.WIPE)


def judge_of(device: VirtualDevice, task: Assignment, *loaders: int, strict: bool = False) -> BenchJudge:
    """One whose policy names these versions of the bootloader."""
    judge = BenchJudge(device, task)
    subject = judge.case.subject
    references = tuple(MeasurementRef(alg=m.alg, value=m.value.hex()) for n in loaders for m in measure(loader(n)))
    policy = subject.policy.model_copy(
        update={
            "bootloader": BootloaderRules(measurements=references),
            "require_measured": RequireMeasured.ALL if strict else RequireMeasured.APP,
        }
    )
    judge.case = replace(judge.case, subject=replace(subject, policy=policy))
    return judge


async def attempt(bench: Bench, device: VirtualDevice, task: Assignment, judge: BenchJudge) -> DeviceResult:
    store, roles = api.open_store(task.target.repository), permitted(task.safety, task.transport)
    firmware = await asyncio.to_thread(lambda: fetch(store, task.target, bench.work, roles=roles))
    way = SerialTransport(device.port.path, bench.work) if device.port else NetworkTransport(task.address or "")
    return await Attempt(task, firmware, way, judge).run()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


async def board(bench: Bench, **changes: Any) -> VirtualDevice:
    """One that has lived: its application has written into its partitions."""
    device = await bench.device(**changes)
    for name in ("nvs", "storage", "phy_init"):
        row = OLD.by_name(name)
        assert row is not None
        device.flash.load(row.offset, SECRET)
        device.flash.load(row.end - 4096, SECRET)
    device.flash.reset_counters()
    return device


def holds(device: VirtualDevice, row: Partition | None) -> bytes:
    assert row is not None
    return device.flash.snapshot()[row.offset : row.end]


def at(device: VirtualDevice, offset: int, data: bytes) -> bool:
    return device.flash.snapshot()[offset : offset + len(data)] == data


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
