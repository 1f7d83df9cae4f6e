# SPDX-License-Identifier: Apache-2.0
"""Deltas from what a device runs: small on the wire, judged by the result, and never in the way of the whole image."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_pipeline.esp import builder
from firmware_pipeline.esp.image import parse_image
from flashjob.flasher import delta as deltas
from flashjob.flasher.delta import Delta
from flashjob.flasher.fetch import Fetcher
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.virtual import delta as device_side
from flashjob.virtual.device import VirtualDevice
from flashjob.wire.gateway import DeviceResult, Outcome
from flashjob.wire.pod import Base

from .bench import Bench, BenchJudge, Release, assignment, push, runs, signed

pytest.importorskip("detools", reason="deltas need the extra `delta`")
BUILT = builder.build_app("esp32s3", "porch", "1.0.0", payload_size=400 * 1024)


def rebuilt(image: bytes, version: bytes) -> bytes:
    """The same application with another version of the same length: checksum and appended hash are made anew."""
    old, made = b"1.0.0", bytearray(image)
    at, end = image.index(old), parse_image(image).hashed_length
    made[at : at + len(old)] = version
    for before, after in zip(old, version, strict=True):
        made[end - 1] ^= before ^ after
    made[end : end + 32] = hashlib.sha256(made[:end]).digest()
    return bytes(made)


OLD, OTHER, NEW = signed(BUILT), signed(rebuilt(BUILT, b"1.1.0")), signed(rebuilt(BUILT, b"2.0.0"))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def base_of(release: Release, **changes: str) -> Base:
    fields = {"repository": release.target.repository, "index_digest": release.target.index_digest}
    return Base.model_validate(fields | changes)


async def flash(
    bench: Bench, device: VirtualDevice, release: Release, base: Base | None, *, spoil: bool = False
) -> tuple[DeviceResult, BenchJudge]:
    """An attempt as a pod makes it."""
    task = assignment(device, release.target, base=base)
    judge, fetcher = BenchJudge(device, task), Fetcher(bench.work, {})

    async def make(info: object) -> Delta | None:
        made = await fetcher.delta(task, info)  # type: ignore[arg-type]
        return replace(made, payload=made.payload[:-9] + b"spoiled!!") if made is not None and spoil else made

    firmware = await fetcher.get(task)
    attempt = Attempt(task, firmware, NetworkTransport(task.address or ""), judge, delta=make)
    return await attempt.run(), judge


async def test_a_delta_from_the_attested_base_is_proven_by_its_result(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, app=OLD)
    old, new = push(tmp_path, OLD, "esp32s3", 1), push(tmp_path, NEW, "esp32s3")
    result, judge = await flash(bench, device, new, base_of(old))
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert result.bytes_written < len(NEW) / 10
    slot = device.flash.regions["ota_1"]
    assert device.flash.read(slot.start, len(NEW)) == NEW
    await runs(device, "2.0.0")


@pytest.mark.parametrize("case", ["no base known", "another image runs", "the base is gone", "a spoiled patch"])
async def test_whatever_is_wrong_with_a_delta_the_whole_image_is_sent(bench: Bench, tmp_path: Path, case: str) -> None:
    device = await bench.device(network=True, app=OLD)
    old, new = push(tmp_path, OLD, "esp32s3", 1), push(tmp_path, NEW, "esp32s3")
    base = {
        "no base known": None,
        "another image runs": base_of(push(tmp_path, OTHER, "esp32s3", 1)),
        "the base is gone": base_of(old, index_digest="sha256:" + "0" * 64),
        "a spoiled patch": base_of(old),
    }[case]
    result, judge = await flash(bench, device, new, base, spoil=case == "a spoiled patch")
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert result.bytes_written == len(NEW)
    assert len(judge.case.permits) == 1
    await runs(device, "2.0.0")


def test_the_header_names_the_base_by_its_appended_hash() -> None:
    payload = deltas.make(OLD, NEW)
    assert payload is not None
    assert payload[:4] == bytes.fromhex("10decdfc")
    assert payload[4:36] == hashlib.sha256(OLD[: OLD.index(payload[4:36])]).digest()
    assert payload[36:64] == bytes(28)
    assert device_side.apply(OLD, payload[4:36], payload, 1 << 20) == NEW


def test_a_delta_that_does_not_pay_is_not_made() -> None:
    assert deltas.make(OLD, builder.build_app("esp32s3", "porch", "9.9.9", payload_size=400 * 1024)) is None


@pytest.mark.parametrize(
    ("payload", "limit"),
    [(b"", 1 << 20), (b"\0" * 100, 1 << 20), (b"bomb", 1000)],
    ids=["empty", "no magic", "more than the slot holds"],
)
async def test_a_device_refuses_a_bad_delta(payload: bytes, limit: int) -> None:
    made = await asyncio.to_thread(deltas.make, OLD, NEW)
    assert made is not None
    with pytest.raises(ValueError):
        device_side.apply(OLD, made[4:36], made if payload == b"bomb" else payload, limit)
