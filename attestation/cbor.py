# SPDX-License-Identifier: Apache-2.0
"""The strict CBOR profile (RFC 8949): one encoding per value, bounded work per input.

Reading accepts an item only if all of these rules hold; each has its own reason code.

1. The input is not empty and not longer than ``limit`` bytes (``size``).
2. Lengths are definite (``cbor.indefinite``).
3. Integers and lengths have their shortest form (``cbor.nonminimal``).
4. Every item is complete; an announced length never exceeds what is left (``cbor.eof``).
5. At most ``max_items`` items (``cbor.items``).
6. At most ``max_depth`` nested arrays and maps (``cbor.depth``).
7. No tags (``cbor.tag``), no floating-point numbers (``cbor.float``), no simple values but true and false
   (``cbor.simple``; null only where the caller says so), no reserved heads (``cbor.malformed``).
8. Map keys are integers or text (``cbor.key``) and unique (``cbor.dupkey``). Their order is free: genuine
   open-dice certificates are not sorted.
9. Text is UTF-8 (``cbor.utf8``).
10. Nothing follows the item (``cbor.trailing``).

Input of at most ``LIMIT`` bytes, which so few bytes keep small whatever they announce, is first tried with ``cbor2``: it
sets nothing aside for what is only announced. What it decodes is taken only if there are few enough items, every value is
of a type that the rules allow, and the shortest encodings of all items together are exactly as long as the input: then
every head was shortest and nothing followed. Whatever else happens there, the reader of this module reads the input again
and decides, so that each rule has one home and one reason code; it counts what is announced before it reads any of it.

Writing is core deterministic (RFC 8949 section 4.2.1): shortest forms, keys in the order of their encoded bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import cbor2

from attestation.errors import Code, Reject

Value: TypeAlias = int | bytes | str | bool | list["Value"] | dict[int | str, "Value"] | None
"""What reading yields."""

Writable: TypeAlias = (
    int
    | bytes
    | str
    | bool
    | Sequence["Writable"]
    | Mapping[int, "Writable"]
    | Mapping[str, "Writable"]
    | Mapping[int | str, "Writable"]
    | None
)
"""What writing takes."""

LIMIT = 8192
MAX_DEPTH = 8
MAX_ITEMS = 512

_ARRAYS = (list, tuple)
_MAPS = (dict, Mapping)
"""What is written as an array and as a map; asking for a dict alone is faster than for an abstract Mapping."""

_SHORTEST = (24, 1 << 8, 1 << 16, 1 << 32)
"""Smallest argument that needs 1, 2, 4, 8 bytes."""


def strict_loads(
    data: bytes,
    limit: int = LIMIT,
    *,
    max_depth: int = MAX_DEPTH,
    max_items: int = MAX_ITEMS,
    allow_null: bool = False,
) -> Value:
    """Read exactly one item.

    Args:
        data: the encoded item.
        limit: most bytes accepted.
        max_depth: most nested arrays and maps; a scalar has depth 0.
        max_items: most items, keys and values counted alike.
        allow_null: accept null (a detached COSE payload is null, and deserves its own reason).

    Raises:
        Reject: a rule of this module is broken.
    """
    if not 0 < len(data) <= limit:
        raise Reject(Code.SIZE, f"{len(data)} bytes of CBOR, allowed are 1 to {limit}")
    if len(data) <= LIMIT:
        try:
            value = cbor2.loads(
                data, max_depth=8, allow_indefinite=False, allow_duplicate_keys=False, semantic_decoders=_NO_TAGS
            )
            size, _ = _shortest((value,), max_depth, max_items)
            if size == len(data):
                return value  # type: ignore[no-any-return]  # _shortest knows no type beside those of Value
        except Exception:  # noqa: S110, BLE001  # the reader below decides, and names the reason
            pass
    reader = _Reader(bytes(data), max_items, allow_null)
    value = reader.item(max_depth)
    if reader.position != len(data):
        raise Reject(Code.CBOR_TRAILING, f"{len(data) - reader.position} bytes follow the item")
    return value


def dumps(value: Writable) -> bytes:
    """Write one item deterministically.

    Raises:
        Reject: ``cbor.type``, a value that the strict profile does not know (floats, sets, integers over 64 bits).
    """
    out = bytearray()
    _write(value, out)
    return bytes(out)


def byte_string(data: bytes) -> bytes:
    """``dumps`` of a byte string, at once: what a signature covers is made of them."""
    size = len(data)
    if size < 24:
        return bytes((0x40 | size,)) + data
    if size < 1 << 8:
        return bytes((0x58, size)) + data
    return dumps(data)


class _NoTags(dict[int, Any]):
    """Has a decoder for every tag, which refuses it: some of cbor2's own take time without bound (4 and 5)."""

    def __contains__(self, tag: object) -> bool:
        return True

    def __missing__(self, tag: int) -> Any:
        return self._refuse

    def get(self, tag: int, default: Any = None) -> Any:
        return self._refuse

    @staticmethod
    def _refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("tag")


