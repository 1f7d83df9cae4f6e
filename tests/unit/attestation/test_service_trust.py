# SPDX-License-Identifier: Apache-2.0
"""What the service remembers of its trust directory, by the rules of attestation/service/trust.py."""

import os
import sys
from pathlib import Path

import pytest

from attestation.anchors import DeviceState
from attestation.errors import Code, Reject
from attestation.service.trust import LiveTrust
from attestation.standing import Verb
from tests.unit.attestation.serving import Device, Files

DEVICE = Device()
UEID = DEVICE.minted.ueid


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [DEVICE])


def test_1_what_changed_on_the_disk_is_seen_at_the_next_question(files: Files) -> None:
    trust = LiveTrust(files.trust)
    first = trust.device(UEID)
    assert first is not None
    assert trust.device(UEID) is first
    files.trust.change_standing(UEID, Verb.REVOKE, by="a person", reason="stolen", at=1)
    second = trust.device(UEID)
    assert second is not None
    assert (first.anchor.state, second.anchor.state) == (DeviceState.ACTIVE, DeviceState.REVOKED)


def test_2_a_missing_device_is_told_from_a_missing_directory(files: Files) -> None:
    trust = LiveTrust(files.trust)
    assert trust.device(os.urandom(33)) is None
    (files.trust.root / "devices").rename(files.trust.root / "elsewhere")
    with pytest.raises(Reject) as caught:
        trust.device(os.urandom(33))
    assert caught.value.code is Code.STORE_UNAVAILABLE


def test_3_the_memory_is_bounded_and_who_was_asked_for_last_stays(tmp_path: Path) -> None:
    devices = [Device(type(DEVICE.minted)(seed=bytes([65, n]))) for n in range(3)]
    trust = LiveTrust(Files(tmp_path, devices).trust, devices=2)
    for device in devices:
        assert trust.device(device.minted.ueid) is not None
    assert [trust.known(device.minted.ueid) is not None for device in devices] == [False, True, True]


def test_3_ids_that_nobody_enrolled_leave_nothing_in_the_interpreter(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    interned: list[str] = []
    intern = sys.intern

    def seen(name: str) -> str:
        interned.append(name)
        return intern(name)

    monkeypatch.setattr(sys, "intern", seen)
    unknown = os.urandom(33)
    assert LiveTrust(files.trust).device(unknown) is None
    assert not [name for name in interned if unknown.hex() in name]
