# SPDX-License-Identifier: Apache-2.0
"""Rules of view.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from flashjob.api.flashtask import FlashTask, Phase
from flashjob.cli.view import (
    WIDTH,
    Row,
    closed,
    closing_json,
    closing_table,
    exit_code,
    live_table,
    plain,
    row_json,
    rows,
    summary,
)
from flashjob.wire.exit_codes import ExitCode
from flashjob.wire.gateway import Stage, TaskProgress

from .story import GRANT, MEASURED, at, conditions, device, finished, job, permit, shown, task, verdict

FIRMWARE = {"application": "porch-sensor", "version": "1.0.0", "confirmedAt": at(-100)}


def live(stage: Stage = Stage.WRITING, done: int = 25, total: int = 100, attempt: int = 1) -> TaskProgress:
    return TaskProgress(task="t", attempt=attempt, stage=stage, done=done, total=total)


def row(of: FlashTask, progress: TaskProgress | None = None, **status: Any) -> Row:
    (found,) = rows([of], {"d": device(status=status or None)}, {"t": progress} if progress else {})
    return found


# Where


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.final])
def test_rule_1_nothing_changes_a_final_phase(phase: Phase) -> None:
    report = {"permits": [permit()], "stage": {"name": "Writing", "since": at(9)}, "verdict": verdict()}
    status = {"phase": phase.value, "reason": "PortSilent", "message": "no answer", "finishedAt": at(30)}
    seen = row(task(status=status | {"report": report}), live(attempt=9))
    assert (seen.phase, seen.percent, seen.stage, seen.since) == (phase, None, "", at(30))
    assert (seen.reason, seen.message) == ("PortSilent", "no answer")


@pytest.mark.parametrize(
    ("outcome", "rediscovery", "phase"),
    [
        ("Proven", "Required", Phase.REDISCOVERING),
        ("Proven", "Skip", Phase.CONFIRMING),
        ("BelowPolicy", "Required", Phase.CONFIRMING),
        ("AlreadyRunning", "Required", Phase.CONFIRMING),
        ("Rejected", "Required", Phase.PENDING),
    ],
)
def test_rule_2_a_verdict_alone_is_no_success(outcome: str, rediscovery: str, phase: Phase) -> None:
    seen = row(task(status={"report": {"verdict": verdict(outcome)}}, rediscovery=rediscovery))
    assert seen.phase is phase
    assert not seen.phase.final


def test_rule_3_live_progress_says_where_an_attempt_is() -> None:
    report = {"permits": [permit()], "stage": {"name": "Fetching", "since": at(1)}}
    seen = row(task(status={"report": report}), live())
    assert (seen.phase, seen.stage, seen.percent, seen.attempt) == (Phase.WRITING, "Writing", 25, 1)


def test_rule_3_progress_of_an_attempt_that_is_over_says_nothing() -> None:
    over = {"attempt": 1, "reason": "PortLost", "message": "gone", "stage": "Writing", "endedAt": at(10)}
    waiting = {"reason": "BackingOff", "message": "the next one starts soon", "since": at(10)}
    report = {"permits": [permit()], "stage": {"name": "Writing", "since": at(6)}}
    seen = row(task(status={"lastAttempt": over, "waiting": waiting, "report": report, "attempt": 1}), live(attempt=1))
    assert (seen.phase, seen.percent, seen.since) == (Phase.PENDING, None, at(10))
    assert (seen.reason, seen.message) == ("BackingOff", "the next one starts soon")
    again = row(task(status={"lastAttempt": over, "report": report}), live(Stage.FETCHING, attempt=2))
    assert (again.phase, again.attempt) == (Phase.FETCHING, 2)


def test_rule_3_without_the_gateway_the_report_says_it() -> None:
    report = {"permits": [permit()], "stage": {"name": "Attesting", "since": at(15)}}
    seen = row(task(status={"report": report}))
    assert (seen.phase, seen.since, seen.percent) == (Phase.ATTESTING, at(15), None)
    permitted = row(task(status={"report": {"permits": [permit()]}}))
    assert (permitted.phase, permitted.since) == (Phase.WRITING, at(5))


def test_rule_3_an_unknown_task_stays_unknown() -> None:
    waiting = {"reason": "PodLost", "message": "it may still write", "since": at(8)}
    report = {"permits": [permit()]}
    seen = row(task(status={"phase": "Unknown", "reason": "PodLost", "waiting": waiting, "report": report}), live())
    assert (seen.phase, seen.percent, seen.reason) == (Phase.UNKNOWN, None, "PodLost")


@pytest.mark.parametrize(
    ("done", "total", "percent"), [(0, 0, None), (0, 10, 0), (1, 3, 33), (10, 10, 99), (20, 10, 99)]
)
def test_rule_4_per_cent(done: int, total: int, percent: int | None) -> None:
    assert row(task(), live(done=done, total=total)).percent == percent


def test_rule_5_why() -> None:
    fresh = row(task(born=3))
    assert (fresh.reason, fresh.since) == ("WaitingForTurn", at(3))
    assert "has not opened" in fresh.message
    over = {"attempt": 1, "reason": "PortLost", "message": "cable", "stage": "Writing", "endedAt": at(10)}
    second = row(task(status={"lastAttempt": over}), live(attempt=2))
    assert (second.reason, second.message) == ("PortLost", "attempt 1 ended: cable")
    proven = row(task(status={"report": {"verdict": verdict()}}))
    assert proven.reason == "Rediscovering"
    assert proven.message


def test_rule_6_what_it_was() -> None:
    assert row(task(), firmware=FIRMWARE).was == "porch-sensor 1.0.0"
    mine = FIRMWARE | {"version": "2.1.0", "bootId": GRANT}
    assert row(task(status={"report": {"permits": [permit()]}}), firmware=mine).was == ""
    said = {"from": {"application": "door-lock", "version": "7"}}
    assert row(task(status=said), firmware=mine).was == "door-lock 7"
    assert rows([task()], {}, {})[0].was == ""


def test_facts_and_order() -> None:
    found = rows([task("b", "z"), task("a", "d", target=None)], {"d": device(hardware={"chip": "esp32c3"})}, {})
    assert [(r.device, r.chip, r.becomes, r.transport) for r in found] == [
        ("d", "esp32c3", "", "Serial"),
        ("z", "esp32s3", "porch-sensor 2.1.0", "Serial"),
    ]
    assert (found[0].root_of_trust, found[1].root_of_trust) == ("SignedBoot", "")


# The live table


def test_live_table_shows_bar_and_per_cent_within_its_width() -> None:
    text = shown(
        live_table([row(task(status={"report": {"permits": [permit()]}}), live(), firmware=FIRMWARE)], "title")
    )
    assert "━━" in text
    assert "25 %" in text
    assert "1.0.0 → 2.1.0" in text
    assert "Writing" in text


def test_live_table_names_both_applications_where_they_differ() -> None:
    said = {"from": {"application": "lock", "version": "1"}}
    assert "lock 1 → porch-" in shown(live_table([row(task(status=said))]))


def test_live_table_says_why_and_since_when() -> None:
    waiting = {"reason": "DeviceBusy", "message": "held by lab/other", "since": at(61)}
    assert "DeviceBusy since 12:01:01: held by lab/other" in shown(live_table([row(task(status={"waiting": waiting}))]))


def test_live_table_without_a_device_says_why_in_full() -> None:
    why = "why " * 60 + "and what to do"
    text = shown(live_table([], why))
    assert text.split() == why.split()


def test_live_table_puts_work_first_and_counts_the_rest() -> None:
    done = {"phase": "Succeeded", "reason": "Proven", "finishedAt": at(9)}
    tasks = [task(f"t{n}", f"d{n:02}", status=done) for n in range(30)] + [task("t", "zz")]
    text = shown(live_table(rows(tasks, {}, {"t": live()}), limit=3))
    assert "zz" in text
    assert "and 28 more: 28 Succeeded" in text


ANY = st.text(max_size=200)


@given(name=ANY, message=ANY, was=ANY, phase=st.sampled_from(list(Phase)), percent=st.none() | st.integers(0, 99))
def test_no_line_is_wider_than_the_table(name: str, message: str, was: str, phase: Phase, percent: int | None) -> None:
    made = Row(
        plain(name), "t", "esp32s3", "Network", plain(was), "door-lock-of-the-back-porch 22.11.33", phase, "", percent,
        1, "PortSilent", plain(message), at(0), "SelfReported",
    )  # fmt: skip
    for line in shown(live_table([made], plain(name)), width=200).splitlines():
        assert cell_len(line.rstrip()) <= WIDTH


@given(st.text())
def test_rule_8_nothing_drives_the_terminal(text: str) -> None:
    assert plain(text).isprintable()
    assert len(plain(text)) == len(text)


def test_rule_8_a_device_cannot_paint() -> None:
    evil = "2\x1b[2J\x1b]0;x\x07"
    status = {"phase": "Failed", "reason": "MeasurementMismatch", "message": evil, "finishedAt": at(30)}
    report = {"verdict": verdict("Rejected", "MeasurementMismatch", version=evil, unproven=[evil])}
    of = task(status=status | {"report": report, "from": {"application": evil, "version": evil}})
    for table in (live_table(rows([of], {}, {})), closing_table(job(), [of], {})):
        assert not {"\x1b", "\x07"} & set(shown(table))
    assert "[2J" in shown(closing_table(job(), [of], {})), "shown as text, and not taken for markup"


# The end


def test_rule_9_exit_code() -> None:
    assert exit_code(job()) is None
    assert exit_code(job(status={"conditions": conditions(Succeeded=("True", "AllProven"))})) is None
    assert exit_code(job(status=finished(True))) is ExitCode.DONE
    assert exit_code(job(status=finished(False))) is ExitCode.FAILED
    assert exit_code(job(status={"conditions": conditions(Finished=("True", "SomeUnproven"))})) is ExitCode.FAILED


def test_summary() -> None:
    assert summary(job()) == "porch-2: Pending: not seen by the operator yet"
    assert summary(job(status=finished(True))) == "porch-2: Succeeded, 1/1 done: AllProven"
    both = conditions(Finished=("False", "InProgress"), Validated=("True", "Accepted"), Progressing=("False", "Paused"))
    assert summary(job(status={"phase": "Paused", "conditions": both})) == "porch-2: Paused: Paused"


def ended(phase: str = "Succeeded", reason: str = "Proven", **report: Any) -> FlashTask:
    status = {
        "phase": phase,
        "reason": reason,
        "message": "said so",
        "attempt": 1,
        "bytesWritten": 4096,
        "seconds": {"Fetching": 0.25, "Writing": 8.5},
        "finishedAt": at(32),
        "report": report,
    }
    return task(status=status)


def test_closing_table_of_a_success() -> None:
    (entry,) = closed([ended(verdict=verdict(unproven=["nvs"]))], {})
    assert entry.seconds == {"Fetching": 0.25, "Writing": 8.5, "Rediscovering": 12.0}
    assert (entry.total_seconds, entry.measured, entry.bytes_written) == (32.0, MEASURED, 4096)
    text = shown(closing_table(job(status=finished(True)), [ended(verdict=verdict(unproven=["nvs"]))], {}))
    for part in (
        "Succeeded",
        "Proven",
        "porch-sensor 2.1.0",
        MEASURED[:12],
        "SignedBoot",
        "not proven: nvs",
        "total 32",
    ):
        assert part in text
    assert MEASURED[:13] not in text
    assert "said so" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_rule_7_what_was_not_measured_is_not_claimed() -> None:
    of = ended("Failed", "PortSilent")
    (entry,) = closed([of], {"d": device(status={"firmware": FIRMWARE})})
    assert (entry.application, entry.version, entry.measured, entry.unproven) == ("", "", "", ())
    assert entry.root_of_trust == "SignedBoot"
    text = shown(closing_table(job(), [of], {}))
    assert "not measured" in text
    assert "said so" in text, "a failure says why"
    assert "2.1.0" not in text


def test_rule_7_a_liar_is_shown_with_what_it_runs() -> None:
    lie = verdict("Rejected", "MeasurementMismatch", version="1.0.0")
    text = shown(closing_table(job(), [ended("Failed", "MeasurementMismatch", verdict=lie)], {}))
    assert "porch-sensor 1.0.0" in text
    assert "Rediscovering" not in text


def test_closing_table_before_the_end() -> None:
    (entry,) = closed([task()], {})
    assert (entry.phase, entry.total_seconds) == (Phase.PENDING, None)
    assert "total ?" in shown(closing_table(job(), [task()], {}))


def test_json_forms() -> None:
    body = json.loads(json.dumps(closing_json(job(status=finished(False)), [ended(verdict=verdict())], {})))
    assert (body["job"], body["exitCode"], body["phase"]) == ("porch-2", 1, "Failed")
    (entry,) = body["devices"]
    assert (entry["phase"], entry["rootOfTrust"], entry["totalSeconds"]) == ("Succeeded", "SignedBoot", 32.0)
    assert json.loads(json.dumps(row_json(row(task()))))["rootOfTrust"] == "SignedBoot"
