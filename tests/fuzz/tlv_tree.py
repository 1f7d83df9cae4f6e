# SPDX-License-Identifier: Apache-2.0
"""DER as a tree that can be bent, as `cbor_tree` does for CBOR."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

_CONSTRUCTED, _OCTETS, _BITS = 0x20, 0x04, 0x03


@dataclass(slots=True)
class Node:
    """One element; `children` of constructed ones, and of octet and bit strings that hold DER (after `prefix`)."""

    tag: int
    raw: bytes = b""
    children: list[Node] = field(default_factory=list)
    prefix: bytes = b""
    lie: int = 0

    def walk(self) -> list[Node]:
        """This node and all below it."""
        found = [self]
        for child in self.children:
            found += child.walk()
        return found

    def copy(self) -> Node:
        """A deep copy."""
        return Node(self.tag, self.raw, [child.copy() for child in self.children], self.prefix, self.lie)

    def encode(self) -> bytes:
        """The bytes, with true lengths wherever nothing lies."""
        body = self.prefix + b"".join(child.encode() for child in self.children) if self.children else self.raw
        size = max(0, len(body) + self.lie)
        length = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
        head = length if size < 0x80 else bytes([0x80 | len(length)]) + length
        return bytes([self.tag]) + head + body

    def bend(self, other: Node, random: Random) -> bytes:
        """One change somewhere in a copy of the tree; parts of `other` may be put in."""
        tree = self.copy()
        node = random.choice(tree.walk())
        place = random.randrange(max(1, len(node.children)))
        match random.randrange(8):
            case 0 if node.children:
                del node.children[place]
            case 1 if node.children:
                node.children.insert(place, node.children[place].copy())
            case 2 if node.children:
                random.shuffle(node.children)
            case 3:
                node.tag = random.choice(
                    (node.tag ^ 1 << random.randrange(8), *range(1, 13), 0x17, 0x18, 0x30, 0x31, 0xA0)
                )
            case 4:
                node.lie = random.choice((-1, 1, 128, 65536))
            case 5:
                new = random.choice(other.walk()).copy()
                node.tag, node.raw, node.children, node.prefix = new.tag, new.raw, new.children, new.prefix
            case _:
                node.children, raw = [], node.raw
                at = random.randrange(len(raw)) if raw else 0
                node.raw = random.choice(
                    (
                        raw[:at],
                        raw + b"\0",
                        b"\0" + raw,
                        raw[:at] + random.randbytes(1) + raw[at + 1 :],
                        b"",
                        b"\xff" * len(raw),
                    )
                )
        return tree.encode()


def parse(data: bytes) -> Node | None:
    """The tree of exactly one element; None for anything else."""
    try:
        node, end = _element(data, 0)
    except (IndexError, ValueError):
        return None
    return node if end == len(data) else None


def _element(data: bytes, at: int) -> tuple[Node, int]:
    tag, size, at = data[at], data[at + 1], at + 2
    if size & 0x80:
        width = size & 0x7F
        size, at = int.from_bytes(data[at : at + width], "big"), at + width
    end = at + size
    if end > len(data):
        raise ValueError("length")
    raw = data[at:end]
    node = Node(tag, raw)
    if tag & _CONSTRUCTED:
        node.children = _elements(raw)
    elif tag in (_OCTETS, _BITS) and len(raw) > 2:
        node.prefix = raw[:1] if tag == _BITS else b""
        inner = parse(raw[len(node.prefix) :])
        node.children = [inner] if inner else []
    return node, end


def _elements(data: bytes) -> list[Node]:
    found, at = [], 0
    while at < len(data):
        node, at = _element(data, at)
        found.append(node)
    return found
