# SPDX-License-Identifier: Apache-2.0
"""Which sectors are written: the rules of changes.py, asked of a flash in memory."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from flashjob.flasher.changes import HOPELESS, PAGE, SECTOR, Run, md5, padded, search


def ask(data: bytes, flash: bytes) -> tuple[list[Run], int]:
    """The runs found on this flash, and how many questions it took."""
    questions, asked = search(padded(data)), 0
    try:
        start, end = next(questions)
        while True:
            asked += 1
            start, end = questions.send(md5(flash[start:end]))
    except StopIteration as found:
        return found.value, asked


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@given(st.integers(1, 30 * SECTOR), st.sets(st.integers(0, 29)), st.booleans())
def test_rule_4_what_is_written_makes_the_flash_right_and_runs_never_meet(
    size: int, other: set[int], blank: bool
) -> None:
    data = noise(1, size)
    flash = bytearray(padded(data))
    for sector in other:
        if sector * SECTOR < len(flash):
            flash[sector * SECTOR : (sector + 1) * SECTOR] = b"\xff" * SECTOR if blank else noise(sector + 2, SECTOR)
    runs, _ = ask(data, bytes(flash))
    whole = padded(data)
    for start, end in runs:
        assert start % SECTOR == 0
        flash[start:end] = whole[start:end]
    assert flash == whole
    assert all(before[1] < after[0] for before, after in itertools.pairwise(runs))
    assert sum(end - start for start, end in runs) <= len(whole)


def test_rule_1_what_is_equal_needs_one_question() -> None:
    data = noise(1, 5 * PAGE + 100)
    assert ask(data, padded(data)) == ([], 1)


def test_rule_1_what_is_blank_needs_one_question_and_is_written_whole() -> None:
    data = noise(1, 5 * PAGE)
    assert ask(data, b"\xff" * len(data)) == ([(0, len(data))], 1)


def test_rule_2_only_the_changed_sectors_are_found() -> None:
    data = noise(1, 25 * PAGE)
    flash = bytearray(data)
    for sector in (0, 1, 17, 300):
        flash[sector * SECTOR] ^= 1
    runs, asked = ask(data, bytes(flash))
    assert runs == [(0, 2 * SECTOR), (17 * SECTOR, 18 * SECTOR), (300 * SECTOR, 301 * SECTOR)]
    assert asked == 1 + 25 + 3 * 16


def test_rule_3_code_that_moved_is_soon_given_up() -> None:
    data = noise(1, 25 * PAGE)
    runs, asked = ask(data, noise(2, 25 * PAGE))
    assert runs == [(0, len(data))]
    assert asked == 1 + 25 + HOPELESS * 16


def test_stale_bytes_behind_the_image_in_its_last_sector_are_a_difference() -> None:
    data = noise(1, SECTOR + 100)
    stale = data + b"stale".ljust(SECTOR - 100, b"\xff")
    assert ask(data, stale)[0] == [(SECTOR, 2 * SECTOR)]


def test_no_data_no_questions() -> None:
    assert ask(b"", b"") == ([], 0)
