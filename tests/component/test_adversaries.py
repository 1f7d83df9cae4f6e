# SPDX-License-Identifier: Apache-2.0
"""Nobody buys a success: every kind of liar before the real flasher and the real judge (cases and counts in court.py).

What is fast runs a few of each; `slow` runs a thousand of each, in two processes, with randomised time, chip, tier, key
type, address and harmless faults.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from .court import CASES, Court, Tally, hold

WORKERS = 2
SHARES = 10
"""Parts that a thousand runs of a case are cut into: a worker's memory is its share's."""


def verdict_on(tally: Tally, times: int, cases: int = len(CASES)) -> None:
    """What must hold for any number of trials."""
    assert tally.trials == times * cases
    assert tally.false_successes == 0
    assert tally.proven == tally.honest
    assert tally.strays == []


async def test_a_few_of_each(tmp_path: Path) -> None:
    verdict_on(await Court(tmp_path, seed=1).hear(CASES, 2), 2)


@pytest.mark.parametrize("name", ["honest", "runs the old image", "answers with a leaked CDI"])
async def test_over_a_serial_line(tmp_path: Path, name: str) -> None:
    cases = [case for case in CASES if case.name == name]
    verdict_on(await Court(tmp_path, seed=2).hear(cases, 1, serial=True), 1, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_each_over_a_serial_line(tmp_path: Path) -> None:
    cases = [case for case in CASES if case.serial]
    verdict_on(await Court(tmp_path, seed=3).hear(cases, 3, serial=True), 3, len(cases))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_of_each() -> None:
    total = Tally()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for tally in pool.map(hold, range(100, 100 + SHARES), [1000 // SHARES] * SHARES):
            total.add(tally)
    verdict_on(total, 1000)


async def test_the_court_can_find_guilty(tmp_path: Path) -> None:
    """A twin: what holds the UDS of a device that is trusted as SignedBoot does buy a PROVEN, and the court counts it."""
    holds_uds = next(case for case in CASES if case.name == "holds the UDS")
    tally = await Court(tmp_path, seed=4, trusting=True).hear([holds_uds], 1)
    assert tally.false_successes == 1
