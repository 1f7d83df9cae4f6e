# SPDX-License-Identifier: Apache-2.0
"""Nonces: bound to device, audience, key and time; used once."""

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import nonce
from attestation.errors import Reject
from attestation.nonce import KeyRing, check, issue
from attestation.replay import InMemorySingleUse
from tests.unit.attestation.world import AUDIENCE, NOW, RING, rejects

UEID = b"\x01" + bytes(range(32))


def made(**changes: object) -> bytes:
    arguments: dict[str, object] = {"ueid": UEID, "audience": AUDIENCE, "now": NOW, "ttl": 120, "random": b"r" * 10}
    return issue(RING, **{**arguments, **changes})  # type: ignore[arg-type]


def test_good_until_it_expires() -> None:
    value = made()
    assert len(value) == nonce.SIZE
    assert check(RING, value, UEID, AUDIENCE, now=NOW, ttl=120) == NOW + 120
    assert check(RING, value, UEID, AUDIENCE, now=NOW + 119, ttl=120) == NOW + 120
    rejects("nonce.expired", lambda: check(RING, value, UEID, AUDIENCE, now=NOW + 120, ttl=120))


def test_59_other_device_audience_key_or_lifetime() -> None:
    value = made()
    rejects("nonce.mac", lambda: check(RING, value, UEID[:-1] + b"x", AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.mac", lambda: check(RING, value, UEID, b"task/2/after", now=NOW, ttl=120))
    rejects("nonce.mac", lambda: check(RING, value[:-1] + b"\x00", UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.key", lambda: check(KeyRing(1, {1: b"k" * 32}), value, UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.mac", lambda: check(KeyRing(7, {7: b"k" * 32}), value, UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.future", lambda: check(RING, made(ttl=3600), UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.structure", lambda: check(RING, value[:-1], UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.structure", lambda: check(RING, b"\x02" + value[1:], UEID, AUDIENCE, now=NOW, ttl=120))


def test_ueid_and_audience_cannot_be_shifted_into_each_other() -> None:
    value = made(ueid=b"abc", audience=b"def")
    rejects("nonce.mac", lambda: check(RING, value, b"abcd", b"ef", now=NOW, ttl=120))


def test_previous_key_is_honoured_during_rotation() -> None:
    before = KeyRing(6, RING.keys)
    value = issue(before, UEID, AUDIENCE, now=NOW, ttl=120, random=b"r" * 10)
    assert check(RING, value, UEID, AUDIENCE, now=NOW, ttl=120)


def test_a_removed_key_is_unknown_at_once() -> None:
    """Rotation in three steps: the new key is added, becomes the current one, the old one goes."""
    old = KeyRing(6, {6: RING.keys[6]})
    value = issue(old, UEID, AUDIENCE, now=NOW, ttl=120, random=b"r" * 10)
    for ring in (KeyRing(6, RING.keys), KeyRing(7, RING.keys)):
        assert check(ring, value, UEID, AUDIENCE, now=NOW, ttl=120)
    rejects("nonce.key", lambda: check(KeyRing(7, {7: RING.keys[7]}), value, UEID, AUDIENCE, now=NOW, ttl=120))


def test_a_key_number_that_never_was_and_one_that_means_another_key() -> None:
    value = made()
    rejects("nonce.key", lambda: check(RING, value[:1] + b"\x63" + value[2:], UEID, AUDIENCE, now=NOW, ttl=120))
    rejects("nonce.mac", lambda: check(RING, value[:1] + b"\x06" + value[2:], UEID, AUDIENCE, now=NOW, ttl=120))


def test_bad_rings_and_arguments() -> None:
    for current, keys in ((1, {2: b"k" * 32}), (1, {1: b"short"}), (256, {256: b"k" * 32})):
        with pytest.raises(ValueError, match="key"):
            KeyRing(current, keys)
    with pytest.raises(ValueError, match="random"):
        made(random=b"short")
    with pytest.raises(ValueError, match="expiry"):
        made(now=2**32)
    assert "k" * 32 not in repr(KeyRing(1, {1: b"k" * 32}))


@given(st.binary(max_size=64))
def test_random_bytes_are_never_ours(data: bytes) -> None:
    with pytest.raises(Reject):
        check(RING, data, UEID, AUDIENCE, now=NOW, ttl=120)


@given(st.integers(0, 8 * nonce.SIZE - 1))
def test_every_flipped_bit_rejects(bit: int) -> None:
    value = bytearray(made())
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Reject):
        check(RING, bytes(value), UEID, AUDIENCE, now=NOW, ttl=120)


def test_60_used_once() -> None:
    used = InMemorySingleUse()
    used.consume(b"a", until=NOW + 120, now=NOW)
    used.consume(b"b", until=NOW + 120, now=NOW)
    rejects("replay", lambda: used.consume(b"a", until=NOW + 120, now=NOW + 100))


def test_61_of_many_at_once_exactly_one_wins() -> None:
    used, won = InMemorySingleUse(), []
    start = threading.Barrier(8)

    def race() -> None:
        start.wait()
        try:
            used.consume(b"a", until=NOW + 120, now=NOW)
            won.append(1)
        except Reject:
            pass

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]


def test_full_memory_refuses_rather_than_forgets() -> None:
    used = InMemorySingleUse(capacity=2)
    used.consume(b"a", until=NOW + 120, now=NOW)
    used.consume(b"b", until=NOW + 10, now=NOW)
    rejects("store.unavailable", lambda: used.consume(b"c", until=NOW + 120, now=NOW))
    rejects("replay", lambda: used.consume(b"a", until=NOW + 120, now=NOW))
    used.consume(b"c", until=NOW + 120, now=NOW + 11)


def test_60_what_one_thread_forgot_another_whose_clock_is_behind_does_not_let_through() -> None:
    used = InMemorySingleUse()
    used.consume(b"a", until=NOW + 2, now=NOW)
    used.consume(b"b", until=NOW + 120, now=NOW + 2)
    rejects("store.unavailable", lambda: used.consume(b"a", until=NOW + 2, now=NOW + 1))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-20, 20)), max_size=60))
def test_60_whatever_the_clocks_of_threads_say_a_nonce_is_good_once(asked: list[tuple[int, int]]) -> None:
    used, won = InMemorySingleUse(), list[int]()
    for number, offset in asked:
        with contextlib.suppress(Reject):
            used.consume(bytes([number]), until=NOW + 5 * number, now=NOW + 10 + offset)
            won.append(number)
    assert len(won) == len(set(won))
