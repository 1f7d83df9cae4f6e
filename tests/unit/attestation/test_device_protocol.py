# SPDX-License-Identifier: Apache-2.0
"""Messages of the device protocol, as a client reads and writes them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import device_protocol as dp
from attestation.cbor import dumps, strict_loads
from attestation.device_protocol import DeviceError, DeviceNonce, ErrorCode, Flag, Info
from attestation.grants import Verb

GOOD: dict[int, Any] = {
    1: [1], 2: b"\x01" + bytes(32), 3: 9, 4: 102, 5: 4 << 20, 6: 0x10, 7: 2, 8: 0x1C0000, 9: [-44, bytes(64)],
    10: "porch", 11: "2.1.0", 12: 0, 13: 1, 14: 0b10011111, 15: bytes(32), 16: bytes(16),
}  # fmt: skip


def test_info_is_read_by_label() -> None:
    info = dp.parse_info(dumps(GOOD))
    assert (info.chip_id, info.chip_revision, info.running_slot, info.version) == (9, 102, 0x10, "2.1.0")
    assert Flag.SECURE_BOOT in info.flags
    assert Flag.DOWNLOAD_LOCKED in info.flags
    assert Flag.DELTA not in info.flags
    assert info.measurement.alg == -44
    assert (info.next_offset, info.active_grant, info.confirm_seconds_left) == (None, None, None)
    assert dp.encode_info(info) == dumps(GOOD)


def test_rule_1_unknown_labels_are_ignored_in_info() -> None:
    assert dp.parse_info(dumps(GOOD | {77: "later", 14: 1 << 20})).name == "porch"


def test_the_optional_fields_travel_too() -> None:
    more = GOOD | {17: 4096, 18: b"g" * 16, 19: 250}
    info = dp.parse_info(dumps(more))
    assert (info.next_offset, info.active_grant, info.confirm_seconds_left) == (4096, b"g" * 16, 250)
    assert strict_loads(dp.encode_info(info)) == more


@pytest.mark.parametrize("label", sorted(GOOD))
def test_every_field_is_required(label: int) -> None:
    with pytest.raises(DeviceError) as caught:
        dp.parse_info(dumps({k: v for k, v in GOOD.items() if k != label}))
    assert caught.value.reason == "BadReply"


@pytest.mark.parametrize(
    "change",
    [{1: []}, {1: 1}, {2: "x"}, {3: -1}, {3: True}, {3: "9"}, {4: 1 << 16}, {6: 256}, {9: bytes(64)}, {10: b"porch"},
     {10: "x" * 65}, {14: -1}, {14: "1"}, {14: True}, {15: bytes(31)}, {16: b""}, {17: -1}, {18: bytes(15)}],
    ids=repr,
)  # fmt: skip
def test_types_in_info_are_strict(change: dict[int, Any]) -> None:
    with pytest.raises(DeviceError) as caught:
        dp.parse_info(dumps(GOOD | change))
    assert caught.value.reason == "BadReply"


def test_nonces() -> None:
    assert strict_loads(dp.nonce_request(Verb.CONFIRM)) == {1: 2}
    assert dp.parse_nonce(dumps({1: b"n" * 16, 2: 600})) == DeviceNonce(b"n" * 16, 600)
    for wrong in ({1: b"n" * 15, 2: 600}, {1: b"n" * 16, 2: 0}, {1: b"n" * 16, 2: True}, {1: b"n" * 16}, {}):
        with pytest.raises(DeviceError, match="BadReply"):
            dp.parse_nonce(dumps(wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        dp.attest_request(bytes(16))


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_travels(code: ErrorCode) -> None:
    error = dp.refused(dp.encode_error(code, "no", next_offset=7), status=dp.HTTP_STATUS[code])
    assert (error.reason, error.code, error.next_offset) == ("Refused", code, 7)
    assert code.name in str(error)


def test_the_numbers_are_the_contract() -> None:
    assert [code.value for code in ErrorCode] == list(range(1, 19))
    assert (ErrorCode.NONCE, ErrorCode.SLOW_DOWN, ErrorCode.FLASH_IO) == (6, 17, 18)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", dumps([1]), dumps({}), dumps({1: 0}), dumps({1: 19}), dumps({1: "6"})]
)
def test_a_refusal_without_a_readable_code_is_a_bad_reply(body: bytes) -> None:
    error = dp.refused(body, status=500)
    assert (error.reason, error.code) == ("BadReply", None)


@given(st.binary(max_size=300))
def test_garbage_raises_device_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(DeviceError):
        dp.parse_info(data)
    assert dp.refused(data, status=400).reason in ("BadReply", "Refused")


async def test_rule_5_a_device_that_asks_for_time_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def no_wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_wait)
    answers: list[Any] = [DeviceError("Refused", "slow", code=ErrorCode.SLOW_DOWN)] * 2 + [b"evidence"]

    async def ask() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, DeviceError):
            raise answer
        return bytes(answer)

    assert await dp.patiently(ask) == b"evidence"
    assert waited == [1.0, 1.0]
    answers += [DeviceError("Refused", "slow", code=ErrorCode.SLOW_DOWN)] * 4
    with pytest.raises(DeviceError):
        await dp.patiently(ask)
    assert answers == [], "asked four times, then given up"
    answers.append(DeviceError("Refused", "no", code=ErrorCode.BUSY))
    with pytest.raises(DeviceError):
        await dp.patiently(ask)


def test_info_cannot_be_changed_after_the_fact() -> None:
    with pytest.raises(Exception, match="frozen"):
        dp.parse_info(dumps(GOOD)).version = "9"  # type: ignore[misc]
    assert Info.model_config["strict"] is True
