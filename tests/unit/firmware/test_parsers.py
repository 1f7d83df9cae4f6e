# SPDX-License-Identifier: Apache-2.0
"""Every parser of foreign bytes: whatever it is given it returns or raises PipelineError, and soon. The same by the
hundred thousand: `tests/fuzz`."""

import contextlib
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_pipeline.errors import PipelineError
from tests.fuzz.engine import allowed_seconds
from tests.parsers import Parser, firmware_parsers

PARSERS = firmware_parsers()
IDS = [parser.name for parser in PARSERS]


def answer(parser: Parser, data: bytes) -> None:
    """Nothing but PipelineError may come out."""
    with contextlib.suppress(PipelineError):
        parser.parse(data)


def cpu_seconds(parser: Parser, data: bytes) -> float:
    """The quickest of three runs: what the parser needs, without what the machine does beside."""
    runs = []
    for _ in range(3):
        start = time.process_time()
        answer(parser, data)
        runs.append(time.process_time() - start)
    return min(runs)


def mutate(rng: random.Random, seed: bytes) -> bytes:
    """Flips, cuts, repeats, foreign bytes, extreme words: one to four of them."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at : at + 8] = rng.randbytes(rng.randrange(9))
        elif kind == 4:
            data[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        else:
            del data[at : at + rng.randint(1, 64)]
    return bytes(data)


@pytest.mark.parametrize("parser", PARSERS, ids=IDS)
def test_seeds_are_accepted_and_cut_ones_answered(parser: Parser) -> None:
    for seed in parser.seeds:
        parser.parse(seed)
        for size in {*range(40), len(seed) // 2, len(seed) - 1}:
            answer(parser, seed[:size])


@pytest.mark.parametrize("parser", PARSERS, ids=IDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_garbage_is_answered(parser: Parser, data: st.DataObject) -> None:
    answer(parser, data.draw(st.binary(max_size=2048)))
    answer(parser, mutate(random.Random(data.draw(st.integers())), data.draw(st.sampled_from(parser.seeds))))


HARD = (
    b"[" * 8192,
    b'{"a":' * 1600,
    b"\xe9\x10" + b"\0" * 8190,
    b"\xaa\x50" * 4096,
    b"\xff" * 8192,
    b"\0" * 65536,
    b"\xe9" * 65536,
    b'"' + b"\\u0000" * 10_000,
    b"1" * 8192,
    b"[" + b"1," * 30_000,
    b"a/" * 4096,
    b"a-" * 4096,
    b"a." * 4096 + b"/",
)


@pytest.mark.parametrize("parser", PARSERS, ids=IDS)
def test_answers_come_soon(parser: Parser) -> None:
    for data in (*HARD, *(mutate(random.Random(n), parser.seeds[0]) for n in range(20))):
        assert cpu_seconds(parser, data) <= allowed_seconds(len(data)), data[:32]