_NO_TAGS: Final = _NoTags()


def _shortest(items: Any, depth: int, most: int) -> tuple[int, int]:
    """Bytes that the shortest encodings of these items take, and how many items they are, keys and values counted alike.

    Raises:
        ValueError: what rules 5 to 8 refuse; of too many items no more than `most` are looked at.
    """
    size = count = len(items)  # a head has at least one byte
    if count > most:
        raise ValueError("items")
    for item in items:
        kind = type(item)
        if kind is int:
            argument = item if item >= 0 else ~item
        elif kind is bytes:
            argument = len(item)
            size += argument
        elif kind is str:
            argument = len(item) if item.isascii() else len(item.encode())
            size += argument
        elif kind is bool:
            argument = 0
        elif depth == 0:
            raise ValueError("depth, or type")
        elif kind is list:
            argument = len(item)
            inner = _shortest(item, depth - 1, most - count)
            size, count = size + inner[0], count + inner[1]
        elif kind is dict:
            argument = len(item)
            inner = _shortest(item.values(), depth - 1, most - count - argument)
            size, count = size + _keys_size(item) + inner[0], count + argument + inner[1]
        else:
            raise ValueError("type")
        if argument >= 24:
            size += 1 if argument < 1 << 8 else 2 if argument < 1 << 16 else 4 if argument < 1 << 32 else 8
    return size, count


def _keys_size(keys: Any) -> int:
    """``_shortest`` for the keys of a map, which rule 8 limits to integers and text."""
    size = len(keys)
    for key in keys:
        kind = type(key)
        if kind is int:
            argument = key if key >= 0 else ~key
        elif kind is str:
            argument = len(key.encode())
            size += argument
        else:
            raise ValueError("key")
        if argument >= 24:
            size += 1 if argument < 1 << 8 else 2 if argument < 1 << 16 else 4 if argument < 1 << 32 else 8
    return size


