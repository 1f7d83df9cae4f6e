# SPDX-License-Identifier: Apache-2.0
"""Transfers side by side: all run, the first failure ends the others."""

import threading

import pytest

from firmware_pipeline.store import Progress
from firmware_pipeline.together import PARALLEL, ask_together, transfer_together


def test_transfers_run_at_the_same_time_and_tell_how_far_they_are() -> None:
    met = threading.Barrier(PARALLEL, timeout=10)
    told: list[tuple[int, int, int]] = []

    def act(item: int, update: Progress) -> None:
        met.wait()
        update(item, 9)

    transfer_together(act, range(PARALLEL), lambda *step: told.append(step))
    assert sorted(told) == [(item, item, 9) for item in range(PARALLEL)]


def test_the_first_failure_stops_the_others_at_their_next_bytes() -> None:
    failed, stopped, begun = threading.Event(), threading.Event(), []

    def act(item: int, update: Progress) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise ValueError("broken")
        failed.wait(10)
        try:
            while True:
                update(0, 1)
        except Exception:
            stopped.set()
            raise

    with pytest.raises(ValueError, match="broken"):
        transfer_together(act, range(100), None)
    assert stopped.is_set()
    assert len(begun) < 100


def test_answers_come_in_the_order_of_the_questions() -> None:
    assert ask_together(lambda item: item * 2, range(50)) == list(range(0, 100, 2))
    with pytest.raises(KeyError):
        ask_together({1: 1}.__getitem__, [1, 2, 3])
