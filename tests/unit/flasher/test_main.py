# SPDX-License-Identifier: Apache-2.0
"""Exit codes and the termination message of a pod."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.flasher.main import exit_code, termination_message
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import DeviceResult, HardwareReport, PodResult, Stage
from flashjob.wire.pod import MAX_DEVICES


def result(ok: bool = True, stage: Stage = Stage.CONFIRMING, written: int = 0, **changes: object) -> DeviceResult:
    fields = {"task": "job-x", "attempt": 1, "stage": stage, "ok": ok, "reason": "Proven", "bytes_written": written}
    return DeviceResult.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([result(), result()], ExitCode.DONE),
        ([result(), result(False, Stage.PREFLIGHT)], ExitCode.REFUSED),
        ([result(False, Stage.FETCHING)], ExitCode.REFUSED),
        ([result(False, Stage.WRITING)], ExitCode.FAILED),
        ([result(False, Stage.PREFLIGHT, 1)], ExitCode.FAILED),
        ([result(False, Stage.PREFLIGHT), result(False, Stage.ATTESTING, 10)], ExitCode.FAILED),
    ],
)
def test_exit_code(results: list[DeviceResult], code: ExitCode) -> None:
    assert exit_code(results) is code


@given(st.integers(1, MAX_DEVICES), st.text(max_size=1024), st.integers(5, 253))
def test_termination_message_fits_and_names_every_task(count: int, message: str, name: int) -> None:
    hardware = HardwareReport(chip="esp32s3", mac="24:6f:28:01:02:03")
    tasks = [f"{n:02}".ljust(name, "x") for n in range(count)]
    text = termination_message([result(task=task, message=message, hardware=hardware) for task in tasks])
    assert len(text.encode()) <= 4096
    items = PodResult.model_validate_json(text).items
    assert [item.task for item in items] == tasks[: len(items)]
    assert len(items) == count or len(items) * (name + 100) > 3500


def test_one_device_takes_at_most_150_bytes() -> None:
    assert len(termination_message([result(task="porch-sensors-2-1-" + "a" * 16, written=1_600_000)])) <= 150
