# SPDX-License-Identifier: Apache-2.0
"""Flash memory: the rules of flash.py, and a model against it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashjob.virtual.flash import SECTOR, Flash, FlashIOError, factory_content

SIZE = 4 * SECTOR


def test_erased_at_first() -> None:
    assert Flash(SIZE).snapshot() == b"\xff" * SIZE


@pytest.mark.parametrize("size", [0, -SECTOR, SECTOR + 1])
def test_sizes_are_whole_sectors(size: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        Flash(size)


@pytest.mark.parametrize(("offset", "length"), [(1, SECTOR), (0, 1), (SECTOR // 2, SECTOR)])
def test_rule_1_unaligned_erase_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="aligned"):
        Flash(SIZE).erase(offset, length)


def test_rule_2_programming_only_clears_bits() -> None:
    flash = Flash(SIZE)
    flash.program(10, b"\xf0\x0f")
    flash.program(10, b"\x3c\xff")
    assert flash.read(10, 2) == b"\x30\x0f"


@pytest.mark.parametrize("offset", [-1, SIZE, SIZE - 1])
def test_rule_3_nothing_outside(offset: int) -> None:
    flash = Flash(SIZE)
    for operation in (
        lambda: flash.read(offset, 2),
        lambda: flash.program(offset, b"ab"),
        lambda: flash.load(offset, b"ab"),
    ):
        with pytest.raises(ValueError):
            operation()
    with pytest.raises(ValueError):
        flash.erase(SIZE, SECTOR)
    assert flash.snapshot() == b"\xff" * SIZE


def test_rule_4_regions_count_what_touches_them() -> None:
    flash = Flash(SIZE)
    flash.watch("slot", SECTOR, 2 * SECTOR)
    flash.erase(0, 2 * SECTOR)
    flash.program(SECTOR - 2, b"abcd")
    flash.program(SECTOR, b"image")
    flash.program(3 * SECTOR - 1, b"xy")
    slot = flash.regions["slot"]
    assert (slot.erased, slot.programmed, slot.installs) == (SECTOR, 2 + 5 + 1, 2)
    assert (flash.bytes_erased, flash.bytes_programmed) == (2 * SECTOR, 11)
    flash.reset_counters()
    assert flash.regions["slot"].programmed == flash.bytes_programmed == 0
    flash.load(SECTOR, b"factory")
    assert flash.regions["slot"].programmed == 0


def test_rule_5_a_hook_stops_an_operation_before_it_changes_anything() -> None:
    def hook(operation: str, _offset: int, _length: int) -> None:
        if operation != "read":
            raise FlashIOError("worn out")

    flash = Flash(SIZE, hook=hook)
    with pytest.raises(FlashIOError):
        flash.program(0, b"\0")
    with pytest.raises(FlashIOError):
        flash.erase(0, SECTOR)
    assert flash.read(0, 1) == b"\xff"
    assert (flash.bytes_programmed, flash.bytes_erased) == (0, 0)


def test_rule_6_what_is_equal_is_shared_and_what_differs_is_not() -> None:
    content = factory_content([(10, b"maker"), (SECTOR - 1, b"ab"), (11, b"A")])
    one, other = Flash(SIZE), Flash(SIZE)
    for flash in (one, other):
        flash.manufacture(content)
        assert flash.read(10, 5) == b"mAker"
        assert flash.read(SECTOR - 1, 2) == b"ab"
        assert flash.own_bytes == 0
    one.program(3 * SECTOR, b"mine")
    one.erase(0, SECTOR)
    assert one.own_bytes == SECTOR, "what is erased takes nothing"
    assert one.read(10, 5) == b"\xff" * 5
    assert other.read(10, 5) == b"mAker"
    assert other.read(3 * SECTOR, 4) == b"\xff" * 4
    one.manufacture(content)
    assert one.snapshot() == other.snapshot()
    with pytest.raises(ValueError, match="does not fit"):
        one.manufacture(factory_content([(SIZE, b"x")]))


def test_rule_6_equal_content_is_one_object_however_it_came_there() -> None:
    one, other = Flash(8 * SECTOR), Flash(8 * SECTOR)
    one.manufacture(factory_content([(0, b"same")]))
    other.program(0, b"same")
    assert one.read(0, one.size) is other.read(0, other.size)
    other.program(7 * SECTOR, b"not")
    assert one.read(0, one.size) != other.read(0, other.size)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("erase"), st.integers(0, 3), st.just(b"")),
            st.tuples(st.just("program"), st.integers(0, SIZE - 64), st.binary(min_size=1, max_size=64)),
        ),
        max_size=20,
    )
)
def test_behaves_as_a_list_of_bytes(steps: list[tuple[str, int, bytes]]) -> None:
    flash, model = Flash(SIZE), [0xFF] * SIZE
    flash.manufacture(factory_content([(100, b"\xf0" * SECTOR)]))
    model[100 : 100 + SECTOR] = b"\xf0" * SECTOR
    for kind, where, data in steps:
        if kind == "erase":
            flash.erase(where * SECTOR, SECTOR)
            model[where * SECTOR : (where + 1) * SECTOR] = [0xFF] * SECTOR
        else:
            flash.program(where, data)
            for index, byte in enumerate(data):
                model[where + index] &= byte
    assert flash.snapshot() == bytes(model)
