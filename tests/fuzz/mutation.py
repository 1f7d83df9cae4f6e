# SPDX-License-Identifier: Apache-2.0
"""The built-in engine's inputs: seeded, so a number names an input; structure-aware, so most get past the first check.

One input in ten is noise. The others are a seed with one to four changes: bits, bytes, cuts, insertions, splices with
another seed, numbers of 1 to 8 bytes (where lengths, counts and offsets are), tokens of JSON, items of CBOR, and elements of DER.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from . import cbor_tree, tlv_tree

_BYTES = bytes((0x00, 0x01, 0x7F, 0x80, 0xA0, 0xAA, 0xE9, 0xEB, 0xFE, 0xFF))
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[{}\[\],:]')
_JSON_VALUES = (
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616", b'""', b'"\\u0000"', b'"\\ud800"',
    b"[]", b"{}", b'"' + b"A" * 300 + b'"', b"[" * 40, b'{"a":1,"a":2}',
)  # fmt: skip


class Tree(Protocol):
    """A parsed input that knows how to be changed."""

    def bend(self, other: Any, random: Random) -> bytes:
        """One change, perhaps by a part of `other`, which is of the same kind."""


def _tree(data: bytes) -> Tree | None:
    """DER begins with a sequence and its length; most else that is a tree is CBOR."""
    return tlv_tree.parse(data) if data[:1] == b"\x30" else cbor_tree.parse(data)


class Mutator:
    """An endless, repeatable supply of inputs.

    Args:
        seeds: true inputs, at least one.
        number: of the supply; same seeds and number, same inputs.
        limit: most bytes of an input.
    """

    def __init__(self, seeds: Sequence[bytes], number: int, limit: int = 1 << 18) -> None:
        self._seeds, self._random, self._limit = list(seeds), Random(number), limit
        self._trees = {seed: tree for seed in seeds if (tree := _tree(seed)) is not None}
        self._json = any(seed[:1] in (b"{", b"[") for seed in seeds)
        self._changes: list[Callable[[bytes], bytes]] = [
            self._bit, self._byte, self._cut, self._remove, self._insert, self._repeat, self._splice, self._number,
        ]  # fmt: skip
        if self._json:
            self._changes += [self._token] * 6

    def next(self) -> bytes:
        """The next input."""
        random = self._random
        if random.random() < 0.1:
            return random.randbytes(random.choice((0, 1, 3, 16, 64, 300, 4096)))[: self._limit]
        seed = random.choice(self._seeds)
        return self._vary(seed, self._trees.get(seed))

    def vary(self, data: bytes, number: int) -> bytes:
        """A change of any input, named by a number: for engines that choose inputs themselves."""
        self._random.seed(number)
        return self._vary(data, self._trees.get(data) or _tree(data))

    def _vary(self, data: bytes, tree: Tree | None) -> bytes:
        random, choice = self._random, self._random.random()
        if tree is not None and choice < 0.7:
            others = [other for other in self._trees.values() if type(other) is type(tree)]
            data = tree.bend(random.choice(others or [tree]), random)
            if choice < 0.6:
                return data[: self._limit]
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            data = random.choice(self._changes)(data)
        return data[: self._limit]

    def _place(self, data: bytes) -> int:
        """Headers are where the decisions are: half of all changes go to the first 64 bytes."""
        return self._random.randrange(max(1, min(len(data), 64) if self._random.random() < 0.5 else len(data)))

    def _bit(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + bytes([(data[at] if data else 0) ^ 1 << self._random.randrange(8)]) + data[at + 1 :]

    def _byte(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + bytes([self._random.choice(_BYTES)]) + data[at + 1 :]

    def _cut(self, data: bytes) -> bytes:
        return data[: self._place(data)]

    def _remove(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + data[at + self._random.choice((1, 2, 4, 32)) :]

    def _insert(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + self._random.randbytes(self._random.choice((1, 2, 4, 32))) + data[at:]

    def _repeat(self, data: bytes) -> bytes:
        at, size = self._place(data), self._random.choice((1, 4, 32, 256))
        return data[: at + size] + data[at:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._seeds)
        return data[: self._place(data)] + other[self._place(other) :]

    def _number(self, data: bytes) -> bytes:
        at, size, random = self._place(data), self._random.choice((1, 2, 4, 8)), self._random
        order = random.choice(("little", "big"))
        old = int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]
        top = 1 << 8 * size
        new = random.choice((old + 1, old - 1, old * 2, old + 4, old + 4096, 0, top - 1, top >> 1, len(data))) % top
        return data[:at] + new.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]

    def _token(self, data: bytes) -> bytes:
        tokens = list(_JSON_TOKEN.finditer(data))
        if not tokens:
            return data
        found = self._random.choice(tokens)
        new = self._random.choice((*_JSON_VALUES, self._random.choice(tokens).group(), b""))
        return data[: found.start()] + new + data[found.end() :]