class _Reader:
    __slots__ = ("allow_null", "data", "items_left", "position")

    def __init__(self, data: bytes, max_items: int, allow_null: bool) -> None:
        self.data = data
        self.position = 0
        self.items_left = max_items - 1
        self.allow_null = allow_null

    def item(self, depth: int) -> Value:
        data, position = self.data, self.position
        if position >= len(data):
            raise Reject(Code.CBOR_EOF, f"the input ends at byte {position}, where an item should begin")
        head = data[position]
        major, argument = head >> 5, head & 0x1F
        if major >= 6:
            return self._tag_or_simple(major, argument)
        if argument < 24:
            self.position = position + 1
        else:
            argument = self._long_argument(argument)
        if major == 0:
            return argument
        if major == 1:
            return -1 - argument
        if major == 2:
            return self._take(argument)
        if major == 3:
            try:
                return self._take(argument).decode("utf-8")
            except UnicodeDecodeError as error:
                raise Reject(Code.CBOR_UTF8, f"the text at byte {position} is not UTF-8") from error
        return self._container(argument, depth, is_map=major == 5)

    def _long_argument(self, info: int) -> int:
        start = self.position + 1
        if info == 31:
            raise Reject(Code.CBOR_INDEFINITE, f"indefinite length at byte {self.position}")
        if info > 27:
            raise Reject(Code.CBOR_MALFORMED, f"reserved head at byte {self.position}")
        end = start + (1 << (info - 24))
        if end > len(self.data):
            raise Reject(Code.CBOR_EOF, f"the head at byte {self.position} is cut off")
        argument = int.from_bytes(self.data[start:end], "big")
        if argument < _SHORTEST[info - 24]:
            raise Reject(Code.CBOR_NONMINIMAL, f"{argument} at byte {self.position} has a shorter form")
        self.position = end
        return argument

    def _tag_or_simple(self, major: int, argument: int) -> Value:
        position = self.position
        if major == 6:
            raise Reject(Code.CBOR_TAG, f"tag at byte {position}")
        self.position = position + 1
        if argument == 20:
            return False
        if argument == 21:
            return True
        if argument == 22 and self.allow_null:
            return None
        if 25 <= argument <= 27:
            raise Reject(Code.CBOR_FLOAT, f"floating-point number at byte {position}")
        if argument == 31:
            raise Reject(Code.CBOR_INDEFINITE, f"break at byte {position}")
        if argument > 27:
            raise Reject(Code.CBOR_MALFORMED, f"reserved head at byte {position}")
        raise Reject(Code.CBOR_SIMPLE, f"null, undefined or unassigned simple value at byte {position}")

    def _take(self, length: int) -> bytes:
        start = self.position
        end = start + length
        if end > len(self.data):
            raise Reject(Code.CBOR_EOF, f"{length} bytes announced at byte {start}, {len(self.data) - start} are left")
        self.position = end
        return self.data[start:end]

    def _container(self, count: int, depth: int, *, is_map: bool) -> Value:
        if depth == 0:
            raise Reject(Code.CBOR_DEPTH, f"too many nested arrays or maps at byte {self.position}")
        items = 2 * count if is_map else count
        if items > len(self.data) - self.position:
            raise Reject(Code.CBOR_EOF, f"{items} items announced at byte {self.position}, more than bytes are left")
        self.items_left -= items
        if self.items_left < 0:
            raise Reject(Code.CBOR_ITEMS, f"too many items at byte {self.position}")
        read, inner = self.item, depth - 1
        if not is_map:
            return [read(inner) for _ in range(count)]
        result: dict[int | str, Value] = {}
        for _ in range(count):
            where = self.position
            key = read(inner)
            if type(key) is not int and type(key) is not str:
                raise Reject(Code.CBOR_KEY, f"the map key at byte {where} is neither integer nor text")
            if key in result:
                raise Reject(Code.CBOR_DUPKEY, f"the map key {key!r:.40} at byte {where} occurs twice")
            result[key] = read(inner)
        return result


def _write_head(major: int, argument: int, out: bytearray) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
        return
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * width):
            out.append(major << 5 | info)
            out += argument.to_bytes(width, "big")
            return
    raise Reject(Code.CBOR_TYPE, "an integer does not fit into 64 bits")


def _write(value: Writable, out: bytearray) -> None:
    if value is None or isinstance(value, bool):
        out.append(0xF6 if value is None else 0xF5 if value else 0xF4)
    elif isinstance(value, int):
        _write_head(0 if value >= 0 else 1, value if value >= 0 else -1 - value, out)
    elif isinstance(value, bytes):
        _write_head(2, len(value), out)
        out += value
    elif isinstance(value, str):
        text = value.encode("utf-8")
        _write_head(3, len(text), out)
        out += text
    elif isinstance(value, _ARRAYS):
        _write_head(4, len(value), out)
        for element in value:
            _write(element, out)
    elif isinstance(value, _MAPS):
        _write_head(5, len(value), out)
        for key, content in sorted(((_key(key), content) for key, content in value.items()), key=lambda pair: pair[0]):
            out += key
            _write(content, out)
    else:
        raise Reject(Code.CBOR_TYPE, f"{type(value).__name__} cannot be written")


def _key(key: object) -> bytes:
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise Reject(Code.CBOR_TYPE, f"{type(key).__name__} cannot be a map key")
    return dumps(key)
