# SPDX-License-Identifier: Apache-2.0
"""Lists as the agent gets them."""

import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.discovery import entries, handler, rules
from attestation.discovery.details import Transport, parse_details
from attestation.discovery.entries import Entry, Shown
from attestation.discovery.listing import Listing
from tests.unit.attestation.world import Minted, judge
from tests.unit.discovery.test_rules import answer

PHONE = Minted()
LISTING = rules.judge(answer(None), judge(PHONE, PHONE.evidence()))[1]
ANY = parse_details("list: Devices", Transport.NETWORK)


def many(count: int) -> tuple[Entry, ...]:
    return tuple(Entry(f"{number:04}", {"FLASHJOB_LISTING": "x" * 600}) for number in range(count))


def test_rule_4_a_list_that_is_too_long_is_cut_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = handler._response(many(20))
    assert len(whole.devices) == 20
    assert not caplog.records
    monkeypatch.setattr(handler, "MAX_LIST_BYTES", whole.ByteSize() // 2)
    with caplog.at_level(logging.ERROR):
        cut = handler._response(many(20))
    assert [device.id for device in cut.devices] == [f"{number:04}" for number in range(len(cut.devices))]
    assert 0 < len(cut.devices) < 20
    assert f"{20 - len(cut.devices)} are left out" in caplog.text


@given(st.integers(0, 5000))
def test_rule_3_an_agent_writes_at_most_500_instances_a_second(count: int) -> None:
    assert handler.gap(count) >= 0.2
    assert count / handler.gap(count) <= 500.001


@given(st.integers(0, 40), st.integers(0, 30_000))
def test_no_list_is_longer_than_allowed(count: int, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler, "MAX_LIST_BYTES", limit)
        assert handler._response(many(count)).ByteSize() <= limit


def test_a_list_is_by_id_and_made_of_the_same_entries_again() -> None:
    shown = [Shown(another(byte), "token", "esp32s3") for byte in (3, 1, 2)]
    first = entries.devices(shown, ANY)
    assert [entry.id for entry in first] == sorted(entry.id for entry in first)
    assert all(one is other for one, other in zip(first, entries.devices(shown, ANY), strict=True))
    assert first[0].properties["FLASHJOB_CHIP"] == "esp32s3"
    assert "FLASHJOB_CHIP" not in replace(shown[0], chip="").entry.properties


def another(byte: int) -> Listing:
    assert LISTING is not None
    return LISTING.model_copy(update={"ueid": b"\x01" + bytes([byte]) * 32})
