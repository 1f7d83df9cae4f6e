# SPDX-License-Identifier: Apache-2.0
"""Fetched bytes against the signed config: a right-looking manifest around a wrong image."""

from collections.abc import Callable

import pytest

from firmware_pipeline.config import FirmwareConfig, from_plan
from firmware_pipeline.contents import check_contents
from firmware_pipeline.errors import Reason
from firmware_pipeline.esp.builder import build_app, build_bootloader, default_partitions
from firmware_pipeline.esp.partitions import build_table
from firmware_pipeline.plan import AppInfo, BuildPlan, FlashSettings, MeasurementEntry, PlannedFile, Role, SecureBoot
from tests.unit.firmware import builds

Change = Callable[[BuildPlan], BuildPlan]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BuildPlan:
    return builds.plan(tmp_path_factory.mktemp("build"), "esp32c3")


APP = build_app("esp32c3", "porch-sensor", "2.1.0", payload_size=builds.PAYLOAD)
OTHER_TABLE = build_table(default_partitions(flash_size=2 << 20))


def replaced(plan: BuildPlan, role: Role, data: bytes) -> BuildPlan:
    """The plan a careless or hostile publisher would make: other bytes, everything else as it was."""
    return plan.model_copy(
        update={"files": tuple(f.model_copy(update={"data": data}) if f.role is role else f for f in plan.files)}
    )


def says(**changes: object) -> Change:
    """A plan that claims something else than its bytes."""
    return lambda plan: plan.model_copy(update=changes)


def judge(plan: BuildPlan, role: Role, data: bytes | None = None) -> list[Reason]:
    config: FirmwareConfig = from_plan(plan)
    file: PlannedFile = next(f for f in plan.files if f.role is role)
    entry = next(i for i in config.images if i.role is role)
    found = check_contents(config, entry, file.data if data is None else data)
    assert all(m.message and m.next_step for m in found)
    return [m.reason for m in found]


@pytest.mark.parametrize("role", [Role.BOOTLOADER, Role.PARTITION_TABLE, Role.OTADATA, Role.APP])
def test_true_bytes(plan: BuildPlan, role: Role) -> None:
    assert judge(plan, role) == []


@pytest.mark.parametrize("role", [Role.BOOTLOADER, Role.PARTITION_TABLE, Role.OTADATA, Role.APP])
def test_rule_1_other_bytes(plan: BuildPlan, role: Role) -> None:
    data = next(f.data for f in plan.files if f.role is role)
    assert judge(plan, role, data + b"\0") == [Reason.SizeMismatch]
    assert judge(plan, role, data[:-1] + bytes([data[-1] ^ 1])) == [Reason.DigestMismatch]


CASES: list[tuple[str, Change, Role, list[Reason]]] = [
    ("2 app of another chip", lambda p: replaced(p, Role.APP, build_app("esp32s3", "porch-sensor", "2.1.0")), Role.APP, [Reason.WrongChip]),
    ("2 other bootloader", lambda p: replaced(p, Role.BOOTLOADER, build_bootloader("esp32")), Role.BOOTLOADER, [Reason.WrongChip]),
    ("2 damaged", lambda p: replaced(p, Role.APP, APP[:-1] + b"\0"), Role.APP, [Reason.ImageHashMismatch]),
    ("2 no image", lambda p: replaced(p, Role.APP, b"hello"), Role.APP, [Reason.NotAnImage]),
    ("3 bootloader as app", lambda p: replaced(p, Role.APP, build_bootloader("esp32c3")), Role.APP, [Reason.AppDescriptorMissing]),
    ("3 another app", lambda p: replaced(p, Role.APP, build_app("esp32c3", "other", "1")), Role.APP, [Reason.ContentDisagrees] * 2),
    ("4 secure version", says(app=AppInfo(project_name="p", version="1", secure_version=9)), Role.APP, [Reason.ContentDisagrees]),
    ("4 minimum revision", says(min_rev=3), Role.APP, [Reason.ContentDisagrees]),
    ("4 maximum revision", says(max_rev=99), Role.APP, [Reason.ContentDisagrees]),
    ("4 flash size", says(flash=FlashSettings(mode="dio", freq="80m", size="2MB")), Role.APP, [Reason.ContentDisagrees]),
    ("5 not signed", says(secure_boot=SecureBoot(key_digests=("a" * 64,))), Role.APP, [Reason.ContentDisagrees]),
    ("6 another table", lambda p: replaced(p, Role.PARTITION_TABLE, OTHER_TABLE), Role.PARTITION_TABLE, [Reason.ContentDisagrees] * 2),
    ("6 other rows", lambda p: p.model_copy(update={"partitions": p.partitions[:4]}), Role.PARTITION_TABLE, [Reason.ContentDisagrees]),
    ("6 no table", lambda p: replaced(p, Role.PARTITION_TABLE, b"\xaa\x50"), Role.PARTITION_TABLE, [Reason.PartitionTableMalformed]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "role", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_config_that_does_not_describe_its_images(
    plan: BuildPlan, change: Change, role: Role, expected: list[Reason]
) -> None:
    assert judge(change(plan), role) == expected


def test_rule_3_a_measurement_of_a_scheme_that_the_image_has_not(plan: BuildPlan) -> None:
    other = MeasurementEntry(scheme="mcuboot", alg=-16, value="0" * 64)
    assert judge(plan.model_copy(update={"measurements": (*plan.measurements, other)}), Role.APP) == [
        Reason.ContentDisagrees
    ]
