# SPDX-License-Identifier: Apache-2.0
"""A nonce decides once. This is the last check before a verdict counts, and the only one that writes."""

import hashlib
import threading
from typing import Protocol

from attestation.errors import Code, Reject


class SingleUse(Protocol):
    """Remembers used nonces until they expire by themselves.

    An implementation must be atomic: of two callers with one nonce, exactly one returns. One that cannot be sure must
    raise ``store.unavailable``: it never lets a nonce through.
    """

    def consume(self, nonce: bytes, *, until: int, now: int) -> None:
        """Mark a nonce as used.

        Args:
            nonce: the nonce.
            until: when it expires, Unix seconds.
            now: Unix seconds.

        Raises:
            Reject: ``replay`` if it was used before, ``store.unavailable`` if that cannot be told.
        """
        ...


class InMemorySingleUse:
    """For one process: a lock and sets, which hold no more than the nonces that could still be good.

    There are many small sets, because one that is added to and taken from for days is copied to a new place again and again,
    and the holes that it leaves make the heap of a busy service grow.

    Args:
        capacity: most nonces remembered at once; beyond it everything is refused rather than anything forgotten.
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self._capacity = capacity
        self._used: tuple[set[bytes], ...] = tuple(set() for _ in range(256))
        """By the first byte of their names."""
        self._count = 0
        self._due: dict[int, list[bytes]] = {}
        """The same by the second in which they may be forgotten."""
        self._swept = 0
        self._lock = threading.Lock()

    def consume(self, nonce: bytes, *, until: int, now: int) -> None:
        """See ``SingleUse.consume``."""
        name = hashlib.sha256(nonce).digest()[:16]
        with self._lock:
            if now > self._swept:
                self._forget(now)
            if until <= self._swept:  # judged with an older clock than another thread's, which has forgotten it
                raise Reject(Code.STORE_UNAVAILABLE, "the nonce expired while it was judged: ask for a new one")
            if name in self._used[name[0]]:
                raise Reject(Code.REPLAY, "the nonce was used before: ask for a new one")
            if self._count >= self._capacity:
                raise Reject(Code.STORE_UNAVAILABLE, "too many nonces are in use: try again later")
            self._used[name[0]].add(name)
            self._count += 1
            self._due.setdefault(until, []).append(name)

    def _forget(self, now: int) -> None:
        """Once a second: what is kept longer than it must be makes the heap of a busy service grow and shrink."""
        self._swept = now
        for second in [second for second in self._due if second <= now]:
            names = self._due.pop(second)
            for name in names:
                self._used[name[0]].remove(name)
            self._count -= len(names)
