# SPDX-License-Identifier: Apache-2.0
"""What becomes of a device's and a job's status; each test names its module's rule."""

from dataclasses import replace

import pytest

from flashjob.api.device import DeviceStatus
from flashjob.api.flashtask import Phase
from flashjob.planning.device_status import after
from flashjob.planning.job_status import Line, Situation, render
from flashjob.planning.outcome import Ending
from tests.unit.planning.model import READY, T0, device, job
from tests.unit.planning.tasks import GRANT, reported


def test_device_status() -> None:
    d, judged = device("d0"), reported(secureVersion=2, bootCount=5)
    ending = Ending(Phase.SUCCEEDED, "Proven", "m", True)
    patch = after(d, judged, ending, 1, None, T0)
    assert patch is not None
    assert patch["firmware"]["bootId"] == GRANT
    assert patch["floors"] == {"securityVersion": 2, "sequence": 21, "bootCount": 5}
    written = replace(d, status=DeviceStatus.parse(patch))
    assert after(written, judged, ending, 1, None, T0 + 9) is None, "rule 7"
    higher = replace(d, status=DeviceStatus.parse({"floors": {"securityVersion": 9, "sequence": 99, "bootCount": 9}}))
    kept = after(higher, judged, ending, 1, None, T0)
    assert kept is not None
    assert kept["floors"] == {"securityVersion": 9, "sequence": 99, "bootCount": 9}, "rule 2"
    failed = Ending(Phase.FAILED, "MeasurementMismatch", "m")
    assert set(after(d, judged, failed, 1, None, T0) or {}) == {"outcomes"}
    assert after(d, judged, failed, 0, None, T0) is None, "rule 1"
    liar = after(d, judged, Ending(Phase.FAILED, "BootIdMismatch", "m"), 1, None, T0)
    assert liar is not None
    assert liar["quarantine"]["task"] == "porch-abc", "rule 5"
    twin = after(d, reported("Rejected", code="clone.seed"), Ending(Phase.FAILED, "PolicyRejected", "m"), 1, None, T0)
    assert twin is not None
    assert (twin["quarantine"]["reason"], twin["boots"]) == ("PolicyRejected", None), "rule 5"


def line(n: int, phase: Phase, reason: str = "Proven") -> Line:
    return Line(f"d{n:03}", f"t{n:03}", phase, reason, f"because {n}", running=not phase.final)


@pytest.mark.parametrize(
    ("phases", "phase", "succeeded", "failed", "reason"),
    [
        ([Phase.SUCCEEDED, Phase.SKIPPED], "Succeeded", "True", "False", "AllProven"),
        ([Phase.SUCCEEDED, Phase.UNPROVEN], "Unproven", "False", "False", "SomeUnproven"),
        ([Phase.UNPROVEN, Phase.FAILED], "Failed", "False", "True", "PortSilent"),
        ([Phase.SUCCEEDED, Phase.STARTING], "Running", "False", "False", "InProgress"),
    ],
)
def test_job_status(phases: list[Phase], phase: str, succeeded: str, failed: str, reason: str) -> None:
    lines = [line(n, p, "PortSilent" if p is Phase.FAILED else "Proven") for n, p in enumerate(phases)]
    status = render(job(), Situation(READY, len(lines), None, None, lines), T0)
    by = {c.type: c for c in status.conditions}
    assert status.phase == phase
    assert by["Succeeded"].status == succeeded
    assert by["Failed"].status == failed
    assert by["Finished"].reason == reason
    assert by["Stalled"].status == ("True" if phase in ("Unproven", "Failed") else "False")


def test_job_status_is_stable_and_bounded() -> None:
    lines = [line(n, Phase.FAILED, "PortSilent") for n in range(80)]
    situation = Situation(READY, 80, None, None, lines)
    first = render(job(), situation, T0)
    assert len(first.failures) == 50
    assert first.failures[0].device == "d000"
    again = render(replace(job(), status=first), situation, T0 + 500)
    assert again == first
