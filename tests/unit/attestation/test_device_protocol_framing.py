# SPDX-License-Identifier: Apache-2.0
"""Frames on a noisy console."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.serial_framing import MAX_MESSAGE_BYTES, Frame, FrameReader, Kind, encode

FRAME = st.builds(
    Frame, st.integers(0, 255), st.sampled_from(list(Kind)), st.binary(min_size=1, max_size=MAX_MESSAGE_BYTES)
)
LOG = st.binary(max_size=120).map(lambda raw: raw.replace(b"\n", b" ") + b"\r\n")


def line(covered: str) -> bytes:
    return f"\n~{covered}.{zlib.crc32(covered.encode()):08x}\n".encode()


def test_the_layout_is_the_documented_one() -> None:
    data = bytes(range(80))
    lines = encode(Frame(0xA5, Kind.REQUEST, data)).split(b"\n")
    assert [part for part in lines if part] == [
        line(f"FJ1.a5.Q.{i}/2.{base64.urlsafe_b64encode(chunk).rstrip(b'=').decode()}").strip()
        for i, chunk in ((1, data[:72]), (2, data[72:]))
    ]
    assert max(map(len, lines)) <= 96 + 25


@given(FRAME)
def test_every_message_survives(frame: Frame) -> None:
    assert FrameReader().feed(encode(frame)) == [frame]


@given(st.lists(st.one_of(FRAME, LOG), max_size=8), st.integers(1, 400))
def test_log_text_between_lines_and_any_cut_of_the_stream_change_nothing(parts: list[Frame | bytes], cut: int) -> None:
    stream = b"".join(encode(part) if isinstance(part, Frame) else part for part in parts)
    reader, frames = FrameReader(), []
    for at in range(0, len(stream), cut):
        frames += reader.feed(stream[at : at + cut])
    assert frames == [part for part in parts if isinstance(part, Frame)]


@given(FRAME, st.integers(0, 10**6), st.integers(1, 255))
def test_rule_6_a_damaged_byte_never_gives_another_message(frame: Frame, where: int, flip: int) -> None:
    stream = bytearray(encode(frame))
    stream[where % len(stream)] ^= flip
    assert FrameReader().feed(bytes(stream)) in ([], [frame])


@given(st.binary(max_size=2000))
def test_noise_is_ignored_and_the_next_message_still_arrives(noise: bytes) -> None:
    reader = FrameReader()
    reader.feed(noise)
    frame = Frame(1, Kind.REPLY, b"hello")
    assert reader.feed(encode(frame))[-1:] == [frame]


def test_rule_6_log_text_before_the_frame_on_the_same_line_is_ended_by_its_leading_lf() -> None:
    frame = Frame(1, Kind.BEACON, b"x")
    assert FrameReader().feed(b"I (33) wifi: scanning" + encode(frame)) == [frame]


@pytest.mark.parametrize(
    "covered",
    ["FJ1.A5.Q.1/1.AA", "FJ1.a5.X.1/1.AA", "FJ1.a5.Q.0/1.AA", "FJ1.a5.Q.2/1.AA", "FJ1.a5.Q.01/1.AA", "FJ1.a5.Q.1/49.AA",
     "FJ1.a5.Q.1/1.A", "FJ1.a5.Q.1/1.", "FJ1.a5.Q.1/1.AA==", "FJ1.a5.Q.1/1.AB", "FJ1.a5.Q.1/1." + "A" * 97,
     "FJ2.a5.Q.1/1.AA", "FJ1.a5.Q.1/1.A+"],
)  # fmt: skip
def test_rules_1_to_4_a_line_that_breaks_one_is_ignored_although_its_crc_is_right(covered: str) -> None:
    assert FrameReader().feed(line(covered)) == []
    assert FrameReader().feed(line("FJ1.a5.Q.1/1.AA")) == [Frame(0xA5, Kind.REQUEST, b"\0")]


def test_rule_5_a_wrong_crc_is_ignored() -> None:
    good = line("FJ1.a5.Q.1/1.AA")
    assert FrameReader().feed(good.replace(good[-9:-1], b"00000000")) == []
    assert FrameReader().feed(good.upper()) == []


def test_rule_7_a_gap_drops_the_message_and_a_repeat_completes_it() -> None:
    frame = Frame(7, Kind.REPLY, bytes(200))
    lines = [b"\n" + part + b"\n" for part in encode(frame).split(b"\n") if part]
    reader = FrameReader()
    assert reader.feed(lines[0] + lines[2]) == []
    assert reader.feed(lines[1] + lines[2]) == []
    assert reader.feed(b"".join(lines)) == [frame]


def test_rule_7_lines_of_an_earlier_message_never_complete_a_later_one() -> None:
    old = [part for part in encode(Frame(7, Kind.REPLY, b"o" * 200)).split(b"\n") if part]
    new = [part for part in encode(Frame(7, Kind.REPLY, b"n" * 200)).split(b"\n") if part]
    reader = FrameReader()
    assert reader.feed(b"\n".join([b"", old[0], old[1], new[0], old[2], b""])) == []
    assert reader.feed(b"\n".join([b"", *new, b""])) == [Frame(7, Kind.REPLY, b"n" * 200)]


def test_rule_8_an_overlong_line_is_dropped_up_to_its_end() -> None:
    reader = FrameReader()
    frame = Frame(1, Kind.REPLY, b"hello")
    assert reader.feed(b"x" * 1000 + encode(frame).strip()) == []
    assert reader.feed(b"\n" + encode(frame)) == [frame]
    assert reader.log == []


def test_rule_8_unfinished_messages_do_not_pile_up() -> None:
    reader = FrameReader()
    first = [[part for part in encode(Frame(sid, Kind.REPLY, bytes(100))).split(b"\n") if part] for sid in range(10)]
    reader.feed(b"".join(b"\n" + lines[0] + b"\n" for lines in first))
    finished = reader.feed(b"".join(b"\n" + lines[1] + b"\n" for lines in first))
    assert [frame.sid for frame in finished] == list(range(2, 10))


def test_log_lines_are_kept_for_people() -> None:
    reader = FrameReader(log_limit=3)
    reader.feed(b"".join(b"line %d\r\n" % number for number in range(5)))
    assert reader.log == [b"line 2", b"line 3", b"line 4"]


@pytest.mark.parametrize("payload", [b"", bytes(MAX_MESSAGE_BYTES + 1)])
def test_what_does_not_fit_is_not_sent(payload: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 3456"):
        encode(Frame(0, Kind.REPLY, payload))
    with pytest.raises(ValueError, match="one byte"):
        encode(Frame(256, Kind.REPLY, b"x"))
