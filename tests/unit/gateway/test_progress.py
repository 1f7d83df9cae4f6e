# SPDX-License-Identifier: Apache-2.0
"""Per cent: the last word of each task, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashjob.gateway.progress import ProgressBoard
from flashjob.wire.gateway import Progress, Stage


def at(done: int, attempt: int = 1, stage: Stage = Stage.WRITING) -> Progress:
    return Progress(attempt=attempt, stage=stage, done=done, total=100)


def test_the_last_report_of_a_task_is_what_is_seen() -> None:
    board = ProgressBoard()
    for done in (1, 2, 3):
        board.put("ns", "job", "b", at(done))
    board.put("ns", "job", "a", at(9, stage=Stage.FETCHING))
    assert [(one.task, one.stage, one.done, one.total) for one in board.of_job("ns", "job")] == [
        ("a", "Fetching", 9, 100),
        ("b", "Writing", 3, 100),
    ]


def test_an_earlier_attempt_does_not_turn_the_bar_back() -> None:
    board = ProgressBoard()
    board.put("ns", "job", "t", at(5, attempt=2))
    board.put("ns", "job", "t", at(99, attempt=1))
    assert [(one.attempt, one.done) for one in board.of_job("ns", "job")] == [(2, 5)]
    board.put("ns", "job", "t", at(0, attempt=3))
    assert [(one.attempt, one.done) for one in board.of_job("ns", "job")] == [(3, 0)]


def test_namespaces_and_jobs_do_not_see_each_other() -> None:
    board = ProgressBoard()
    board.put("ns", "job", "t", at(1))
    board.put("other", "job", "t", at(2))
    board.put("ns", "another", "u", at(3))
    assert [one.done for one in board.of_job("ns", "job")] == [1]
    board.forget("ns", "t")
    board.forget("ns", "never-seen")
    assert board.of_job("ns", "job") == ()
    assert [one.done for one in board.of_job("other", "job")] == [2]


def test_the_task_that_was_silent_longest_goes_first() -> None:
    board = ProgressBoard(limit=2)
    board.put("ns", "job", "a", at(1))
    board.put("ns", "job", "b", at(1))
    board.put("ns", "job", "a", at(2))
    board.put("ns", "job", "c", at(1))
    assert [one.task for one in board.of_job("ns", "job")] == ["a", "c"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.integers(0, 100)), max_size=60))
def test_it_never_outgrows_its_limit(reports: list[tuple[str, int, int]]) -> None:
    board = ProgressBoard(limit=4)
    for task, attempt, done in reports:
        board.put("ns", "job", task, at(done, attempt))
        assert len(board.of_job("ns", "job")) <= 4
