# SPDX-License-Identifier: Apache-2.0
"""CBOR as a tree that can be bent: a mutation deep inside keeps the lengths around it right, unless they are the mutation."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

_MAX_DEPTH = 12
_EDGES = (0, 1, 23, 24, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)


@dataclass(slots=True)
class Node:
    """One item: `children` of arrays, maps and tags, and of byte strings that hold CBOR themselves; else `raw`."""

    major: int
    argument: int
    raw: bytes = b""
    children: list[Node] = field(default_factory=list)
    width: int = -1
    """Bytes of the head's argument; -1: the shortest form, -2: indefinite length."""
    lie: int = 0
    """Added to the length that the head announces."""

    def walk(self) -> list[Node]:
        """This node and all below it."""
        found = [self]
        for child in self.children:
            found += child.walk()
        return found

    def copy(self) -> Node:
        """A deep copy."""
        copies = [child.copy() for child in self.children]
        return Node(self.major, self.argument, self.raw, copies, self.width, self.lie)

    def encode(self) -> bytes:
        """The bytes, with true lengths wherever nothing lies."""
        body = b"".join(child.encode() for child in self.children) or self.raw
        argument = self.argument
        if self.major in (_BYTES, _TEXT):
            argument = len(body)
        elif self.major in (_ARRAY, _MAP):
            argument = len(self.children) // (2 if self.major == _MAP else 1)
        head = _head(self.major, max(0, argument + self.lie), self.width)
        return head + body + (b"\xff" if self.width == -2 else b"")

    def bend(self, other: Node, random: Random) -> bytes:
        """One change somewhere in a copy of the tree; parts of `other` may be put in."""
        tree = self.copy()
        node = random.choice(tree.walk())
        match random.randrange(9):
            case 0:
                node.argument = max(0, random.choice((node.argument + 1, node.argument - 1, random.choice(_EDGES))))
                node.raw = _bent_bytes(node.raw, random)
                if node.major in (_BYTES, _TEXT):
                    node.children = []
            case 1 if node.children:
                del node.children[random.randrange(len(node.children))]
            case 2 if node.children:
                node.children.append(random.choice(node.children).copy())
            case 3 if len(node.children) > 1:
                random.shuffle(node.children)
            case 4:
                node.major = random.randrange(8)
            case 5:
                node.width = random.choice((0, 1, 2, 4, 8, -2))
            case 6:
                node.lie = random.choice((-1, 1, 2, 255, 2**32))
            case _:
                new = random.choice(other.walk()).copy()
                node.major, node.argument, node.raw, node.children = new.major, new.argument, new.raw, new.children
        return tree.encode()


def _head(major: int, argument: int, width: int) -> bytes:
    if width == -2:
        return bytes([major << 5 | 31])
    if width == -1:
        width = 0 if argument < 24 else next(w for w in (1, 2, 4, 8) if argument < 1 << 8 * w or w == 8)
    if width == 0:
        return bytes([major << 5 | argument & 31])
    code = {1: 24, 2: 25, 4: 26, 8: 27}[width]
    return bytes([major << 5 | code]) + (argument & (1 << 8 * width) - 1).to_bytes(width, "big")


def parse(data: bytes) -> Node | None:
    """The tree of exactly one definite item; None for anything else."""
    try:
        node, end = _item(data, 0, 0)
    except (IndexError, ValueError):
        return None
    return node if end == len(data) else None


def _item(data: bytes, at: int, depth: int) -> tuple[Node, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("too deep")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    argument = info
    if info >= 24:
        size = {24: 1, 25: 2, 26: 4, 27: 8}[info] if info < 28 else len(data) + 1
        if at + size > len(data):
            raise ValueError("head")
        argument, at = int.from_bytes(data[at : at + size], "big"), at + size
    if major in (_BYTES, _TEXT):
        if at + argument > len(data):
            raise ValueError("body")
        raw = data[at : at + argument]
        inner = parse(raw) if major == _BYTES and raw and raw[0] >> 5 in (_ARRAY, _MAP, _TAG) else None
        return Node(major, argument, raw, [inner] if inner else []), at + argument
    count = {_ARRAY: argument, _MAP: 2 * argument, _TAG: 1}.get(major, 0)
    if count > len(data):
        raise ValueError("count")
    node = Node(major, argument)
    for _ in range(count):
        child, at = _item(data, at, depth + 1)
        node.children.append(child)
    return node, at


def _bent_bytes(raw: bytes, random: Random) -> bytes:
    if not raw:
        return random.randbytes(random.randrange(4))
    at = random.randrange(len(raw))
    match random.randrange(4):
        case 0:
            return raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :]
        case 1:
            return raw[:at]
        case 2:
            return raw + random.randbytes(1)
        case _:
            return bytes(len(raw))
