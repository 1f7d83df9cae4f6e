# SPDX-License-Identifier: Apache-2.0
"""Updates over the network, from grant to verdict, with lines that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firmware_pipeline.esp.builder import build_app
from flashjob.virtual.adversaries import LosesConfirm, NeverComesBack, RollsBackBeforeConfirm, RunsOldImage
from flashjob.virtual.faults import CablePulled, ChipHangs
from flashjob.wire.gateway import Outcome

from .bench import QUICK, Bench, BenchJudge, assignment, new_app, push, runs


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@pytest.mark.parametrize("moves", [False, True], ids=["same address", "new address"])
async def test_an_update_is_proven(bench: Bench, tmp_path: Path, moves: bool) -> None:
    device = await bench.device(network=True, moves=moves)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    address = device.server.address
    result, judge = await bench.flash(device, release)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert result.bytes_written == len(release.image)
    assert device.flash.regions["ota_1"].installs == 1
    assert (device.server.address != address) is moves
    assert (device.nvs.sequence, device.nvs.fence) == (2, 1)
    await runs(device, "2.0.0")


async def test_unsigned_image_for_a_locked_device_is_refused_untouched(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    release = push(tmp_path, build_app("esp32s3", "porch", "2.0.0"), "esp32s3")
    result, _ = await bench.flash(device, release)
    assert (result.ok, result.reason, result.bytes_written) == (False, "SecureBootMismatch", 0)
    await runs(device, "1.0.0")


async def test_broken_line_is_resumed_where_it_broke(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, faults=[CablePulled(percent=30), CablePulled(percent=70)])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert device.flash.regions["ota_1"].installs == 1
    assert len(judge.case.permits) == 1


async def test_reset_in_mid_upload_needs_a_new_permit_of_the_same_attempt(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = BenchJudge(device, task)
    struck = False

    def strike(done: int, total: int) -> None:
        nonlocal struck
        if not struck and done * 2 > total:
            struck = True
            device.reset()
            raise ConnectionResetError

    device.server._on_image_bytes = strike
    result, judge = await bench.flash(device, release, task=task, judge=judge)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN
    assert len(judge.case.permits) == 1
    assert device.nvs.fence == judge.case.permits[0].fence


async def test_another_device_at_the_address_is_refused_untouched(bench: Bench, tmp_path: Path) -> None:
    meant, other = await bench.device("meant", network=True), await bench.device("other", network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(meant, release.target, address=other.server.address)
    result, _ = await bench.flash(meant, release, task=task)
    assert (result.reason, result.bytes_written) == ("WrongDevice", 0)


async def test_nobody_at_the_address(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    timeouts = QUICK.model_copy(update={"attest_seconds": 1})
    task = assignment(device, release.target, timeouts=timeouts)
    await device.stop()
    result, _ = await bench.flash(device, release, task=task)
    assert (result.reason, result.bytes_written) == ("DeviceUnreachable", 0)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (RunsOldImage, "MeasurementMismatch"),
        (NeverComesBack, "SilentAfterWrite"),
        (RollsBackBeforeConfirm, "ResetBeforeConfirm"),
    ],
)
async def test_liars_and_losers(bench: Bench, tmp_path: Path, behaviour: type, reason: str) -> None:
    device = await bench.device(network=True, behaviour=behaviour())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    timeouts = QUICK.model_copy(update={"boot_seconds": 2, "confirm_seconds": 5})
    result, judge = await bench.flash(device, release, task=assignment(device, release.target, timeouts=timeouts))
    assert (result.ok, result.reason) == (False, reason), result
    assert judge.outcome is not Outcome.PROVEN


async def test_lost_confirm_is_asked_again(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, behaviour=LosesConfirm(times=1))
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert result.ok, result
    assert judge.outcome is Outcome.PROVEN


async def test_unconfirmed_device_rolls_back_by_itself(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, behaviour=LosesConfirm(times=99))
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    timeouts = QUICK.model_copy(update={"confirm_seconds": 2})
    result, judge = await bench.flash(device, release, task=assignment(device, release.target, timeouts=timeouts))
    assert (result.ok, result.reason) == (False, "ConfirmTimeout"), result
    assert judge.outcome is None
    async with asyncio.timeout(5):
        while device.application is None or device.application.boot.version != "1.0.0":
            await asyncio.sleep(0.02)


async def test_chip_that_hangs_in_mid_upload(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, faults=[ChipHangs(percent=40)])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    timeouts = QUICK.model_copy(update={"write_seconds": 3})
    result, _ = await bench.flash(device, release, task=assignment(device, release.target, timeouts=timeouts))
    assert (result.ok, result.reason) == (False, "WriteTimeout"), result
    assert result.bytes_written > 0
