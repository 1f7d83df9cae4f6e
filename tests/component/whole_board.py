# SPDX-License-Identifier: Apache-2.0
"""A release with everything in it (bootloader, partition table, application, file system) and a board that it is for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from flashjob.virtual.device import Mode, VirtualDevice
from flashjob.wire.gateway import DeviceResult
from flashjob.wire.pod import Assignment, Data, Safety
from flashjob.wire.target import Target

from .bench import Bench, BenchJudge, new_app, push_parts, signed

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


async def board(bench: Bench, **changes: Any) -> VirtualDevice:
    """One that has lived: its application has written into its partitions."""
    device = await bench.device(**changes)
    live(device)
    return device


def live(device: VirtualDevice) -> None:
    """Its application writes into partitions, its own and others."""
    for name in ("nvs", "storage", "phy_init"):
        row = OLD.by_name(name)
        assert row is not None
        device.flash.load(row.offset, SECRET)
        device.flash.load(row.end - 4096, SECRET)
    device.flash.reset_counters()


def holds(device: VirtualDevice, row: Partition | None) -> bytes:
    assert row is not None
    return device.flash.snapshot()[row.offset : row.end]


def at(device: VirtualDevice, offset: int, data: bytes) -> bool:
    return device.flash.snapshot()[offset : offset + len(data)] == data


async def settled(device: VirtualDevice) -> str:
    """Wait: the version that runs; "" if nothing can boot."""
    async with asyncio.timeout(10):
        while not (device.mode is Mode.RUNNING or device.boot_failure):
            await asyncio.sleep(0.005)
    return device.application.boot.version if device.application is not None else ""
