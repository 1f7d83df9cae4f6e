# SPDX-License-Identifier: Apache-2.0
"""The strict CBOR profile. Numbers in names are those of the list of attacks in docs (threat model, "CBOR")."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import cbor
from attestation.cbor import dumps, strict_loads
from attestation.errors import Code, Reject
from tests.unit.attestation.world import rejects, vectors

BAD = {
    "01 indefinite array": ("9f01ff", "cbor.indefinite"),
    "01 indefinite map": ("bf0102ff", "cbor.indefinite"),
    "01 indefinite bytes": ("5f4101ff", "cbor.indefinite"),
    "01 indefinite text": ("7f6161ff", "cbor.indefinite"),
    "01 lone break": ("ff", "cbor.indefinite"),
    "02 duplicate key": ("a201000101", "cbor.dupkey"),
    "02 duplicate text key": ("a261610061610a", "cbor.dupkey"),
    "02 duplicate key in an inner map": ("81a203000300", "cbor.dupkey"),
    "03 non-minimal 23": ("1817", "cbor.nonminimal"),
    "03 non-minimal 255": ("1900ff", "cbor.nonminimal"),
    "03 non-minimal 65535": ("1a0000ffff", "cbor.nonminimal"),
    "03 non-minimal 64 bit": ("1b00000000ffffffff", "cbor.nonminimal"),
    "03 non-minimal negative": ("3806", "cbor.nonminimal"),
    "03 non-minimal length": ("580101", "cbor.nonminimal"),
    "04 trailing byte": ("0000", "cbor.trailing"),
    "05 nesting": ("81" * 9 + "00", "cbor.depth"),
    "05 nesting of maps": ("a100" * 9 + "00", "cbor.depth"),
    "06 length 2^64 - 1": ("5bffffffffffffffff00", "cbor.eof"),
    "06 array of 2^64 - 1": ("9bffffffffffffffff00", "cbor.eof"),
    "06 map of 2^64 - 1": ("bbffffffffffffffff00", "cbor.eof"),
    "06 cut off head": ("19ff", "cbor.eof"),
    "06 cut off item": ("8201", "cbor.eof"),
    "08 tag 0": ("c0613a", "cbor.tag"),
    "08 tag 2": ("c24101", "cbor.tag"),
    "08 tag 4, which costs seconds to expand": ("c4821a000fffff01", "cbor.tag"),
    "08 tag 28": ("d81c80", "cbor.tag"),
    "08 tag 35": ("d8236161", "cbor.tag"),
    "08 tag inside": ("81c11a5f000000", "cbor.tag"),
    "09 invalid UTF-8": ("62c328", "cbor.utf8"),
    "09 surrogate": ("63eda080", "cbor.utf8"),
    "10 NaN": ("f97e00", "cbor.float"),
    "10 1.5": ("f93e00", "cbor.float"),
    "10 float time": ("a106fb41d7000000000000", "cbor.float"),
    "10 single": ("fa47c35000", "cbor.float"),
    "11 boolean key": ("a1f500", "cbor.key"),
    "11 bytes key": ("a1410000", "cbor.key"),
    "11 array key": ("a18000", "cbor.key"),
    "null": ("f6", "cbor.simple"),
    "undefined": ("f7", "cbor.simple"),
    "simple 0": ("e0", "cbor.simple"),
    "simple 32": ("f820", "cbor.simple"),
    "simple key": ("a1f600", "cbor.simple"),
    "12 empty": ("", "size"),
    "reserved head": ("1c", "cbor.malformed"),
    "reserved simple": ("fc", "cbor.malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_its_own_code(name: str) -> None:
    data, code = BAD[name]
    rejects(code, lambda: strict_loads(bytes.fromhex(data)))


def test_05_deep_nesting_ends_early() -> None:
    rejects("cbor.depth", lambda: strict_loads(b"\x81" * 100_000 + b"\x00", limit=1 << 20))


def test_07_size_is_checked_first() -> None:
    rejects("size", lambda: strict_loads(b"\x5f" * 8193))


def test_items_are_counted_before_they_are_read() -> None:
    """The array announces more items than allowed; its first one is broken and must never be looked at."""
    rejects("cbor.items", lambda: strict_loads(b"\x99\x02\x00" + b"\xff" * 512))


def test_items_are_counted_over_all_containers() -> None:
    inner = b"\x98\xff" + b"\x00" * 255
    rejects("cbor.items", lambda: strict_loads(b"\x83" + inner * 3))
    assert strict_loads(b"\x82" + inner + b"\x98\xfc" + b"\x00" * 252)


@pytest.mark.parametrize("items", [[0] * 600, [[{}] * 300] * 2, [[{1: []}] * 200], dict.fromkeys(range(300), 0)])
def test_the_short_way_gives_up_on_too_many_items_before_it_looks_at_them_all(items: Any) -> None:
    with pytest.raises(ValueError, match="items"):
        cbor._shortest((items,), cbor.MAX_DEPTH, cbor.MAX_ITEMS)
    rejects("cbor.items", lambda: strict_loads(dumps(items)))


def test_eight_levels_pass() -> None:
    assert strict_loads(b"\x81" * 8 + b"\x00") == [[[[[[[[0]]]]]]]]


def test_order_of_keys_is_free() -> None:
    assert strict_loads(bytes.fromhex("a202000100")) == {2: 0, 1: 0}


def test_null_only_where_allowed() -> None:
    assert strict_loads(b"\xf6", allow_null=True) is None


def test_writing_sorts_by_encoded_key() -> None:
    assert dumps({-1: 0, 10: 0, 100: 0, 2: 0, "a": 0}).hex() == "a502000a0018640020006161" + "00"


@pytest.mark.parametrize("value", [1.5, {1.0: 1}, {True: 1}, {1, 2}, 2**64, -(2**64) - 1, {b"a": 1}])
def test_what_cannot_be_read_is_not_written(value: Any) -> None:
    rejects("cbor.type", lambda: dumps(value))


SCALARS = st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20) | st.booleans()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.integers(-(2**32), 2**32) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip_and_cbor2_agrees(value: Any) -> None:
    encoded = dumps(value)
    decoded = strict_loads(encoded, max_depth=64)
    assert decoded == value
    assert cbor2.loads(encoded) == value


@given(st.binary(min_size=1, max_size=80))
def test_what_we_accept_cbor2_reads_equally(data: bytes) -> None:
    """Our own reader against it, not the short way, which is made of it; repr, because True == 1."""
    _, own = both_ways(data)
    assert isinstance(own, Code) or repr(cbor2.loads(data)) == repr(own)


@given(VALUES, st.data())
def test_mutations_raise_only_our_error(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(dumps(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    _, own = both_ways(bytes(encoded))
    assert isinstance(own, Code) or repr(cbor2.loads(bytes(encoded))) == repr(own)


def both_ways(data: bytes) -> tuple[Any, Any]:
    """What the whole function says, and what the reader of the module says when it is asked alone."""

    def said(run: Any) -> Any:
        try:
            return run()
        except Reject as reject:
            return reject.code

    def alone() -> Any:
        reader = cbor._Reader(data, cbor.MAX_ITEMS, allow_null=False)
        value = reader.item(cbor.MAX_DEPTH)
        return value if reader.position == len(data) else Code.CBOR_TRAILING

    return said(lambda: strict_loads(data)), said(alone)


@given(st.binary(min_size=1, max_size=64))
def test_the_short_way_never_decides_otherwise_on_garbage(data: bytes) -> None:
    quick, own = both_ways(data)
    assert repr(quick) == repr(own)


@given(VALUES, st.data())
def test_the_short_way_never_decides_otherwise_on_mutations(value: Any, data: st.DataObject) -> None:
    """repr, because True == 1."""
    encoded = bytearray(dumps(value))
    quick, own = both_ways(bytes(encoded))
    assert repr(quick) == repr(own)
    for _ in range(3):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    quick, own = both_ways(bytes(encoded))
    assert repr(quick) == repr(own)


def test_genuine_certificates_are_read() -> None:
    found = sorted(vectors("open-dice-known").glob("Cbor*.cose"))
    assert len(found) >= 11
    for path in found:
        assert isinstance(strict_loads(path.read_bytes()), list), path.name


def test_every_code_has_its_own_value_and_line() -> None:
    assert len({code.value for code in Code}) == len(Code)
    assert all(code.doc.endswith(".") and "\n" not in code.doc for code in Code)
