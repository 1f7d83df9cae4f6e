# SPDX-License-Identifier: Apache-2.0
"""The signed config: canonical, strict, and the same for the same build."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from firmware_pipeline.config import MAX_CONFIG_SIZE, FirmwareConfig, dumps, from_plan, loads
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.esp.measurement import SHA_256, SHA_512, measure
from firmware_pipeline.plan import Role
from tests.unit.firmware import builds
from tests.unit.firmware.builds import refused


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return builds.plan(tmp_path_factory.mktemp("build"), "esp32s3")


@pytest.fixture(scope="module")
def raw(plan: Any) -> bytes:
    return dumps(from_plan(plan))


def test_round_trip_is_canonical(plan: Any, raw: bytes) -> None:
    config = loads(raw)
    assert config == from_plan(plan)
    assert dumps(config) == raw
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()


def test_it_says_what_the_build_is(plan: Any, raw: bytes) -> None:
    config = loads(raw)
    assert (config.chip.target, config.chip.chip_id, config.chip.max_rev) == ("esp32s3", 9, None)
    assert [image.role for image in config.images] == [
        Role.BOOTLOADER, Role.PARTITION_TABLE, Role.OTADATA, Role.APP,
    ]  # fmt: skip
    app = config.app_image
    assert (app.offset, app.partition, app.digest) == (0x20000, "ota_0", plan.app_file.digest)
    expected = {m.alg: m.value for m in measure(plan.app_file.data)}
    assert {alg: config.measurement(alg) for alg in (SHA_256, SHA_512)} == expected
    assert config.measurement(SHA_256, scheme="mcuboot") is None
    assert json.loads(raw)["partitionTableSha256"] == config.partition_table_sha256


def test_nobody_can_change_a_config(raw: bytes) -> None:
    with pytest.raises(ValidationError):
        setattr(loads(raw), "schema_version", 2)  # noqa: B010 - a checker would refuse the assignment


Edit = Callable[[dict[str, Any]], object]

ZOO: dict[str, Edit] = {
    "another schema version": lambda c: c.update(schemaVersion=2),
    "a fraction": lambda c: c.update(schemaVersion=1.0),
    "a truth value as number": lambda c: c.update(schemaVersion=True),
    "a number as text": lambda c: c["chip"].update(chipId="9"),
    "snake case": lambda c: c["chip"].update(chip_id=c["chip"].pop("chipId")),
    "unknown key": lambda c: c.update(extra=1),
    "unknown key inside": lambda c: c["images"][0].update(extra=1),
    "no chip": lambda c: c.pop("chip"),
    "chip of another id": lambda c: c["chip"].update(chipId=5),
    "unknown chip id": lambda c: c["chip"].update(chipId=77),
    "no application": lambda c: c["images"].pop(),
    "two applications": lambda c: c["images"][0].update(role="app"),
    "optional application": lambda c: c["images"][3].update(required=False),
    "unknown role": lambda c: c["images"][0].update(role="efuse"),
    "same offset twice": lambda c: c["images"][0].update(offset=0x8000),
    "negative offset": lambda c: c["images"][0].update(offset=-1),
    "offset of 33 bits": lambda c: c["images"][0].update(offset=1 << 32),
    "size 0": lambda c: c["images"][0].update(size=0),
    "digest in upper case": lambda c: c["images"][0].update(digest="sha256:" + "A" * 64),
    "digest with a line break": lambda c: c["images"][0].update(digest="sha256:" + "a" * 64 + "\n"),
    "digest of another hash": lambda c: c["images"][0].update(digest="sha1:" + "a" * 40),
    "partition that is not there": lambda c: c["images"][3].update(partition="ota_7"),
    "no measurement": lambda c: c.update(measurements=[]),
    "measurement twice": lambda c: c["measurements"].append(c["measurements"][0]),
    "measurement of a wrong length": lambda c: c["measurements"][0].update(alg=-16),
    "unknown hash": lambda c: c["measurements"][0].update(alg=-15),
    "unknown scheme": lambda c: c["measurements"][0].update(scheme="elf"),
    "partitions without their hash": lambda c: c.pop("partitionTableSha256"),
    "hash without partitions": lambda c: c.update(partitions=[], images=c["images"][:0]),
    "empty name": lambda c: c["app"].update(projectName=""),
    "secure version of 33 bits": lambda c: c["app"].update(secureVersion=1 << 32),
    "flash size of no chip": lambda c: c["flash"].update(size="3MB"),
}


@pytest.mark.parametrize("edit", ZOO.values(), ids=ZOO.keys())
def test_malformed_configs(raw: bytes, edit: Edit) -> None:
    value = json.loads(raw)
    edit(value)
    refused(Reason.ConfigMalformed, lambda: loads(json.dumps(value).encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schemaVersion":NaN}',
        b'{"schemaVersion":1,"schemaVersion":1}', b" " * (MAX_CONFIG_SIZE + 1),
    ],
)  # fmt: skip
def test_what_is_no_config(data: bytes) -> None:
    refused(Reason.ConfigMalformed, lambda: loads(data))


def test_a_key_twice_is_refused_even_if_equal(raw: bytes) -> None:
    twice = raw.replace(b'"schemaVersion":1', b'"schemaVersion":1,"schemaVersion":1')
    assert "twice" in refused(Reason.ConfigMalformed, lambda: loads(twice)).message


@given(st.data())
def test_any_changed_byte_is_refused_or_seen(raw: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        config = loads(bytes(changed))
    except PipelineError:
        return
    assert config != loads(raw)


def test_from_plan_matches_a_hand_made_reading(tmp_path: Path) -> None:
    config = builds.config(tmp_path, "esp32")
    assert config.images[0].offset == 0x1000
    assert FirmwareConfig.model_validate(config.model_dump()) == config
