# SPDX-License-Identifier: Apache-2.0
"""What is fetched beside the application: only what the job permits to write (rule 5 of fetch.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from firmware_pipeline import api
from firmware_pipeline.esp import builder, partitions
from firmware_pipeline.inputs.files import load_files
from firmware_pipeline.plan import Role
from flashjob.flasher.fetch import Fetcher
from flashjob.pinning import pin
from flashjob.wire.pod import Assignment, Data, Safety, TransportKind
from flashjob.wire.target import Target

CHIP, TABLE = "esp32c3", builder.default_partitions()
PARTS = {
    0x0: builder.build_bootloader(CHIP),
    0x8000: partitions.build_table(TABLE),
    0x20000: builder.build_app(CHIP, "porch", "2.0.0", payload_size=16 * 1024),
    TABLE.partitions[-1].offset: b"files",
    0xF000: b"phy data",
}
ALL = Safety(allow_bootloader=True, allow_partition_table=True, data=Data.WIPE)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    for offset, data in PARTS.items():
        (tmp_path / f"{offset:x}.bin").write_bytes(data)
    plan = load_files([f"{offset:#x}={tmp_path / f'{offset:x}.bin'}" for offset in PARTS], chip=CHIP)
    where = f"oci:{tmp_path / 'layout'}"
    pushed = api.push([plan], where, signer=None, release=None)
    return pin(where, pushed.index_digest, api.open_chip(api.open_store(where), pushed.index_digest, CHIP))


@pytest.mark.parametrize(
    ("safety", "transport", "roles"),
    [
        (Safety(), TransportKind.SERIAL, set()),
        (Safety(allow_in_place=True), TransportKind.SERIAL, set()),
        (Safety(allow_bootloader=True), TransportKind.SERIAL, {Role.BOOTLOADER}),
        (Safety(allow_partition_table=True), TransportKind.SERIAL, {Role.PARTITION_TABLE}),
        (Safety(data=Data.WIPE), TransportKind.SERIAL, {Role.SPIFFS, Role.DATA}),
        (ALL, TransportKind.SERIAL, {Role.BOOTLOADER, Role.PARTITION_TABLE, Role.SPIFFS, Role.DATA}),
        (ALL, TransportKind.NETWORK, set()),
    ],
)
async def test_rule_5(
    tmp_path: Path, target: Target, safety: Safety, transport: TransportKind, roles: set[Role]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    fetcher = Fetcher(work, {})
    task = Assignment(
        task="t",
        attempt=1,
        device="01" + "ab" * 32,
        transport=transport,
        address="host:80",
        target=target,
        safety=safety,
    )
    firmware = await fetcher.get(task)
    assert {entry.role for entry, _ in firmware.extras} == roles
    assert all(data == PARTS[entry.offset] for entry, data in firmware.extras)
    assert len(list(work.iterdir())) == 1 + len(roles), "nothing else was fetched"
    assert [image.label for image in target.data_images] == ["storage"], "PHY data is never written"
    content = firmware.content(task)
    assert content.wipe is (safety.data is Data.WIPE and transport is TransportKind.SERIAL)
    assert (content.bootloader is not None) is (Role.BOOTLOADER in roles)


async def test_two_devices_of_a_pod_fetch_once(tmp_path: Path, target: Target) -> None:
    fetcher = Fetcher(tmp_path, {})
    task = Assignment(
        task="t", attempt=1, device="01" + "ab" * 32, transport=TransportKind.SERIAL, target=target, safety=ALL
    )
    assert await fetcher.get(task) is await fetcher.get(task.model_copy(update={"task": "u"}))
