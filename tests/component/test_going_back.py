# SPDX-License-Identifier: Apache-2.0
"""Devices that go back: by themselves, because they are told to, or not at all. The numbers are rules of proof.py."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flashjob.errors import FlashJobError
from flashjob.flasher.fetch import fetch
from flashjob.flasher.run import Attempt
from flashjob.flasher.transports.network import NetworkTransport
from flashjob.virtual.adversaries import (
    Behaviour,
    NeverReboots,
    OldBootloader,
    RollsBackBeforeConfirm,
    RunsOldImage,
)
from flashjob.virtual.application import Application, State
from flashjob.virtual.device import VirtualDevice
from flashjob.virtual.faults import BrownOut
from flashjob.wire.gateway import (
    EvidenceReply,
    EvidenceRequest,
    Outcome,
    PermitReply,
    PermitRequest,
    RevertReply,
    RevertRequest,
)
from flashjob.wire.reasons import Reason

from .bench import QUICK, Bench, BenchJudge, assignment, new_app, open_release, push, runs

WAYS = pytest.mark.parametrize("network", [True, False], ids=["network", "serial"])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


def state(device: VirtualDevice) -> State | None:
    return device.application.state if device.application is not None else None


@WAYS
async def test_a_brown_out_at_first_boot_is_made_good_by_the_next_attempt(
    bench: Bench, tmp_path: Path, network: bool
) -> None:
    device = await bench.device(network=network, faults=[BrownOut()])
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason, judge.outcome) == (False, "WentBack", None), result
    assert "it runs porch 1.0.0 again, as before" in result.message
    assert judge.reverts == 0, "there is nothing to give up"
    judge.next_attempt()
    result, judge = await bench.flash(device, release, task=assignment(device, release.target, attempt=2), judge=judge)
    assert (result.reason, judge.outcome) == ("Proven", Outcome.PROVEN)


@WAYS
@pytest.mark.parametrize(
    ("behaviour", "reason"), [(RunsOldImage, "MeasurementMismatch"), (OldBootloader, "PolicyRejected")]
)
async def test_10_what_was_refused_is_given_up_at_once(
    bench: Bench, tmp_path: Path, network: bool, behaviour: type[Behaviour], reason: str
) -> None:
    device = await bench.device(network=network, behaviour=behaviour())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, judge = await bench.flash(device, release)
    assert (result.ok, result.reason, judge.outcome) == (False, reason, Outcome.REJECTED)
    assert result.message.endswith("; told to go back, it says that it runs porch 1.0.0")
    await runs(device, "1.0.0")
    assert (state(device), judge.reverts) == (State.IDLE, 1)


class Unreachable(BenchJudge):
    """A judge that is gone when it is asked for a revert."""

    async def revert(self, request: RevertRequest) -> RevertReply:
        raise FlashJobError(Reason.GATEWAY_UNAVAILABLE, "nobody answers")


async def test_10_a_revert_that_fails_is_one_line_of_log_and_no_more(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = await bench.device(network=True, behaviour=RunsOldImage())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    with caplog.at_level(logging.WARNING, logger="flashjob.flasher.proof"):
        result, _ = await bench.flash(device, release, task=task, judge=Unreachable(device, task))
    assert result.reason == "MeasurementMismatch"
    assert "told to go back" not in result.message
    assert [record.message for record in caplog.records] == [
        "not reverted, the device goes back at its own deadline: GatewayUnavailable: nobody answers"
    ]
    assert state(device) is State.PENDING, "its own deadline will end that"


@WAYS
async def test_10_a_device_that_says_yes_and_stays_is_not_waited_for(
    bench: Bench, tmp_path: Path, network: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await bench.device(network=network, behaviour=OldBootloader())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target, timeouts=QUICK.model_copy(update={"boot_seconds": 2}))
    revert = Application._revert

    def stay(application: Application, *grant: object) -> object:
        device.behaviour = NeverReboots()
        return revert(application, *grant)  # type: ignore[arg-type]

    monkeypatch.setattr(Application, "_revert", stay)
    started = time.monotonic()
    result, judge = await bench.flash(device, release, task=task)
    assert (result.reason, judge.reverts) == ("PolicyRejected", 1)
    assert "told to go back" not in result.message
    assert time.monotonic() - started < 30


class Hangs(BenchJudge):
    """A judge that never answers when it is asked for a revert."""

    asked: asyncio.Event

    async def revert(self, request: RevertRequest) -> RevertReply:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_10_being_stopped_meanwhile_hides_no_verdict(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, behaviour=RunsOldImage())
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = Hangs(device, task)
    judge.asked = asyncio.Event()
    firmware = await asyncio.to_thread(fetch, open_release(release), release.target, bench.work)
    attempt = Attempt(task, firmware, NetworkTransport(task.address or ""), judge)
    running = asyncio.create_task(attempt.run())
    await judge.asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert attempt.stopped is not None
    assert attempt.stopped.reason == "MeasurementMismatch"
    assert judge.results == [attempt.stopped]


class Late(BenchJudge):
    """A judge whom evidence reaches when its nonce is over, `times` times, before the write or after it."""

    times, before = 1, False

    def _late(self) -> None:
        self.times -= 1
        behind = 1000 if self.times >= 0 else 0
        self._clock = lambda: time.time() + behind

    async def permit(self, request: PermitRequest) -> PermitReply:
        if self.before:
            self._late()
        try:
            return await super().permit(request)
        finally:
            self._clock = time.time

    async def evidence(self, request: EvidenceRequest) -> EvidenceReply:
        if not self.before:
            self._late()
        try:
            return await super().evidence(request)
        finally:
            self._clock = time.time


@WAYS
@pytest.mark.parametrize("before", [True, False], ids=["before the write", "after it"])
async def test_9_evidence_that_came_too_late_is_made_anew(
    bench: Bench, tmp_path: Path, network: bool, before: bool
) -> None:
    device = await bench.device(network=network)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = Late(device, task)
    judge.before = before
    result, _ = await bench.flash(device, release, task=task, judge=judge)
    assert (result.ok, result.reason) == (True, "Proven"), result
    assert (judge.times, len(judge.case.permits)) == (-1, 1)


async def test_9_who_is_late_again_has_failed_the_attempt(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    task = assignment(device, release.target)
    judge = Late(device, task)
    judge.times, judge.before = 9, True
    result, _ = await bench.flash(device, release, task=task, judge=judge)
    assert (result.reason, result.bytes_written, judge.outcome, judge.times) == ("AttestTimeout", 0, None, 7)


async def test_a_device_that_went_back_is_found_where_it_is_now(bench: Bench, tmp_path: Path) -> None:
    device = await bench.device(network=True, behaviour=RollsBackBeforeConfirm(), moves=True)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")
    result, _ = await bench.flash(device, release)
    assert (result.reason, result.message) == ("ResetBeforeConfirm", "it runs porch 1.0.0 again")


class Crashes(RollsBackBeforeConfirm):
    """Goes back before the confirm, and says when."""

    crashed: asyncio.Event

    def gives_up(self, *, unconfirmed: bool, confirmed_now: bool) -> bool:
        if unconfirmed:
            self.crashed.set()
        return unconfirmed


async def test_a_port_that_a_crash_takes_away_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    """Native USB: the application goes back after its first evidence, and its port leaves the bus meanwhile."""
    behaviour = Crashes()
    behaviour.crashed = asyncio.Event()
    device = await bench.device(behaviour=behaviour)
    release = push(tmp_path, new_app("esp32s3"), "esp32s3")

    async def leave_the_bus() -> None:
        await behaviour.crashed.wait()
        device.unplug()
        await asyncio.sleep(0.5)
        device.replug()

    leaving = asyncio.create_task(leave_the_bus())
    result, _ = await bench.flash(device, release)
    await leaving
    assert (result.reason, result.message) == ("ResetBeforeConfirm", "it runs porch 1.0.0 again")
