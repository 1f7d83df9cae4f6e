# SPDX-License-Identifier: Apache-2.0
"""The interface of all benchmarks; rules of benchmarks/common.py."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks._stack import count_writes
from benchmarks.common import IDLE_LOAD, Op, Report, main, median_ratio

ROOT = Path(__file__).parents[2]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return body


def test_the_last_line_is_the_whole_result(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(report: Report) -> None:
        report.figure("seconds", [1.23456, 2])
        report.bar("ratio", 1.01, "<=", 1.05)

    assert main("sample", measure, []) == 0
    body = last_line(capsys)
    assert set(body) == {"bench", "load", "figures", "bars"}
    assert body["bench"] == "sample"
    assert body["load"] >= 0
    assert body["figures"] == {"seconds": [1.235, 2]}
    assert body["bars"] == [{"name": "ratio", "value": 1.01, "op": "<=", "limit": 1.05, "ok": True}]


def test_a_broken_bar_fails_the_run_and_still_prints_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("sample", lambda report: report.bar("ratio", 1.06, "<=", 1.05), []) == 1
    assert last_line(capsys)["bars"][0]["ok"] is False


@pytest.mark.parametrize(
    ("value", "op", "ok"), [(8, "<=", True), (9, "<=", False), (9, ">=", True), (7, ">=", False), (8, "==", True)]
)
def test_bars_compare_as_they_say(value: float, op: Op, ok: bool) -> None:
    report = Report("sample", 0.0)
    report.bar("writes", value, op, 8)
    assert report.bars[0].ok is ok


def test_seconds_are_judged_on_an_idle_machine_only() -> None:
    busy, idle = Report("sample", IDLE_LOAD), Report("sample", IDLE_LOAD - 0.01)
    for report in (busy, idle):
        report.bar("ready", 100.0, "<=", 6.0, wall_clock=True)
        report.bar("writes", 100.0, "<=", 8)
    assert [bar.ok for bar in busy.bars] == [None, False]
    assert "not judged" in busy.bars[0].note
    assert [bar.ok for bar in idle.bars] == [False, False]
    assert idle.bars[0].note == ""


def test_a_bar_that_was_not_judged_fails_nothing() -> None:
    report = Report("sample", 3.0)
    report.bar("ready", 100.0, "<=", 6.0, wall_clock=True)
    assert report.exit_code == 0


def test_smoke_reaches_the_measurement() -> None:
    seen = []
    main("sample", lambda report: seen.append(report.smoke), ["--smoke"])
    main("sample", lambda report: seen.append(report.smoke), [])
    assert seen == [True, False]


def test_a_wrong_argument_is_usage() -> None:
    with pytest.raises(SystemExit) as end:
        main("sample", lambda report: None, ["--fast"])
    assert end.value.code == 2


def test_what_slows_one_pair_does_not_move_the_median_ratio() -> None:
    assert median_ratio([(10, 10), (40, 40), (11, 10)]) == 1.0
    assert median_ratio([(3, 2), (1, 2), (1, 1)]) == 1.0


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py") if p.stem != "common"))
def test_every_benchmark_measures_only_when_run_and_is_documented(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert callable(module.measure)
    assert f"## {name}" in (ROOT / "docs" / "benchmarks.md").read_text()


def write(account: str, verb: str, resource: str, name: str, code: int = 200, **ref: str) -> bytes:
    user = {"username": f"system:serviceaccount:flashjob-system:flashjob-{account}"}
    entry = {
        "user": user,
        "verb": verb,
        "responseStatus": {"code": code},
        "objectRef": {"resource": resource, "name": name, **ref},
    }
    return json.dumps(entry).encode()


def test_writes_about_a_device_are_counted_by_account_and_nothing_else_is() -> None:
    about = {("flashtasks", "t"), ("leases", "fj-t")}
    theirs = {"user": {"username": "admin"}, "verb": "patch", "responseStatus": {"code": 200}, "objectRef": {}}
    log = [
        write("operator", "create", "flashtasks", "t", 201),
        write("gateway", "patch", "flashtasks", "t", subresource="status"),
        write("gateway", "patch", "flashtasks", "t", subresource="status"),
        write("operator", "update", "leases", "fj-t"),
        write("operator", "patch", "flashjobs", "j", subresource="status"),
        write("operator", "get", "flashtasks", "t"),
        write("gateway", "patch", "flashtasks", "t", 409, subresource="status"),
        write("operator", "update", "leases", "leader"),
        write("operator", "create", "flashtasks", "another", 201),
        json.dumps(theirs).encode(),
    ]
    assert count_writes(log, about) == {
        "operator create flashtasks": 1,
        "gateway patch flashtasks/status": 2,
        "operator update leases": 1,
        "job: operator patch flashjobs/status": 1,
        "refused: gateway patch flashtasks/status": 1,
    }
